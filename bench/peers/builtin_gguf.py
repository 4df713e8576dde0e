"""Writes a built-in model as one GGUF file that llama.cpp reads: weights, tokenizer and chat template.

    python builtin_gguf.py --model models/builtin/leapfrog-ar --type f16 --out leapfrog-ar-f16.gguf

Needs numpy and gguf. Takes the Llama shape (`leapfrog-ar`, `leapfrog-cllm`, for `llama-server`) and the Dream shape
(`leapfrog-diffusion`, for `llama-diffusion-cli`). The weights are stored as f16, so `--type f16` loses nothing.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}

# Architecture of llama.cpp by that of the checkpoint. llama.cpp rotates neighbouring pairs in `llama` and halves in `dream`.
ARCHITECTURES = {"LlamaForCausalLM": "llama", "DreamModel": "dream"}

# Digits one by one, then the pattern of GPT-2: what the tokenizers of the built-in models do.
PRE_TOKENIZER = "smollm"
DIGITS_THEN_BYTES = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
WHOLE_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}

# llama-diffusion-cli applies the template of the file to every prompt and cannot be told not to. This one hands the
# prompt through.
RAW_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def gguf_name(name: str) -> str:
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    parts = name.split(".")
    return f"blk.{parts[2]}.{NAMES[parts[-2]]}.{parts[-1]}"


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, as f32."""
    data = path.read_bytes()
    header_len = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_len])
    header.pop("__metadata__", None)
    types = {"F16": np.float16, "F32": np.float32}
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + header_len + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[start:end], types[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"]).astype(np.float32)
    return tensors


def interleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of whole heads in the order of RoPE on neighbouring pairs, from that of RoPE on halves."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tokenizer_metadata(writer: gguf.GGUFWriter, folder: Path, config: dict, template: str) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["pre_tokenizer"]["pretokenizers"] == DIGITS_THEN_BYTES, "llama.cpp has no such pre-tokenizer"
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    by_id = {id: token for token, id in tokenizer["model"]["vocab"].items()} | added
    ids = range(config["vocab_size"])
    assert sorted(by_id) == list(ids), "the vocabulary has holes"
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([by_id[id] for id in ids])
    writer.add_token_types([kinds.CONTROL if id in added else kinds.NORMAL for id in ids])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    if "mask_token_id" in config:
        writer.add_mask_token_id(config["mask_token_id"])
    # The chat template writes it.
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


def write_gguf(folder: Path, type_name: str, raw_template: bool, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (name,) = config["architectures"]
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise SystemExit(f"{folder}: llama.cpp has no architecture {name}; known are {', '.join(ARCHITECTURES)}")
    assert config["tie_word_embeddings"], "only tied embeddings"
    head_dim = config["head_dim"]
    template = RAW_TEMPLATE if raw_template else json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]

    writer = gguf.GGUFWriter(out, architecture)
    writer.add_name(folder.resolve().name)
    writer.add_file_type(TYPES[type_name][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    if architecture == "dream":
        writer.add_causal_attention(False)
        writer.add_diffusion_shift_logits(True)
    tokenizer_metadata(writer, folder, config, template)
    for name, values in read_tensors(folder / "model.safetensors").items():
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = interleave(values, head_dim)
        # llama.cpp wants norms and biases in f32.
        kind = TYPES[type_name][0] if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--type", choices=TYPES, default="f16", help="of the matrices (default f16: as trained)")
    parser.add_argument("--raw-template", action="store_true", help="a chat template that hands the prompt through")
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file")
    args = parser.parse_args()
    write_gguf(args.model, args.type, args.raw_template, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
