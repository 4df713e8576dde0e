"""Checks the stored logits against Hugging Face transformers, and the GGUF files against the folders.

    pip install transformers==4.57.6
    python check_reference.py

The families' own modelling code is not in transformers, but each is one of its autoregressive models with another
attention mask and other names. So each checkpoint is renamed, loaded into that model, and run with the visibility as an
explicit mask. The GGUF files are read back, and run with rotation of neighbouring pairs where their rows are permuted.
"""

import json

import torch
import transformers
from gguf import GGUFReader
from safetensors.torch import load_file

from make_diffusion_goldens import CASES, GGUF_NAMES, HERE
from reference import HF, Model, blocks, full

TOLERANCE = 2e-4


def as_transformers(case, model):
    """The model class of transformers with this arithmetic, its config, and the weights under its names."""
    s = model.shape
    config = dict(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.mlp, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=s.head_dim, rms_norm_eps=s.eps,
        rope_theta=s.theta, tie_word_embeddings=s.tied, max_position_embeddings=256, attn_implementation="eager")
    weights = {}
    for name in s.names:
        for i in range(s.layers):
            for e in range(s.router.experts if s.router else 1):
                source = s.names[name].format(i=i, e=e)
                if source not in model.tensors:
                    continue
                if name == "qkv":
                    sizes = [n * s.head_dim for n in (s.heads, s.kv_heads, s.kv_heads)]
                    parts = zip("qkv", model.tensors[source].split(sizes))
                    weights |= {HF[part].format(i=i): value for part, value in parts}
                else:
                    target = HF[name].format(i=i, e=e)
                    weights[target.replace("gate.expert_bias", "gate.e_score_correction_bias")] = model.tensors[source]
    if s.tied:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    if s.router is None:
        kind = {(False, False): "Llama", (True, False): "Qwen2", (False, True): "Qwen3"}[s.biases, s.head_norms]
    elif s.router.sigmoid:
        kind = "Glm4Moe"
        config |= dict(
            n_routed_experts=s.router.experts, num_experts_per_tok=s.router.chosen, n_shared_experts=1,
            moe_intermediate_size=s.expert_mlp, first_k_dense_replace=s.dense_layers, n_group=s.router.groups,
            topk_group=s.router.kept_groups, norm_topk_prob=s.router.renormalise, routed_scaling_factor=s.router.scale,
            partial_rotary_factor=s.rotary_dim / s.head_dim, use_qk_norm=True, attention_bias=False)
        # That router gives experts of dropped groups the score 0, not minus infinity: the same while all others are above.
        for name in weights:
            if name.endswith("correction_bias"):
                weights[name] = weights[name] + 2.0
    else:
        kind = "Qwen3Moe"
        config |= dict(
            num_experts=s.router.experts, num_experts_per_tok=s.router.chosen, moe_intermediate_size=s.expert_mlp,
            norm_topk_prob=s.router.renormalise, decoder_sparse_step=1, mlp_only_layers=[])
    made = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**config)).eval()
    missing, unexpected = made.load_state_dict(weights, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    return kind, made


def from_gguf(path, arch, model):
    """The weights of a GGUF file under the names of the checkpoint."""
    reader = GGUFReader(path)
    stored = {t.name: torch.tensor(t.data.copy()).reshape(*reversed(t.shape.tolist())) for t in reader.tensors}
    s, tensors = model.shape, {}
    for name, source in GGUF_NAMES.items():
        for i in range(s.layers):
            if source.format(i=i) in stored:
                tensors[s.names[name].format(i=i)] = stored[source.format(i=i)]
    for part in ("gate", "up", "down") if s.router else ():
        for i in range(s.layers):
            for e, expert in enumerate(stored[f"blk.{i}.ffn_{part}_exps.weight"]):
                tensors[s.names[f"expert_{part}"].format(i=i, e=e)] = expert
    made = Model(s, tensors)
    made.shape.interleaved_rope = arch == "llada"
    return made


def main():
    torch.set_num_threads(1)
    for name, case in CASES.items():
        golden = json.loads((HERE / name / "golden.json").read_text())
        expected = load_file(HERE / name / "logits.safetensors")
        model = Model.load(HERE / name, case.attention, case.block)
        others = [as_transformers(case, model)]
        if golden["gguf"]:
            made = from_gguf(HERE / golden["gguf"], case.gguf, Model.load(HERE / name))
            others.append((golden["gguf"], made))
        for kind, other in others:
            worst = 0.0
            for entry in golden["logits"]:
                length = len(entry["ids"])
                see = full(length) if entry["origin"] is None else blocks(length, golden["block_length"], entry["origin"])
                if isinstance(other, Model):
                    rows = other.logits(entry["ids"], see)
                else:
                    mask = torch.zeros(1, 1, length, length).masked_fill(~see, torch.finfo(torch.float32).min)
                    with torch.no_grad():
                        rows = other(torch.tensor([entry["ids"]]), attention_mask=mask, use_cache=False).logits[0]
                worst = max(worst, (rows - expected[entry["logits"]]).abs().max().item())
            assert worst < TOLERANCE, f"{name}: {kind} differs by {worst}"
            print(f"{name}: {kind} agrees within {worst:.1e}")


if __name__ == "__main__":
    main()
