"""Makes the tiny random checkpoints in this folder and the logits that Hugging Face transformers computes for them.

    python make_goldens.py [CASE ...]

Without arguments it makes every case that the installed transformers major version is responsible for (see `CASES`):
version 4 writes `rope_theta` and `rope_scaling`, version 5 writes `rope_parameters`, and loaders must read both.
"""

import argparse
import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
SEED = 20240607
PROMPT_LENS = (1, 7, 33)
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


@dataclass
class Case:
    """One checkpoint: its family, its config, and how it is stored."""

    family: str
    config: dict
    transformers_major: int = 4
    dtype: torch.dtype = torch.float32
    shard_size: str = "5GB"
    # Each entry is a way to get this case wrong; the script insists that the logits would show it.
    spoilers: tuple = field(default=("no_rope", "no_norm_weights", "wrong_kv_groups"))


def rope(scaling=None, theta=10000.0, major=4):
    """The rope part of a config in the spelling of the given transformers major version."""
    if major >= 5:
        return {"rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})}}
    return {"rope_theta": theta, **({"rope_scaling": scaling} if scaling else {})}


# `original_max_position_embeddings` is small so that the scaling bends frequencies within 33 tokens.
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

CASES = {
    "llama-gqa-tied": Case(
        "llama",
        dict(hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=128, tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, **rope()),
    ),
    "llama-untied-linear-rope": Case(
        "llama",
        dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1,
             vocab_size=96, tie_word_embeddings=False, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2,
             **rope({"rope_type": "linear", "factor": 4.0}, theta=5000.0)),
        shard_size="130KB",
        spoilers=("no_rope", "no_norm_weights", "no_rope_scaling"),
    ),
    "llama3-rope": Case(
        "llama",
        dict(hidden_size=64, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=112, tie_word_embeddings=False, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=[2, 5],
             **rope(LLAMA3_SCALING, major=5)),
        transformers_major=5,
        spoilers=("no_rope", "no_norm_weights", "wrong_kv_groups", "no_rope_scaling"),
    ),
    "llama3-rope-tied": Case(
        "llama",
        dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=104, tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
             **rope({**LLAMA3_SCALING, "factor": 32.0})),
        dtype=torch.float16,
        spoilers=("no_rope", "no_norm_weights", "wrong_kv_groups", "no_rope_scaling"),
    ),
    "llama-mha-bias": Case(
        "llama",
        dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
             vocab_size=120, tie_word_embeddings=False, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True,
             bos_token_id=1, eos_token_id=2, **rope()),
        dtype=torch.bfloat16,
        spoilers=("no_rope", "no_norm_weights", "no_biases"),
    ),
    "qwen2": Case(
        "qwen2",
        dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=144, tie_word_embeddings=True, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=2,
             use_sliding_window=False, **rope(theta=1000000.0)),
        spoilers=("no_rope", "no_norm_weights", "no_biases", "wrong_kv_groups"),
    ),
    "qwen3": Case(
        "qwen3",
        dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=24, vocab_size=160, tie_word_embeddings=True, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=2,
             use_sliding_window=False, **rope(theta=1000000.0)),
        spoilers=("no_rope", "no_norm_weights", "wrong_kv_groups", "no_head_norms"),
    ),
    "qwen3-untied": Case(
        "qwen3",
        dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
             head_dim=32, vocab_size=128, tie_word_embeddings=False, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=2,
             use_sliding_window=False, **rope(theta=1000000.0, major=5)),
        transformers_major=5,
        spoilers=("no_rope", "no_norm_weights", "no_head_norms"),
    ),
}


def randomise(model, generator):
    """Weights wide enough that logits spread, and no norm or bias left at a neutral value."""
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(0.25 * noise)


def build(case, config=None):
    config_type, model_type = FAMILIES[case.family]
    config = config or config_type(**case.config, max_position_embeddings=256)
    config._attn_implementation = "eager"
    return model_type(config).eval()


def logits_of(model, prompts):
    """Full logits `[len, vocab]` of each prompt, in the model's dtype, one prompt per pass and no KV cache."""
    with torch.no_grad():
        return [model(torch.tensor([ids]), use_cache=False).logits[0] for ids in prompts]


def spoiled_model(kind, case, model):
    """The same weights, read the way a faulty loader or forward pass would."""
    config = copy.deepcopy(model.config)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if kind == "no_rope_scaling":
        # A copy of the case's own arguments, so that nothing derived from the scaling survives in the config.
        theta = case.config.get("rope_theta") or case.config["rope_parameters"]["rope_theta"]
        plain = {k: v for k, v in case.config.items() if not k.startswith("rope")}
        plain |= rope(theta=theta, major=case.transformers_major)
        config = FAMILIES[case.family][0](**plain, max_position_embeddings=256)
    for name, value in weights.items():
        is_head_norm = "q_norm" in name or "k_norm" in name
        if kind == "no_norm_weights" and "norm" in name and not is_head_norm:
            value.fill_(1.0)
        if kind == "no_head_norms" and is_head_norm:
            value.fill_(1.0)
        if kind == "no_biases" and name.endswith("bias"):
            value.zero_()
        if kind == "wrong_kv_groups" and ("k_proj" in name or "v_proj" in name):
            heads = value.reshape(-1, head_dim, *value.shape[1:])
            value.copy_(heads.flip(0).reshape(value.shape))
    spoiled = build(case, config)
    spoiled.load_state_dict(weights)
    if kind == "no_rope":
        spoiled.model.rotary_emb.inv_freq.zero_()
    return spoiled


def make(name, case):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    generator = torch.Generator().manual_seed(SEED)
    model = build(case)
    randomise(model, generator)
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # The goldens belong to the stored weights, read back in f32 as any user would: casting the model itself back and
    # forth would round the rotary frequencies too, which are not stored.
    model = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    vocab_size = case.config["vocab_size"]
    prompts = [torch.randint(0, vocab_size, (n,), generator=generator).tolist() for n in PROMPT_LENS]
    logits = logits_of(model, prompts)

    for kind in case.spoilers:
        spoiled = logits_of(spoiled_model(kind, case, model), prompts)
        difference = max((a - b).abs().max().item() for a, b in zip(logits, spoiled))
        assert difference > 0.5, f"{name}: {kind} would pass unseen, logits move by {difference} only"

    # The same model with its matrix products in f64 (transformers keeps norms and softmax in f32) shows how far
    # rounding alone moves a logit: the floor of any tolerance.
    exact = copy.deepcopy(model).double()
    exact.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.double()
    noise = max((a - b).abs().max().item() for a, b in zip(logits, logits_of(exact, prompts)))
    save_file({f"prompt_{i}": rows.contiguous() for i, rows in enumerate(logits)}, folder / "logits.safetensors")
    record = {
        "prompts": [{"logits": f"prompt_{i}", "ids": ids} for i, ids in enumerate(prompts)],
        "f32_rounding_max_abs": noise,
        "logit_std": torch.cat([rows.flatten() for rows in logits]).std().item(),
        "made_with": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "seed": SEED},
    }
    (folder / "prompts.json").write_text(json.dumps(record, indent=1) + "\n")
    shapes = {key: tuple(value.shape) for key, value in load_file(folder / "logits.safetensors").items()}
    print(f"{name}: {shapes} std {record['logit_std']:.2f} rounding {noise:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}")
    names = parser.parse_args().cases
    major = int(transformers.__version__.split(".")[0])
    torch.set_num_threads(1)
    for name in names or [n for n, case in CASES.items() if case.transformers_major == major]:
        case = CASES[name]
        assert case.transformers_major == major, f"{name} needs transformers {case.transformers_major}, this is {major}"
        make(name, case)


if __name__ == "__main__":
    main()
