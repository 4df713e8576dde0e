"""Asks Leapfrog and llama-server, which serve the same built-in model, the same things and counts equal tokens and answers.

    python check_builtin.py --ours http://127.0.0.1:8080 --theirs http://127.0.0.1:8081 records.jsonl chat.txt

Needs nothing but Python. Files have a prompt a line: text, or JSON with `problem`, `prompt` or `messages`. Prompts are asked
one at a time, greedily, until the model ends its answer; texts are also cut into tokens by both. Ends with 1 if anything differs.
"""

import argparse
import json
import sys
import urllib.request
from pathlib import Path


def post(url: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


def conversations(path: Path) -> list[list[dict]]:
    found = []
    for line in path.read_text().splitlines():
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            found.append([{"role": "user", "content": line}])
            continue
        entry = json.loads(line)
        text = entry.get("problem", entry.get("prompt"))
        found.append(entry.get("messages") or [{"role": "user", "content": text}])
    return found


def answer(url: str, messages: list[dict], max_tokens: int) -> tuple[str, int]:
    body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0.0}
    reply = post(url, "/v1/chat/completions", body)
    return reply["choices"][0]["message"]["content"], reply["usage"]["prompt_tokens"]


def tokens(url: str, text: str) -> list[int]:
    return post(url, "/tokenize", {"content": text, "add_special": False})["tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="address of leapfrog")
    parser.add_argument("--theirs", required=True, help="address of llama-server")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    asked = [messages for path in args.files for messages in conversations(path)]
    texts = sorted({turn["content"] for messages in asked for turn in messages})
    equal_tokens = equal_prompts = equal_answers = 0
    for messages in asked:
        ours, our_prompt = answer(args.ours, messages, args.max_tokens)
        theirs, their_prompt = answer(args.theirs, messages, args.max_tokens)
        equal_prompts += our_prompt == their_prompt
        equal_answers += ours == theirs
        if ours != theirs:
            print(json.dumps({"asked": messages[-1]["content"], "ours": ours, "theirs": theirs}))
        texts.append(ours)
    for text in texts:
        ours, theirs = tokens(args.ours, text), tokens(args.theirs, text)
        equal_tokens += ours == theirs
        if ours != theirs:
            print(json.dumps({"text": text, "ours": ours, "theirs": theirs}))
    print(f"tokens of texts: {equal_tokens} of {len(texts)} equal")
    print(f"lengths of prompts: {equal_prompts} of {len(asked)} equal")
    print(f"answers: {equal_answers} of {len(asked)} equal")
    sys.exit(min(equal_tokens - len(texts), equal_prompts - len(asked), equal_answers - len(asked)) < 0)


if __name__ == "__main__":
    main()
