"""Writes a LLaDA model with random weights as one GGUF file.

    python llada_gguf.py --preset 300m --type q8_0 --out llada-300m-q8_0.gguf

Needs numpy and gguf. The model is the one that `llada_checkpoint.py` writes for the same sizes and seed: weights are
rounded to bf16 there, and from bf16 to the type here. Metadata and layout are those of llama.cpp's converter.
"""

import argparse
import math
from dataclasses import asdict
from pathlib import Path

import gguf
import numpy as np

from llada_checkpoint import (
    CHAT_TEMPLATE, RMS_NORM_EPS, ROPE_THETA, Shape, Vocabulary, Weights, add_shape_options, from_bf16, shape_of,
)

TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}

# llama-diffusion-cli applies the template of the file to every prompt and cannot be told not to. This one hands the
# prompt through.
RAW_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TEMPLATES = {"raw": RAW_TEMPLATE, "llada": CHAT_TEMPLATE.replace("bos_token + content", "content")}

NAMES = {
    "wte": "token_embd",
    "ln_f": "output_norm",
    "attn_norm": "attn_norm",
    "ff_norm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "attn_out": "attn_output",
    "ff_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "ff_out": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name == "model.transformer.ff_out.weight":
        return "output.weight"
    parts = name.split(".")
    prefix = f"blk.{parts[3]}." if parts[2] == "blocks" else ""
    return f"{prefix}{NAMES[parts[-2]]}.weight"


def interleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of whole heads in the order of RoPE on neighbouring pairs, from that of RoPE on halves."""
    return rows.reshape(-1, 2, head_dim // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def metadata(writer: gguf.GGUFWriter, shape: Shape, vocabulary: Vocabulary, type_name: str, template: str) -> None:
    kinds = gguf.TokenType
    padding = range(vocabulary.end, shape.vocab)
    tokens = vocabulary.tokens + [f"[PAD{id}]" for id in padding]
    types = [kinds.CONTROL if token in vocabulary.special else kinds.NORMAL for token in vocabulary.tokens]
    types += [kinds.UNUSED] * len(padding)
    special = vocabulary.special

    writer.add_name("LLaDA with random weights")
    writer.add_file_type(TYPES[type_name][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(RMS_NORM_EPS)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_causal_attention(False)
    writer.add_diffusion_shift_logits(False)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(special["<|startoftext|>"])
    writer.add_eos_token_id(special["<|endoftext|>"])
    writer.add_eot_token_id(special["<|eot_id|>"])
    writer.add_pad_token_id(special["<|endoftext|>"])
    writer.add_mask_token_id(special["<|mdm_mask|>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATES[template])


def write_gguf(path: Path, shape: Shape, seed: int, type_name: str, template: str) -> None:
    weights = Weights(shape, seed)
    writer = gguf.GGUFWriter(path, "llada")
    metadata(writer, shape, weights.vocabulary, type_name, template)
    tensors = weights.tensors()
    # llama.cpp wants the norms in f32.
    types = {name: TYPES[type_name][0] if len(dims) == 2 else TYPES["f32"][0] for name, dims in tensors.items()}
    sizes = {}
    for name, dims in tensors.items():
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[types[name]]
        assert dims[-1] % block_len == 0, f"{name}: {dims[-1]} columns are not whole blocks of {block_len}"
        sizes[name] = math.prod(dims) // block_len * block_bytes
        writer.add_tensor_info(gguf_name(name), dims, np.dtype(np.float32), sizes[name], types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for name, dims in tensors.items():
        for chunk in weights.chunks(name, dims):
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                chunk = interleave(chunk, shape.head_dim)
            file.write(gguf.quants.quantize(from_bf16(chunk), types[name]).tobytes())
        writer.write_padding(file, sizes[name])
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser, "tiny")
    parser.add_argument("--type", choices=TYPES, default="f32", help="of the matrices (default f32)")
    parser.add_argument("--template", choices=TEMPLATES, default="raw", help="chat template (default raw: none)")
    args = parser.parse_args()
    shape = shape_of(args)
    print(asdict(shape))
    write_gguf(args.out, shape, args.seed, args.type, args.template)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
