"""Greedy transcripts of the causal built-in models by `transformers`, for the test that compares our own with them.

    pip install torch==2.15.0 transformers==4.57.6
    for task in math json sql chat chain; do
        cargo run --release -p leapfrog-zoo -- sample $task --split test --count 6
    done > problems.jsonl
    python make_transcripts.py problems.jsonl

Writes `<model>.json` beside this script for leapfrog-ar and leapfrog-cllm: `prompt_ids` from the chat template,
`output_ids` up to the end token, and for each of them the margin between the two best logits.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
MODELS = HERE / "../../../builtin"
MAX_TOKENS = 96


def main():
    problems = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    for name in ["leapfrog-ar", "leapfrog-cllm"]:
        model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        lines, right = [], 0
        for problem in problems:
            prompt = tokenizer.apply_chat_template(problem["messages"], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            output, margins = [], []
            with torch.no_grad():
                while len(output) < MAX_TOKENS and (not output or output[-1] != tokenizer.eos_token_id):
                    logits = model(torch.tensor([ids + output])).logits[0, -1]
                    best = logits.topk(2).values
                    output.append(int(logits.argmax()))
                    margins.append(round(float(best[0] - best[1]), 5))
            right += tokenizer.decode(output, skip_special_tokens=True).strip() == problem["answer"]
            transcript = {"prompt": prompt, "prompt_ids": ids, "output_ids": output, "margins": margins}
            lines.append(json.dumps(transcript, ensure_ascii=False))
        (HERE / f"{name}.json").write_text('{"transcripts": [\n' + ",\n".join(lines) + "\n]}\n")
        print(f"{name}: {len(lines)} transcripts, {right} of them the right answer")


if __name__ == "__main__":
    main()
