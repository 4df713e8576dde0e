"""Writes a LLaDA checkpoint with random weights: config, sharded bf16 safetensors, tokenizer.

    python llada_checkpoint.py --preset 8b --out DIR

Needs numpy. The shapes and names are those of GSAI-ML/LLaDA-8B-Instruct, so the speed of a forward pass is the real
one; the text is noise. The weights follow a recipe (`Recipe`) under which greedy decoding is well-conditioned.
`llada_gguf.py` writes the same model as GGUF.
"""

import argparse
import functools
import json
import math
import os
import zlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

# Leading channels of the residual stream that are the same for every token and that no layer writes to. Through them
# the output matrix has a bias. A multiple of 32 keeps them apart from the others in block formats.
CONSTANT_CHANNELS = 32
POOL_LEN = 1 << 24
CHUNK_LEN = 1 << 20

RMS_NORM_EPS = 1e-5
ROPE_THETA = 500000.0

# The special tokens, and their ids if the vocabulary is LLaDA's.
SPECIALS = {
    "<|startoftext|>": 126080,
    "<|endoftext|>": 126081,
    "<|mdm_mask|>": 126336,
    "<|start_header_id|>": 126346,
    "<|end_header_id|>": 126347,
    "<|eot_id|>": 126348,
}
# Size of LLaDA's tokenizer and its first reserved token; the embedding has more rows than the tokenizer has tokens.
LLADA_TOKENS = 126349
LLADA_FIRST_RESERVED = 126080

CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int = 4096

    def __post_init__(self):
        assert self.hidden % self.heads == 0 and self.heads % self.kv_heads == 0, "heads do not divide"
        assert self.head_dim % 2 == 0 and self.hidden > CONSTANT_CHANNELS, "too narrow"
        assert self.vocab >= 512, "the vocabulary needs room for the bytes"

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


PRESETS = {
    "tiny": Shape(layers=2, hidden=256, heads=4, kv_heads=4, ffn=512, vocab=1024),
    "300m": Shape(layers=16, hidden=1024, heads=16, kv_heads=16, ffn=2816, vocab=32064),
    "8b": Shape(layers=32, hidden=4096, heads=32, kv_heads=32, ffn=12288, vocab=126464),
}


def add_shape_options(parser: argparse.ArgumentParser, preset: str) -> None:
    parser.add_argument("--preset", choices=PRESETS, default=preset, help=f"sizes to start from (default {preset})")
    for field in fields(Shape):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=int, help=f"in place of the preset's {field.name}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)


def shape_of(args: argparse.Namespace) -> Shape:
    given = {field.name: getattr(args, field.name) for field in fields(Shape)}
    return replace(PRESETS[args.preset], **{name: value for name, value in given.items() if value is not None})


# Tokenizer


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


@dataclass
class Vocabulary:
    """Bytes, one merge (two spaces), fillers `[id]` that only the model writes, and special tokens.

    The text of a filler names its id, so the tokens of an answer can be read off its text.
    """

    tokens: list[str]
    special: dict[str, int]
    fillers: range
    # Tokens from here up to the size of the embedding have no text.
    end: int

    merges = [("Ġ", "Ġ")]

    @classmethod
    def of(cls, vocab: int) -> "Vocabulary":
        tokens = [*byte_alphabet(), "ĠĠ"]
        if vocab >= LLADA_TOKENS:
            special, fillers, end = dict(SPECIALS), range(len(tokens), LLADA_FIRST_RESERVED), LLADA_TOKENS
            names = {id: token for token, id in SPECIALS.items()}
            for id in range(LLADA_FIRST_RESERVED, LLADA_TOKENS):
                special.setdefault(names.get(id, f"<|reserved_token_{id - LLADA_FIRST_RESERVED}|>"), id)
        else:
            first = vocab - len(SPECIALS)
            special, fillers, end = dict(zip(SPECIALS, range(first, vocab))), range(len(tokens), first), vocab
        tokens += [f"[{id}]" for id in fillers]
        tokens += sorted(special, key=special.__getitem__)
        return cls(tokens, dict(sorted(special.items(), key=lambda item: item[1])), fillers, end)

    def tokenizer_json(self) -> dict:
        bos = "<|startoftext|>"
        added = [
            {"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for token, id in self.special.items()
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    {"SpecialToken": {"id": bos, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {bos: {"id": bos, "ids": [self.special[bos]], "tokens": [bos]}},
            },
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: id for id, token in enumerate(self.tokens) if token not in self.special},
                "merges": [" ".join(pair) for pair in self.merges],
            },
        }


# Weights


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Upper halves of finite f32 values, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class Recipe:
    """What makes random weights behave.

    Masks are embedded as hardly more than the constant channels and have values near zero, so what a masked position
    holds is what attention fetched from elsewhere: it depends on the distances to the tokens around, and positions
    differ. The scale of the output matrix is set by the number of tokens such that confidences spread over (0, 1).
    Only fillers are proposed; bytes, special tokens and the mask have a bias against them.
    """

    constant_power: float = 0.1
    mask_scale: float = 0.1
    qk_scale: float = 2.0
    residual_scale: float = 1.5
    output_scale: float = 1.3
    bias: float = -60.0


class Weights:
    """Tensors of the model, in chunks of rows, as bits of bf16.

    A tensor is cut from one pool of normal values at random offsets: writing is then bound by the disk. No two chunks
    of a tensor start at the same column of the pool, so no two rows of a tensor are equal.
    """

    def __init__(self, shape: Shape, seed: int, recipe: Recipe = Recipe()):
        self.shape, self.seed, self.recipe = shape, seed, recipe
        self.vocabulary = Vocabulary.of(shape.vocab)
        self.pool = np.random.Generator(np.random.SFC64(seed)).standard_normal(POOL_LEN, dtype=np.float32)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        s = self.shape
        kv = s.kv_heads * s.head_dim
        block = {
            "attn_norm": (s.hidden,),
            "ff_norm": (s.hidden,),
            "q_proj": (s.hidden, s.hidden),
            "k_proj": (kv, s.hidden),
            "v_proj": (kv, s.hidden),
            "attn_out": (s.hidden, s.hidden),
            "ff_proj": (s.ffn, s.hidden),
            "up_proj": (s.ffn, s.hidden),
            "ff_out": (s.hidden, s.ffn),
        }
        prefix = "model.transformer"
        tensors = {f"{prefix}.wte.weight": (s.vocab, s.hidden)}
        for layer in range(s.layers):
            tensors |= {f"{prefix}.blocks.{layer}.{name}.weight": dims for name, dims in block.items()}
        return tensors | {f"{prefix}.ln_f.weight": (s.hidden,), f"{prefix}.ff_out.weight": (s.vocab, s.hidden)}

    @functools.lru_cache(maxsize=16)
    def scaled_pool(self, scale: float) -> np.ndarray:
        return to_bf16(self.pool * np.float32(scale))

    def scale(self, kind: str) -> float:
        s, r = self.shape, self.recipe
        added = r.residual_scale / math.sqrt(s.layers)
        return {
            "wte": 1.0,
            "q_proj": r.qk_scale / math.sqrt(s.hidden),
            "k_proj": r.qk_scale / math.sqrt(s.hidden),
            "v_proj": 1 / math.sqrt(s.hidden),
            "attn_out": 2 * added / math.sqrt(s.hidden),
            "ff_proj": 1 / math.sqrt(s.hidden),
            "up_proj": 1 / math.sqrt(s.hidden),
            "ff_out": added / math.sqrt(s.ffn),
            "head": r.output_scale * math.sqrt(2 * math.log(s.vocab)) / math.sqrt(s.hidden),
        }[kind]

    def chunks(self, name: str, dims: tuple[int, ...]):
        """Consecutive rows of a tensor, whole heads at a time."""
        kind = name.split(".")[-2]
        if len(dims) == 1:
            yield to_bf16(np.ones(dims))
            return
        if name == "model.transformer.ff_out.weight":
            kind = "head"
        rows, columns = dims
        chunk_rows = max(1, CHUNK_LEN // columns // self.shape.head_dim) * self.shape.head_dim
        pool = self.scaled_pool(self.scale(kind))
        name_hash = zlib.crc32(name.encode())
        rng = np.random.default_rng([self.seed, name_hash])
        for index, start in enumerate(range(0, rows, chunk_rows)):
            count = min(chunk_rows, rows - start)
            residue = (name_hash + index) % columns
            offset = residue + columns * int(rng.integers((POOL_LEN - residue) // columns - count + 1))
            chunk = pool[offset : offset + count * columns].reshape(count, columns).copy()
            self.condition(kind, chunk, start)
            yield chunk

    def condition(self, kind: str, chunk: np.ndarray, start: int) -> None:
        s, r = self.shape, self.recipe
        constant = math.sqrt(r.constant_power * s.hidden / CONSTANT_CHANNELS)
        end = start + len(chunk)
        match kind:
            case "wte":
                chunk[:, :CONSTANT_CHANNELS] = to_bf16(np.float32([constant]))
                mask = self.vocabulary.special["<|mdm_mask|>"]
                if start <= mask < end:
                    row = chunk[mask - start, CONSTANT_CHANNELS:]
                    row[:] = to_bf16(from_bf16(row) * r.mask_scale)
            case "v_proj":
                chunk[:, :CONSTANT_CHANNELS] = 0
            case "attn_out" | "ff_out" if start < CONSTANT_CHANNELS:
                chunk[: CONSTANT_CHANNELS - start] = 0
            case "head":
                chunk[:, :CONSTANT_CHANNELS] = to_bf16(np.float32([r.bias / CONSTANT_CHANNELS / constant]))
                fillers = self.vocabulary.fillers
                first, last = max(start, fillers.start), min(end, fillers.stop)
                if first < last:
                    chunk[first - start : last - start, :CONSTANT_CHANNELS] = 0


# Files


def config_json(shape: Shape, vocabulary: Vocabulary) -> dict:
    special = vocabulary.special
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": shape.hidden,
        "embedding_dropout": 0.0,
        "embedding_size": shape.vocab,
        "eos_token_id": special["<|endoftext|>"],
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": special["<|mdm_mask|>"],
        "max_sequence_length": shape.context,
        "mlp_hidden_size": shape.ffn,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": shape.heads,
        "n_kv_heads": shape.kv_heads,
        "n_layers": shape.layers,
        "pad_token_id": special["<|endoftext|>"],
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": ROPE_THETA,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": shape.vocab,
        "weight_tying": False,
    }


def shards_of(tensors: dict[str, tuple[int, ...]], num_shards: int) -> list[dict[str, tuple[int, ...]]]:
    total = sum(map(math.prod, tensors.values()))
    shards, written = [{} for _ in range(num_shards)], 0
    for name, dims in tensors.items():
        shards[min(num_shards - 1, written * num_shards // total)][name] = dims
        written += math.prod(dims)
    return [shard for shard in shards if shard]


def write_shard(path: Path, weights: Weights, tensors: dict[str, tuple[int, ...]]) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors.items():
        size = 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims in tensors.items():
            for chunk in weights.chunks(name, dims):
                chunk.tofile(file)
        # Dirty pages of many gigabytes stall everything else on the machine.
        os.fsync(file.fileno())


def write_checkpoint(folder: Path, shape: Shape, seed: int, num_shards: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = Weights(shape, seed)
    vocabulary = weights.vocabulary
    special = vocabulary.special

    def save(name: str, value: dict, indent: int | None = 2) -> None:
        (folder / name).write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")

    save("config.json", config_json(shape, vocabulary))
    save("generation_config.json", {
        "_from_model_config": True,
        "bos_token_id": special["<|startoftext|>"],
        "eos_token_id": special["<|endoftext|>"],
        "pad_token_id": special["<|endoftext|>"],
        "transformers_version": "4.46.3",
    })
    save("tokenizer.json", vocabulary.tokenizer_json(), indent=None)
    save("tokenizer_config.json", {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<|startoftext|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mdm_mask|>",
        "model_max_length": shape.context,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
    save("special_tokens_map.json", {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mdm_mask|>",
        "pad_token": "<|endoftext|>",
    })
    tensors = weights.tensors()
    shards = shards_of(tensors, num_shards)
    weight_map = {}
    for index, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        print(f"{name}: {len(shard)} tensors, {2 * sum(map(math.prod, shard.values())) / 1e9:.2f} GB", flush=True)
        write_shard(folder / name, weights, shard)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = 2 * sum(map(math.prod, tensors.values()))
        save("model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser, "8b")
    parser.add_argument("--shards", type=int, help="files to spread the tensors over (default: one for 3 GB)")
    args = parser.parse_args()
    shape = shape_of(args)
    print(asdict(shape))
    size = 2 * sum(map(math.prod, Weights.tensors(argparse.Namespace(shape=shape)).values()))
    write_checkpoint(args.out, shape, args.seed, args.shards or math.ceil(size / 3e9))


if __name__ == "__main__":
    main()
