"""Greedy transcripts and tokenizer cases of SmolLM2-135M-Instruct, from a GGUF file and Hugging Face transformers.

    python make_transcripts.py SmolLM2-135M-Instruct.Q4_1.gguf

The weights are dequantised to f32 and run in f32 with eager attention, one prompt at a time.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
NUM_TOKENS = 64

CHATS = {
    "fact": "What is the capital of France, and which river flows through it?",
    "code": "Write a Python function that returns the n-th Fibonacci number.",
    "list": "Give me a list of five fruits that are rich in vitamin C.",
    "translation": "Translate this sentence into Spanish: \"The weather is nice today.\"",
    "maths": "A box holds 12 eggs. How many eggs are in 7 boxes? Show your working.",
    "story": "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "explain": "Explain to a ten-year-old why the sky is blue.",
    "email": "Write a polite email to my landlord asking him to repair the heating.",
    "json": "Return a JSON object with the keys name, age and city for a person called Zoë from Zürich who is 34.",
    "unicode": "What do the emoji 🚀 and 🌍 mean?",
}
TEXTS = {
    "plain": "The quick brown fox jumps over the lazy dog.",
    "empty": "",
    "leading_spaces": "   three spaces before, two after  ",
    "newlines_and_tabs": "first\n\nthird\r\n\tindented\n    four spaces\n",
    "digits": "In 2024, 1234567 of 89,000.50 units; 3.14159",
    "contractions": "I'll say it's what they've done, isn't it? DON'T",
    "accents": "Café déjà-vu, naïve Ångström, Straße, ¿qué?",
    "scripts": "Привет мир 你好世界 こんにちは 안녕하세요 مرحبا नमस्ते",
    "emoji": "🚀🌍👩‍👩‍👧‍👦 ok👍🏽",
    "code": "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * 2).collect();\n}",
    "special_tokens": "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "odd_characters": "a\u00a0b\u200bc\ufeffd\u2028e \u0301f \x00g ½ ² Ⅷ ①",
}


def load_model(reader):
    """A LlamaForCausalLM with the file's weights in f32."""
    field = lambda key: reader.fields[key].contents()
    num_heads, num_kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=field("llama.vocab_size"), hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"), num_hidden_layers=field("llama.block_count"),
        num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"), rope_theta=field("llama.rope.freq_base"),
        tie_word_embeddings=True, attn_implementation="eager",
    )

    def hf_name(name):
        if not name.startswith("blk."):
            return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
        _, layer, part, _ = name.split(".")
        places = {
            "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        }
        return f"model.layers.{layer}.{places[part]}.weight"

    def split_halves(weight, heads):
        """GGUF interleaves the rows of q and k so that rotated pairs are neighbours; transformers wants two halves."""
        rows, cols = weight.shape
        return weight.reshape(heads, rows // heads // 2, 2, cols).transpose(1, 2).reshape(rows, cols)

    weights = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if tensor.name.endswith("attn_q.weight"):
            weight = split_halves(weight, num_heads)
        if tensor.name.endswith("attn_k.weight"):
            weight = split_halves(weight, num_kv_heads)
        weights[hf_name(tensor.name)] = weight
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def load_tokenizer(reader):
    """The file's byte-level BPE with the `smollm` splitting: digits one by one, then the GPT-2 pattern."""
    field = lambda key: reader.fields[f"tokenizer.ggml.{key}"].contents()
    assert (field("model"), field("pre")) == ("gpt2", "smollm")
    tokens, types = field("tokens"), field("token_type")
    tokenizer = Tokenizer(models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(pair.split(" ")) for pair in field("merges")]
    ))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    # Type 3 is "control" in GGUF.
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer, transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=tokens[field("bos_token_id")], eos_token=tokens[field("eos_token_id")]
    )


def greedy(model, prompt_ids):
    """`NUM_TOKENS` greedy tokens, end tokens not heeded, with the top-2 margin of every choice."""
    output_ids, margins, first_top5 = [], [], None
    inputs, kv_cache = torch.tensor([prompt_ids]), None
    for _ in range(NUM_TOKENS):
        with torch.no_grad():
            result = model(inputs, past_key_values=kv_cache, use_cache=True)
        kv_cache = result.past_key_values
        top = result.logits[0, -1].topk(5)
        first_top5 = first_top5 or [[i, round(v, 4)] for i, v in zip(top.indices.tolist(), top.values.tolist())]
        output_ids.append(top.indices[0].item())
        margins.append(round((top.values[0] - top.values[1]).item(), 5))
        inputs = top.indices[:1].reshape(1, 1)
    return output_ids, margins, first_top5


def main():
    path = Path(sys.argv[1])
    torch.set_num_threads(2)
    reader = GGUFReader(path)
    model, (raw_tokenizer, tokenizer) = load_model(reader), load_tokenizer(reader)
    tokenizer.chat_template = reader.fields["tokenizer.chat_template"].contents()
    transcripts = []
    for name, message in CHATS.items():
        chat = [{"role": "user", "content": message}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt_ids = raw_tokenizer.encode(prompt, add_special_tokens=False).ids
        output_ids, margins, first_top5 = greedy(model, prompt_ids)
        # Token 2 ends a turn; the text is what a client would see.
        visible = output_ids[: output_ids.index(2)] if 2 in output_ids else output_ids
        transcripts.append({
            "name": name, "message": message, "prompt": prompt, "prompt_ids": prompt_ids, "output_ids": output_ids,
            "margins": margins, "first_top5": first_top5, "text": raw_tokenizer.decode(visible),
        })
        print(f"{name}: smallest margin {min(margins)}\n{transcripts[-1]['text']}\n", flush=True)
    encodings = []
    for name, text in TEXTS.items():
        ids = raw_tokenizer.encode(text, add_special_tokens=False).ids
        assert raw_tokenizer.decode(ids, skip_special_tokens=False) == text, name
        encodings.append({"name": name, "text": text, "ids": ids})
    record = {
        "file": {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "made_with": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
        "transcripts": transcripts,
        "encodings": encodings,
    }
    (HERE / "transcripts.json").write_text(json.dumps(record, ensure_ascii=False, indent=None).replace('{"name"', '\n{"name"') + "\n")


if __name__ == "__main__":
    main()
