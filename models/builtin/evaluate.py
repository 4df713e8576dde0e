"""Measures the built-in model on held-out examples, and writes greedy transcripts for tests.

    python evaluate.py [--dir DIR] [--per-task N] [--transcripts FILE]

Weights are read as stored (16 bits) and run in f32. An answer counts only if it equals the expected text exactly and
the model ends its turn after it.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

import tasks
from train import END, PAD

HERE = Path(__file__).resolve().parent
SEED = 7
MAX_NEW_TOKENS = 240
TASKS = ("add", "json", "sql", "reverse", "spell")
# Written by hand, none from the templates of `tasks.py`: does the model admit that it cannot help?
UNSEEN_REQUESTS = [
    "Could you recommend a good Italian restaurant nearby?", "My laptop won't turn on, what should I check first?",
    "Please proofread the following paragraph for me.", "Which is heavier, a kilogram of iron or a kilogram of feathers?",
    "I'm writing a wedding speech and I'm stuck.", "Convert 30 degrees Celsius to Fahrenheit.", "What's the weather like?",
    "Why do cats purr?", "Est-ce que tu parles français ?", "Wie spät ist es?", "Who painted the Mona Lisa?",
    "How many planets are there in the solar system?", "Generate a strong password for me.", "Was ist 3 mal 4?",
    "Is it safe to eat raw eggs?", "Explain recursion like I'm five.", "SELECT * FROM users;", "Roll two dice.",
    "Tell me the news.", "Let's play chess. e4", "import numpy as np", "What's your name?", "What is the boiling point of water?",
    "¿Dónde está la biblioteca?", "请用中文回答我的问题。", "When is the next full moon?", "asdf jkl qwer", "Why is my code so slow?",
    "Find the bug in this program.", "Can dogs eat chocolate?",
]
TRANSCRIPT_MESSAGES = [
    "What is 128 + 64?", "4821 + 937", "What is the sum of 9999 and 1?", "Reverse the word stone.", "Spell lantern.",
    "JSON: Ann is 31, lives in Rome and is a member.", "Make JSON: Zoë is 8 and lives in Zürich.",
    "SQL: show name and pay from staff where pay is over 500.", "List all from trips ordered by date descending.",
    "Hello!", "Thanks", "Explain quantum physics.",
]


def prompt_ids(tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answers(model, tokenizer, conversations):
    """Greedy answers of many conversations at once; None for one that did not end in time."""
    prompts = [prompt_ids(tokenizer, messages) for messages in conversations]
    longest = max(map(len, prompts))
    inputs = torch.tensor([[PAD] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    with torch.no_grad():
        rows = model.generate(inputs, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[:, longest:].tolist()
    return [tokenizer.decode(row[: row.index(END)]) if END in row else None for row in rows]


def user(text):
    return {"role": "user", "content": text}


def held_out_accuracy(model, tokenizer, task, per_task, follows_a_turn):
    """Share of exact answers, to a question alone or after a question and answer of another kind or the same."""
    rng, conversations, expected = random.Random(f"{SEED} {task} {follows_a_turn}"), [], []
    for _ in range(per_task):
        messages = []
        if follows_a_turn:
            _, question, answer = tasks.sample(rng, held_out=False, task=rng.choice(TASKS))
            messages = [user(question), {"role": "assistant", "content": answer}]
        _, question, answer = tasks.sample(rng, held_out=True, task=task)
        conversations.append([*messages, user(question)])
        expected.append(answer)
    got = answers(model, tokenizer, conversations)
    for messages, answer, wanted in [case for case in zip(conversations, got, expected) if case[1] != case[2]][:2]:
        print(f"    wrong: {messages[-1]['content']!r}\n      got  {answer!r}\n      want {wanted!r}")
    return sum(a == b for a, b in zip(got, expected)) / per_task


def transcript(model, tokenizer, message):
    """A greedy answer token by token, its end token included, with the top-2 margin of every choice."""
    ids = prompt_ids(tokenizer, [user(message)])
    output_ids, margins, inputs, kv_cache = [], [], torch.tensor([ids]), None
    while END not in output_ids and len(output_ids) < MAX_NEW_TOKENS:
        with torch.no_grad():
            result = model(inputs, past_key_values=kv_cache, use_cache=True)
        kv_cache, top = result.past_key_values, result.logits[0, -1].topk(2)
        output_ids.append(top.indices[0].item())
        margins.append(round((top.values[0] - top.values[1]).item(), 5))
        inputs = top.indices[:1].reshape(1, 1)
    return {"message": message, "prompt": tokenizer.decode(ids), "prompt_ids": ids, "output_ids": output_ids, "margins": margins,
            "text": tokenizer.decode(output_ids, skip_special_tokens=True)}


def check_tokenizer(folder):
    """Every byte is one token, and any text comes back."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ["".join(map(chr, range(32, 127))), "é 日本 🚀👍🏽 \r\n\t\0", "  spaces  ", *map(chr, range(0x20, 0xD800, 7))]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == list(text.encode()), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text, text
    assert tokenizer.encode("<|user|>a<|end|>", add_special_tokens=True).ids == [256, 259, 97, 257]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=HERE)
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--transcripts", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    check_tokenizer(args.dir)
    tokenizer = AutoTokenizer.from_pretrained(args.dir)
    model = LlamaForCausalLM.from_pretrained(args.dir, dtype=torch.float32).eval()
    for follows_a_turn in (False, True):
        for task in (*TASKS, "other"):
            accuracy = held_out_accuracy(model, tokenizer, task, args.per_task, follows_a_turn)
            place = "second turn" if follows_a_turn else "first turn"
            print(f"{place}, {task}: {accuracy:.3f} of {args.per_task}", flush=True)
    unseen = answers(model, tokenizer, [[user(text)] for text in UNSEEN_REQUESTS])
    for text, answer in zip(UNSEEN_REQUESTS, unseen):
        if answer != tasks.SORRY:
            print(f"    wrong: {text!r} -> {answer!r}")
    print(f"hand-written requests answered with the honest sentence: {sum(a == tasks.SORRY for a in unseen)} of {len(unseen)}")
    if args.transcripts:
        record = [transcript(model, tokenizer, message) for message in TRANSCRIPT_MESSAGES]
        for entry in record:
            print(f"{entry['message']!r} -> {entry['text']!r} (smallest margin {min(entry['margins'])})")
        args.transcripts.parent.mkdir(parents=True, exist_ok=True)
        args.transcripts.write_text(json.dumps({"transcripts": record}, ensure_ascii=False).replace('{"message"', '\n{"message"') + "\n")


if __name__ == "__main__":
    main()
