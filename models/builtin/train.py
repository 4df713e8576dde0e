"""Trains the built-in model from nothing on the tasks of `tasks.py` and writes its files beside this script.

    python train.py [--steps N] [--threads N] [--out DIR]

Everything is drawn from fixed seeds. The result is an ordinary Llama checkpoint with 16-bit weights and a byte-level
tokenizer; `evaluate.py` measures it.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

import tasks

HERE = Path(__file__).resolve().parent
CONTEXT_LEN = 512
TOKENS_PER_STEP = 4096
# Special tokens follow the 256 bytes. The reserved ones round the vocabulary up to a multiple of 8.
SPECIAL_TOKENS = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>", "<|reserved_0|>", "<|reserved_1|>"]
BOS, END, SYSTEM, USER, ASSISTANT, PAD = range(256, 262)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('this model knows the roles system, user and assistant only') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_alphabet():
    """The printable character that byte-level BPE uses for each byte, in byte order."""
    keep = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = iter(range(256, 512))
    return [chr(byte) if byte in keep else chr(next(stand_ins)) for byte in range(256)]


def make_tokenizer():
    """Byte-level BPE without merges: token id = byte value, so any text round-trips."""
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(byte_alphabet())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)]
    )
    return tokenizer


def draw_row(rng, length):
    """One training row `(tokens, is_target)`: a conversation, or for one in twelve a plain completion after a newline."""
    tokens, targets = [BOS], [False]

    def push(ids, is_target=False):
        tokens.extend(ids)
        targets.extend([is_target] * len(ids))

    is_plain = rng.random() < 1 / 12
    if not is_plain and rng.random() < 0.15:
        push([SYSTEM, *rng.choice(tasks.SYSTEM_PROMPTS).encode(), END])
    while len(tokens) < length + 1:
        _, question, answer = tasks.sample(rng, held_out=False)
        push([*question.encode(), *b"\n"] if is_plain else [USER, *question.encode(), END, ASSISTANT])
        push([*answer.encode(), END], is_target=True)
        if is_plain:
            push([PAD] * max(0, length + 1 - len(tokens)))
    return tokens[: length + 1], targets[: length + 1]


def draw_batch(rng):
    length = rng.choice([128, 128, 256, 512])
    rows = [draw_row(rng, length) for _ in range(TOKENS_PER_STEP // length)]
    tokens = torch.tensor([row for row, _ in rows])
    targets = torch.tensor([row for _, row in rows])
    return tokens[:, :-1], tokens[:, 1:], targets[:, 1:]


def make_model():
    config = LlamaConfig(
        vocab_size=256 + len(SPECIAL_TOKENS), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT_LEN,
        rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
        bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD, attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0, 0.04 / math.sqrt(2 * config.num_hidden_layers) if is_output else 0.04)
    return model


def loss_of(model, inputs, expected, is_target):
    hidden = model.model(inputs, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[is_target])
    return torch.nn.functional.cross_entropy(logits.float(), expected[is_target])


def train(model, steps, seed):
    """Muon for the matrices inside the layers, AdamW for embeddings and norms; linear warm-up, then linear decay."""
    inner = [w for name, w in model.named_parameters() if w.ndim == 2 and "embed" not in name]
    outer = [w for name, w in model.named_parameters() if w.ndim != 2 or "embed" in name]
    peak_lr, warm_up = 4e-3, 40
    optimizers = [
        torch.optim.Muon(inner, lr=peak_lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    rng, start, recent = random.Random(seed), time.monotonic(), []
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak_lr * min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
        loss = loss_of(model, *draw_batch(rng))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 25 == 0:
            print(f"step {step + 1} loss {sum(recent) / len(recent):.4f} {time.monotonic() - start:.0f} s", flush=True)
            recent.clear()


def save(model, out):
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    # transformers leaves out `do_sample` when it is false, and then nothing says that greedy is meant.
    generation_config = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD, "do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation_config, indent=2) + "\n")
    make_tokenizer().save(str(out / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT_LEN, "clean_up_tokenization_spaces": False,
        "bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>", "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = make_model()
    print(f"{sum(w.numel() for w in model.parameters())} parameters", flush=True)
    train(model, args.steps, seed=1)
    save(model, args.out)


if __name__ == "__main__":
    main()
