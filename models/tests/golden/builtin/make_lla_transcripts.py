"""Greedy transcripts of leapfrog-lla in float64, for the test that compares our own with them.

    pip install numpy==2.4.6 safetensors==0.8.0
    python make_lla_transcripts.py

No library has this layer: the forward pass is that of `../lla/make_lla_goldens.py`. The prompts are those of
`leapfrog-ar.json`. A continuation of leapfrog-ar is tried first: if each of its tokens is the likeliest after those
before it, one pass has shown that it is the greedy one. From the first token that is not, tokens are found one by one.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "../lla"))
from make_lla_goldens import logits_of  # noqa: E402

MODEL = HERE / "../../../builtin/leapfrog-lla"
MAX_TOKENS = 96


def margin(row):
    low, high = np.partition(row, -2)[-2:]
    return round(float(high - low), 5)


def main():
    config = json.loads((MODEL / "config.json").read_text())
    weights = load_file(MODEL / "model.safetensors")
    lines, same = [], 0
    for transcript in json.loads((HERE / "leapfrog-ar.json").read_text())["transcripts"]:
        ids, tried = transcript["prompt_ids"], transcript["output_ids"]
        rows = logits_of(np.array(ids + tried[:-1]), weights, config)[len(ids) - 1 :]
        best = rows.argmax(-1).tolist()
        count = next((i for i, (a, b) in enumerate(zip(best, tried)) if a != b), len(tried))
        output, margins = tried[:count], [margin(row) for row in rows[:count]]
        same += count == len(tried)
        while len(output) < MAX_TOKENS and (not output or output[-1] != config["eos_token_id"]):
            row = logits_of(np.array(ids + output), weights, config)[-1]
            output.append(int(row.argmax()))
            margins.append(margin(row))
        lines.append(json.dumps(transcript | {"output_ids": output, "margins": margins}, ensure_ascii=False))
        print(f"{len(lines)}: {len(output)} tokens, {count} of them as leapfrog-ar", flush=True)
    (HERE / "leapfrog-lla.json").write_text('{"transcripts": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{len(lines)} transcripts, {same} of them those of leapfrog-ar; numpy {np.__version__}")


if __name__ == "__main__":
    main()
