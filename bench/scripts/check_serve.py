#!/usr/bin/env python3
"""Whether `leapfrog bench serve` says what aiperf says of the same server: both in turns, on the same prompts.

    pip install aiperf
    leapfrog serve --model MODEL --threads 1 --port 8141
    bench/scripts/check_serve.py --url http://127.0.0.1:8141 --tokenizer FOLDER --out FOLDER

In each round both tools take a turn, and the first of a round is the second of the next; a round 0 warms up and does not
count. Prompts are of `--words` common words at random, others in each turn, so that no server knows them already. Both send chats in a closed loop, streaming, greedy, with answers of a fixed length, and count the server's tokens.
aiperf is several processes: leave it a core, or it slows the server that it measures. `--tokenizer` is the model's folder;
aiperf wants one although it does not use it here. Prints both tools' figures and the median of the ratios with their
range; the exit code is 1 if the median of tokens/s or of the time to the first token differs by more than 10 %.
"""

import argparse
import json
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile

WORDS = "time year people way day thing life child world school state family group country hand part place case week".split()
# Name, path in our summary of a level, entry and key of aiperf's export.
FIGURES = [
    ("requests/s", ("rates", "requests"), ("request_throughput", "avg")),
    ("output tokens/s", ("rates", "output_tokens"), ("output_token_throughput", "avg")),
    ("TTFT, mean (ms)", ("ttft_ms", "mean"), ("time_to_first_token", "avg")),
    ("TTFT, p50 (ms)", ("ttft_ms", "p50"), ("time_to_first_token", "p50")),
    ("TPOT, mean (ms)", ("tpot_ms", "mean"), ("inter_token_latency", "avg")),
    ("between events, mean (ms)", ("event_gap_ms", "mean"), ("inter_chunk_latency", "avg")),
    ("end to end, mean (ms)", ("e2e_ms", "mean"), ("request_latency", "avg")),
    ("end to end, p99 (ms)", ("e2e_ms", "p99"), ("request_latency", "p99")),
]
DECISIVE = ["output tokens/s", "TTFT, mean (ms)", "TTFT, p50 (ms)"]
MOST = 0.10
# Reports of all our turns.
summaries = []


def run(command):
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {result.returncode}:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")


def ours(args, folder, texts):
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    command = [args.leapfrog_bench, "serve", "--url", args.url, "--model", args.model, "--prompts", str(prompts)]
    command += ["--concurrency", str(args.concurrency), "--requests", str(args.requests), "--ignore-eos"]
    command += ["--warmup", str(args.concurrency), "--max-tokens", str(args.tokens), "--out", str(folder)]
    run(command)
    report = json.loads((folder / "summary.json").read_text())
    summaries.append(report)
    summary = report["levels"][0]["summary"]
    return [summary[group][key] for _, (group, key), _ in FIGURES], " ".join(command)


def theirs(args, folder, texts):
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [args.aiperf, "profile", "--model", args.model, "--url", args.url, "--endpoint-type", "chat", "--streaming"]
    command += ["--concurrency", str(args.concurrency), "--request-count", str(args.requests)]
    command += ["--warmup-request-count", str(args.concurrency), "--input-file", str(prompts)]
    command += ["--custom-dataset-type", "single_turn", "--dataset-sampling-strategy", "sequential"]
    command += ["--tokenizer", args.tokenizer, "--use-server-token-count", "--ui", "none", "--no-auto-plot"]
    for field in [f"max_tokens:{args.tokens}", "temperature:0", "ignore_eos:true"]:
        command += ["--extra-inputs", field]
    command += ["--output-artifact-dir", str(folder)]
    run(command)
    export = json.loads((folder / "profile_export_aiperf.json").read_text())
    return [export[entry][key] for _, _, (entry, key) in FIGURES], " ".join(command)


def plain(args, command):
    """The command without the folders of this machine."""
    for path in (args.leapfrog_bench, args.aiperf, args.tokenizer):
        command = command.replace(path, pathlib.Path(path).name)
    return command


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True, help="folder of the model's tokenizer")
    parser.add_argument("--leapfrog-bench", default="leapfrog-bench", help="path of the program")
    parser.add_argument("--aiperf", default="aiperf", help="path of the program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--words", type=int, default=150, help="words of a prompt")
    parser.add_argument("--out", type=pathlib.Path, help="folder for summary.md and raw.json")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    rounds, commands = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        tools = [("leapfrog bench", ours), ("aiperf", theirs)]
        for number in range(args.rounds + 1):
            got = {}
            for name, tool in tools if number % 2 else tools[::-1]:
                folder = scratch / f"{number}-{name.replace(' ', '-')}"
                folder.mkdir()
                draw = random.Random(f"{number} {name}")
                # A few more than the requests: the warm-up has its own.
                count = args.requests + 2 * args.concurrency + 2
                texts = [" ".join(draw.choices(WORDS, k=args.words)) for _ in range(count)]
                got[name], commands[name] = tool(args, folder, texts)
            if number > 0:
                rounds.append(got)
            print(f"round {number} of {args.rounds} done", file=sys.stderr)
    lines = ["| figure | leapfrog bench | aiperf | ratio | range |", "|---|---|---|---|---|"]
    wrong = []
    for index, (name, _, _) in enumerate(FIGURES):
        pairs = [(got["leapfrog bench"][index], got["aiperf"][index]) for got in rounds]
        ratios = sorted(our / their for our, their in pairs)
        middle = statistics.median(ratios)
        medians = [statistics.median(column) for column in zip(*pairs)]
        lines.append(f"| {name} | {medians[0]:.2f} | {medians[1]:.2f} | {middle:.3f} | {ratios[0]:.3f}-{ratios[-1]:.3f} |")
        if name in DECISIVE and abs(middle - 1) > MOST:
            wrong.append(name)
    versions = subprocess.run([args.aiperf, "--version"], capture_output=True, text=True).stdout.strip()
    shown = {name: plain(args, text.replace(str(scratch), "SCRATCH")) for name, text in commands.items()}
    hardware = summaries[-1]["hardware"]
    machine = f"commit {hardware['commit']}, {hardware['cpu']} ({hardware['cores']} cores, {' '.join(hardware['features'])})"
    verdict = f"differ by more than {MOST:.0%}: {', '.join(wrong)}" if wrong else f"{', '.join(DECISIVE)} agree within {MOST:.0%}"
    text = "\n".join(
        ["# `leapfrog bench serve` beside aiperf", ""]
        + [f"aiperf {versions}, Python {platform.python_version()}, {args.rounds} rounds in turns, medians and the ratio within a round; {machine}", ""]
        + [f"    {line}" for line in shown.values()]
        + [""] + lines + ["", verdict + "."]
    )
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "summary.md").write_text(text + "\n")
        names = [name for name, _, _ in FIGURES]
        raw = {"commands": shown, "hardware": hardware, "aiperf": versions, "figures": names, "rounds": rounds}
        (args.out / "raw.json").write_text(json.dumps(raw, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
