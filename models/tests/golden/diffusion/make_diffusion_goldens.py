"""Makes the tiny random diffusion checkpoints in this folder, their logits, and what reference decoders do with them.

    python make_diffusion_goldens.py [CASE ...]

See README.md for what each case pins down and for the format of `golden.json`.
"""

import argparse
import copy
import importlib.metadata
import json
import shutil
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from decoders import Judge, Plan, block_borders, decode
from reference import Model, blocks, causal, full, read_shape

HERE = Path(__file__).resolve().parent
SEED = 20251008
LOGIT_STD = 5.0
# A decision of a golden run is at least this far from going the other way.
THRESHOLD_GAP, RANK_GAP, TOKEN_GAP, ROUTER_GAP = 2e-4, 1e-4, 2e-3, 2e-5


@dataclass
class Case:
    """One checkpoint: its config, how it is stored, and how it can be got wrong."""

    config: dict
    mask_id: int
    plans: list  # (name, prompt length, plan)
    attention: str | None = None
    block: int | None = None
    dtype: torch.dtype = torch.float32
    shards: int = 1
    extra_head: bool = False  # Tied, and a copy of the embeddings is stored as the output matrix.
    gguf: str | None = None
    spoilers: tuple = field(default=())


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def tensor_shapes(shape):
    """Name and size of every tensor of a checkpoint."""
    s = shape
    sizes = {"embed": (s.vocab, s.hidden), "norm": (s.hidden,)}
    if not s.tied:
        sizes["head"] = (s.vocab, s.hidden)
    found = {s.names[name]: size for name, size in sizes.items()}

    def mlp(prefix, width):
        return {f"{prefix}gate": (width, s.hidden), f"{prefix}up": (width, s.hidden), f"{prefix}down": (s.hidden, width)}

    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    for i in range(s.layers):
        sizes = {"attn_norm": (s.hidden,), "mlp_norm": (s.hidden,), "o": (s.hidden, q)}
        if "qkv" in s.names:
            sizes["qkv"] = (q + 2 * kv, s.hidden)
        else:
            sizes |= {"q": (q, s.hidden), "k": (kv, s.hidden), "v": (kv, s.hidden)}
        if s.biases:
            sizes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
        if s.head_norms:
            sizes |= {"q_norm": (s.head_dim,), "k_norm": (s.head_dim,)}
        if s.router is None or i < s.dense_layers:
            sizes |= mlp("", s.mlp)
        else:
            sizes["router"] = (s.router.experts, s.hidden)
            if s.router.sigmoid:
                sizes["expert_bias"] = (s.router.experts,)
            if s.shared_mlp:
                sizes |= mlp("shared_", s.shared_mlp)
            for e in range(s.router.experts):
                found |= {s.names[name].format(i=i, e=e): size for name, size in mlp("expert_", s.expert_mlp).items()}
        found |= {s.names[name].format(i=i): size for name, size in sizes.items()}
    return found


def random_tensors(case, shape, generator):
    """Weights wide enough that rows differ, no norm or bias at a neutral value, logits of spread `LOGIT_STD`, and a mask
    token that is often the likeliest, so that a decoder must exclude it."""
    tensors = {}
    for name, size in sorted(tensor_shapes(shape).items()):
        noise = torch.randn(size, generator=generator)
        if "norm" in name or "ln_f" in name:
            tensors[name] = 1.0 + 0.3 * noise
        elif "expert_bias" in name:
            tensors[name] = 0.3 * noise
        elif name.endswith("bias"):
            tensors[name] = 0.5 * noise
        else:
            tensors[name] = 0.25 * noise
    head = shape.names["embed" if shape.tied else "head"]
    tensors[head][case.mask_id] *= 1.8
    ids = torch.randint(0, shape.vocab, (64,), generator=generator).tolist()
    tensors[shape.names["norm"]] *= LOGIT_STD / Model(shape, tensors).logits(ids, full(64)).std()
    if case.extra_head:
        tensors[shape.names["head"]] = tensors[shape.names["embed"]].clone()
    return {name: value.to(case.dtype) for name, value in tensors.items()}


def save_checkpoint(folder, case, tensors):
    config = case.config | {"torch_dtype": str(case.dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    names = sorted(tensors)
    if case.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return ["model.safetensors"]
    files, index = [], {}
    for n in range(case.shards):
        file = f"model-{n + 1:05}-of-{case.shards:05}.safetensors"
        part = names[n * len(names) // case.shards : (n + 1) * len(names) // case.shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
        files.append(file)
    size = sum(value.nbytes for value in tensors.values())
    record = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(record, indent=1) + "\n")
    return files


# --- Logits -----------------------------------------------------------------------------------------------------------


def spoiled(kind, model):
    """The same weights as a faulty loader or forward pass would use them, or `None` if only the visibility is wrong."""
    shape, tensors = copy.deepcopy(model.shape), {name: value.clone() for name, value in model.tensors.items()}
    edits = {
        "no_rope": lambda s: setattr(s, "rotary_dim", 0),
        "whole_rope": lambda s: setattr(s, "rotary_dim", s.head_dim),
        "interleaved_rope": lambda s: setattr(s, "interleaved_rope", True),
        "other_theta": lambda s: setattr(s, "theta", 10000.0),
        "renormalised": lambda s: setattr(s.router, "renormalise", True),
        "not_renormalised": lambda s: setattr(s.router, "renormalise", False),
        "no_groups": lambda s: setattr(s.router, "groups", 1),
        "no_scale": lambda s: setattr(s.router, "scale", 1.0),
        "biased_weights": lambda s: setattr(s.router, "biased_weights", True),
        "softmax_router": lambda s: setattr(s.router, "sigmoid", False),
        "no_shared_expert": lambda s: setattr(s, "shared_mlp", 0),
        "one_expert_less": lambda s: setattr(s.router, "chosen", s.router.chosen - 1),
    }
    if kind in edits:
        edits[kind](shape)
        return Model(shape, tensors)
    if kind in ("causal", "full", "other_origin"):
        return None
    for name, value in tensors.items():
        is_head_norm = any(part in name for part in ("q_norm", "k_norm", "query_layernorm", "key_layernorm"))
        is_final_norm = name == shape.names["norm"]
        if kind == "no_norm_weights" and "norm" in name and not is_head_norm and not is_final_norm:
            value.fill_(1.0)
        if kind == "no_final_norm" and is_final_norm:
            value.fill_(1.0)
        if kind == "no_head_norms" and is_head_norm:
            value.fill_(1.0)
        if kind == "no_biases" and name.endswith("proj.bias"):
            value.zero_()
        if kind == "no_expert_bias" and name.endswith("expert_bias"):
            value.zero_()
        if kind == "wrong_kv_groups" and ("k_proj" in name or "v_proj" in name):
            heads = value.reshape(shape.kv_heads, shape.head_dim, *value.shape[1:])
            value.copy_(heads.flip(0).reshape(value.shape))
        if kind == "kv_first" and name.endswith("query_key_value.weight"):
            value.copy_(torch.cat((value[shape.heads * shape.head_dim :], value[: shape.heads * shape.head_dim])))
        if kind == "swapped_mlp" and name.endswith(("ff_proj.weight", "gate_proj.weight")):
            other = tensors[name.replace("ff_proj", "up_proj").replace("gate_proj", "up_proj")]
            value[:], other[:] = other.clone(), value.clone()
    return Model(shape, tensors)


def draw(case, shape, length, generator, masks=True):
    """Random tokens, about a third of them masks if wanted, no mask otherwise."""
    ids = torch.randint(0, shape.vocab, (length,), generator=generator)
    is_mask = torch.rand(length, generator=generator) < 0.35
    ids[ids == case.mask_id] = 0
    if masks:
        ids[is_mask] = case.mask_id
        ids[length // 2] = case.mask_id
    return ids.tolist()


def make_logits(name, case, model, generator, folder):
    shape = model.shape
    ids = [draw(case, shape, length, generator) for length in (1, 7, 33)]
    origins = [0] if shape.block is None or shape.origin == "start" else [5, 7]
    entries, rows = [], {}
    for origin in origins:
        for sequence in ids:
            key = f"len_{len(sequence)}" + (f"_origin_{origin}" if len(origins) > 1 else "")
            see = full(len(sequence)) if shape.block is None else blocks(len(sequence), shape.block, origin)
            model.router_gap = float("inf")
            rows[key] = model.logits(sequence, see)
            assert model.router_gap > ROUTER_GAP, f"{name}: a router decides within rounding"
            entries.append({"logits": key, "ids": sequence, "origin": None if shape.block is None else origin})

    def difference(other, see):
        pairs = ((rows[e["logits"]], other.logits(e["ids"], see(e))) for e in entries)
        return max((a - b).abs().max().item() for a, b in pairs)

    def right(e):
        return full(len(e["ids"])) if shape.block is None else blocks(len(e["ids"]), shape.block, e["origin"])

    wrong = {
        "causal": lambda e: causal(len(e["ids"])),
        "full": lambda e: full(len(e["ids"])),
        "other_origin": lambda e: blocks(len(e["ids"]), shape.block, e["origin"] + 1),
    }
    for kind in case.spoilers:
        moved = difference(spoiled(kind, model) or model, wrong.get(kind, right))
        assert moved > 0.5, f"{name}: {kind} would pass unseen, logits move by {moved} only"
    save_file({key: value.contiguous() for key, value in rows.items()}, folder / "logits.safetensors")
    return {
        "logits": entries,
        "f32_rounding_max_abs": difference(model.double(), right),
        "logit_std": torch.cat([value.flatten() for value in rows.values()]).std().item(),
    }


# --- Decoding ---------------------------------------------------------------------------------------------------------


def run(case, model, plan, prompt, **judge):
    model.router_gap = float("inf")
    return decode(Judge(model, case.mask_id, len(prompt), plan.cache, **judge), model.shape, prompt, case.mask_id, plan)


def is_telling(plan, trace, case, model, prompt):
    """Whether this run shows what its policy is for."""
    is_parallel = max(map(len, trace.passes)) > 1

    def differs(**change):
        other = run(case, model, replace(plan, **change), prompt)
        return (other.canvas, other.passes) != (trace.canvas, trace.passes)

    if plan.cache != "none" and not differs(cache="none"):
        return False
    if plan.cache == "dual" and plan.gen_length > plan.block_length and not differs(cache="prefix"):
        return False
    if plan.policy == "quota":
        return is_parallel or plan.steps_per_block == plan.block_length or plan.sub_block_length
    if plan.policy == "threshold":
        return is_parallel and trace.fallbacks > 0
    if plan.policy == "factor":
        return is_parallel
    if plan.policy == "local_leap":
        return trace.counts["relaxed"] > 0 and trace.counts["anchor"] > 0 and trace.counts["top"] > 0
    if plan.policy == "dynamic":
        return trace.fallbacks > 0 and is_parallel
    return sum(map(len, trace.edits)) > 0 and trace.longest_post > 1


def is_firm(trace, model):
    return (trace.threshold_gap > THRESHOLD_GAP and trace.rank_gap > RANK_GAP and trace.token_gap > TOKEN_GAP
            and model.router_gap > ROUTER_GAP)


def make_decode(family, case, model, exact, name, prompt_len, plan):
    """Draws prompts until one gives a run that rounding cannot change and that shows the policy at work."""
    for attempt in range(400):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{family} {name} {attempt} {SEED}".encode()))
        prompt = draw(case, model.shape, prompt_len, generator, masks=False)
        trace = run(case, model, plan, prompt)
        if not is_firm(trace, model) or not is_telling(plan, trace, case, model, prompt):
            continue
        again = run(case, exact, plan, prompt)
        if (again.canvas, again.passes, again.edits) == (trace.canvas, trace.passes, trace.edits):
            break
    else:
        raise AssertionError(f"{family} {name}: no prompt serves")

    spans, length = block_borders(plan, model.shape, prompt_len)
    assert len(trace.passes) == len(trace.edits) == trace.nfe
    assert sorted(slot for slots in trace.passes for slot in slots) == list(range(prompt_len, length))
    params = {
        key: value for key, value in asdict(plan).items()
        if key in ("threshold", "relaxed_threshold", "radius", "factor") and value is not None
    }
    if plan.steps_per_block is not None:
        params |= {"schedule": plan.schedule, "steps_per_block": plan.steps_per_block}
        params["steps"] = plan.steps_per_block * (len(spans) if model.shape.block is None else 1)
    if plan.policy == "editing":
        params |= {"edit_threshold": plan.edit_threshold, "max_post_steps": plan.max_post_steps}
    if plan.sub_block_length:
        params |= {"sub_block_length": plan.sub_block_length, "handover": plan.handover}
    record = {
        "name": name, "policy": plan.policy, "remasking": plan.remasking, "params": params, "cache": plan.cache,
        "prompt": prompt, "gen_length": plan.gen_length, "block_length": plan.block_length,
        "tokens": trace.canvas[prompt_len:], "nfe": trace.nfe, "passes": trace.passes,
        "edits": trace.edits if plan.policy == "editing" else [],
    }
    if plan.policy == "local_leap" and not plan.handover:
        record["commits"] = trace.counts
    closest = {"threshold": trace.threshold_gap, "rank": trace.rank_gap, "token": trace.token_gap}
    closest["router"] = model.router_gap
    record["closest"] = {key: float(f"{value:.3g}") for key, value in closest.items() if value < float("inf")}
    return record, trace


def compact(value, depth=0):
    """JSON with the outer levels indented and lists on one line."""
    if isinstance(value, dict) and depth < 3 and any(isinstance(v, (dict, list)) for v in value.values()):
        body = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(k)}: {compact(v, depth + 1)}" for k, v in value.items())
        return f"{{\n{body}\n{' ' * depth}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"{' ' * (depth + 1)}{compact(v, depth + 1)}" for v in value) + f"\n{' ' * depth}]"
    return json.dumps(value)


# --- GGUF -------------------------------------------------------------------------------------------------------------


def byte_tokens():
    """The 256 byte tokens of GPT-2's alphabet, in its order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def permuted(weight, heads):
    """Rows of q or k in the order of llama.cpp's converter: RoPE pairs lie side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {
    "embed": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight",
    "attn_norm": "blk.{i}.attn_norm.weight", "mlp_norm": "blk.{i}.ffn_norm.weight",
    "q": "blk.{i}.attn_q.weight", "k": "blk.{i}.attn_k.weight", "v": "blk.{i}.attn_v.weight",
    "q_bias": "blk.{i}.attn_q.bias", "k_bias": "blk.{i}.attn_k.bias", "v_bias": "blk.{i}.attn_v.bias",
    "o": "blk.{i}.attn_output.weight", "q_norm": "blk.{i}.attn_q_norm.weight", "k_norm": "blk.{i}.attn_k_norm.weight",
    "gate": "blk.{i}.ffn_gate.weight", "up": "blk.{i}.ffn_up.weight", "down": "blk.{i}.ffn_down.weight",
    "router": "blk.{i}.ffn_gate_inp.weight",
}


def save_gguf(path, arch, case, model):
    s = model.shape
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"tiny random {arch}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(case.config.get("max_sequence_length") or case.config["max_position_embeddings"])
    writer.add_embedding_length(s.hidden)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.mlp or case.config["dense_intermediate_size"])
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_layer_norm_rms_eps(s.eps)
    writer.add_rope_freq_base(s.theta)
    writer.add_causal_attention(False)
    writer.add_vocab_size(s.vocab)
    if arch != "dream":  # As published: Dream files have neither key.
        writer.add_rope_dimension_count(s.rotary_dim)
        writer.add_diffusion_shift_logits(False)
    if s.router:
        writer.add_expert_count(s.router.experts)
        writer.add_expert_used_count(s.router.chosen)
        writer.add_expert_feed_forward_length(s.expert_mlp)

    # Ids: as many byte tokens as fit, one merge, then the specials. The mask comes where the checkpoint has it.
    merged, specials = "th", ["<|start|>", "<|end|>", "<|pad|>"]
    others = [*byte_tokens()[: s.vocab - 2 - len(specials)], merged, *specials]
    tokens = [*others[: case.mask_id], "<|mask|>", *others[case.mask_id :]]
    kinds = [gguf.TokenType.CONTROL if t.startswith("<|") else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(tokens.index("<|start|>"))
    writer.add_eos_token_id(tokens.index("<|end|>"))
    writer.add_pad_token_id(tokens.index("<|pad|>"))
    writer.add_mask_token_id(case.mask_id)
    writer.add_add_bos_token(arch == "llada")

    used = set()

    def array(name, i=0):
        used.add(s.names[name].format(i=i))
        weight = model.weight(name, i)
        if arch == "llada" and name in ("q", "k"):
            weight = permuted(weight, s.heads if name == "q" else s.kv_heads)
        return np.ascontiguousarray(weight.numpy())

    for name, target in GGUF_NAMES.items():
        for i in range(s.layers if "{i}" in target else 1):
            if s.names.get(name, "").format(i=i) in model.tensors:
                writer.add_tensor(target.format(i=i), array(name, i))
    if s.router:
        for i in range(s.layers):
            for part in ("gate", "up", "down"):
                experts = [model.weight(f"expert_{part}", i, e) for e in range(s.router.experts)]
                used |= {s.names[f"expert_{part}"].format(i=i, e=e) for e in range(s.router.experts)}
                writer.add_tensor(f"blk.{i}.ffn_{part}_exps.weight", torch.stack(experts).numpy())
    assert used == set(model.tensors), set(model.tensors) - used
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- Cases ------------------------------------------------------------------------------------------------------------


def quota(steps, schedule="even", **other):
    return dict(policy="quota", steps_per_block=steps, schedule=schedule) | other


def leap(kappa, tau, radius, **other):
    return dict(policy="local_leap", threshold=kappa, relaxed_threshold=tau, radius=radius) | other


def limit(kappa, **other):
    return dict(policy="threshold", threshold=kappa) | other


def dynamic(bound, steps, **other):
    return dict(policy="dynamic", threshold=bound, steps_per_block=steps, schedule="even_block") | other


def editing(bound, edit, steps, **other):
    return dynamic(bound, steps) | dict(policy="editing", edit_threshold=edit) | other


def plans(gen, block, prompts, **named):
    return [
        (f"{name}-p{prompt}", prompt, Plan(**{"gen_length": gen, "block_length": block} | plan))
        for name, plan in named.items() for prompt in prompts
    ]


def full_plans(schedule):
    """Every policy, ranking and cache, for a model with full attention."""
    return [
        *plans(16, 8, (5, 9), quota_1=quota(8, schedule), quota_2=quota(4, schedule), quota_uneven=quota(3, schedule),
               quota_margin=quota(4, schedule, remasking="margin"), quota_entropy=quota(4, schedule, remasking="entropy"),
               threshold=limit(0.6), factor=dict(policy="factor", factor=1.0), leap=leap(0.7, 0.4, 4)),
        *plans(16, 16, (5, 9), quota_one_block=quota(8, schedule), threshold_one_block=limit(0.6),
               leap_one_block=leap(0.7, 0.4, 2)),
        *plans(32, 8, (5,), leap_long=leap(0.8, 0.5, 2)),
        *plans(24, 8, (5, 9), quota_prefix=quota(4, schedule, cache="prefix"), quota_dual=quota(4, schedule, cache="dual"),
               leap_prefix=leap(0.7, 0.4, 4, cache="prefix"), leap_dual=leap(0.7, 0.4, 4, cache="dual")),
        *plans(16, 16, (5,), leap_prefix_one_block=leap(0.7, 0.4, 2, cache="prefix"),
               leap_dual_one_block=leap(0.7, 0.4, 2, cache="dual")),
        *plans(16, 8, (1,), leap_one_token=leap(0.7, 0.4, 4), leap_one_token_prefix=leap(0.7, 0.4, 4, cache="prefix")),
    ]


def block_plans(block, gen, **named):
    """Every prompt length that a block-causal model can get wrong, with each of the given policies."""
    return plans(gen, block, (1, block - 1, block, block + 1, 2 * block), **named)


LLADA_CONFIG = dict(
    architectures=["LLaDAModelLM"], model_type="llada", activation_type="silu", alibi=False, attention_dropout=0.0,
    attention_layer_norm=False, block_type="llama", d_model=48, embedding_size=128, eos_token_id=2, include_bias=False,
    include_qkv_bias=False, input_emb_norm=False, layer_norm_type="rms", layer_norm_with_affine=True, mask_token_id=125,
    max_sequence_length=256, mlp_hidden_size=64, mlp_ratio=4, n_heads=4, n_kv_heads=4, n_layers=2, pad_token_id=2,
    rms_norm_eps=1e-5, rope=True, rope_full_precision=True, rope_theta=500000.0, scale_logits=False, use_cache=False,
    vocab_size=128, weight_tying=False)


def qwen(**other):
    """Keys that every family with the standard names has."""
    return dict(
        hidden_act="silu", hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, rms_norm_eps=1e-6, rope_theta=1000000.0, rope_scaling=None,
        max_position_embeddings=256, tie_word_embeddings=False, eos_token_id=2, pad_token_id=2) | other


COMMON = ("no_rope", "interleaved_rope", "other_theta", "no_norm_weights", "no_final_norm", "swapped_mlp")

CASES = {
    "llada": Case(LLADA_CONFIG, 125, full_plans("even"), shards=2, gguf="llada", spoilers=(*COMMON, "causal")),
    "dream": Case(
        qwen(architectures=["DreamModel"], model_type="Dream", mask_token_id=141, vocab_size=144), 141,
        full_plans("dream"), dtype=torch.bfloat16, gguf="dream",
        spoilers=(*COMMON, "causal", "no_biases", "wrong_kv_groups")),
    "sdar": Case(
        qwen(architectures=["SDARForCausalLM"], model_type="sdar", attention_bias=False, head_dim=16, block_size=4,
             mask_token_id=130, vocab_size=136), 130,
        [*block_plans(4, 12, dynamic=dynamic(0.6, 4), quota_1=quota(4, "even_block"), quota_2=quota(2, "even_block"),
                      threshold=limit(0.5), leap=leap(0.6, 0.3, 1)),
         *plans(10, 4, (5, 6), dynamic_ragged=dynamic(0.6, 4)), *plans(12, 4, (6,), dynamic_2=dynamic(0.6, 2))],
        dtype=torch.bfloat16, spoilers=(*COMMON, "causal", "full", "other_origin", "no_head_norms", "wrong_kv_groups")),
    "llada-gqa": Case(
        LLADA_CONFIG | dict(n_heads=6, n_kv_heads=2, mask_token_id=3), 3,
        plans(16, 8, (5, 9), quota=quota(4), leap=leap(0.7, 0.4, 4)), spoilers=(*COMMON, "causal", "wrong_kv_groups")),
    "illada": Case(
        qwen(architectures=["ILLaDAForCausalLM"], model_type="illada", tie_word_embeddings=True, rms_norm_eps=1e-5,
             vocab_size=132, bos_token_id=0, pad_token_id=1), 5,
        plans(16, 8, (5, 9), quota=quota(4), leap=leap(0.7, 0.4, 4)), spoilers=(*COMMON, "causal", "wrong_kv_groups")),
    "fast-dllm-v2": Case(
        qwen(architectures=["Fast_dLLM_QwenForCausalLM"], model_type="Fast_dLLM_Qwen", bd_size=8, vocab_size=140), 133,
        [*block_plans(8, 16, threshold=limit(0.6, sub_block_length=4, handover=True),
                      quota_1=quota(8, "even_block", sub_block_length=4, handover=True),
                      leap=leap(0.7, 0.4, 1, sub_block_length=4, handover=True)),
         *plans(13, 8, (5, 8), threshold_ragged=limit(0.6, sub_block_length=4, handover=True))],
        spoilers=(*COMMON, "causal", "full", "other_origin", "no_biases", "wrong_kv_groups")),
    "a2d-qwen3-mdlm": Case(
        qwen(architectures=["A2DQwen3LMHeadModel"], model_type="a2d-qwen3", attention_bias=False, head_dim=16,
             tie_word_embeddings=True), 120,
        plans(16, 8, (5, 9), quota_1=quota(8, "linear"), quota=quota(3, "linear"), leap=leap(0.7, 0.4, 4)),
        attention="full", dtype=torch.bfloat16, spoilers=(*COMMON, "causal", "no_head_norms", "wrong_kv_groups")),
    "a2d-qwen3-bd3lm": Case(
        qwen(architectures=["A2DQwen3LMHeadModel"], model_type="a2d-qwen3", attention_bias=False, head_dim=12,
             tie_word_embeddings=True), 121,
        [*block_plans(8, 16, quota=quota(3, "linear"), leap=leap(0.7, 0.4, 4)),
         *plans(13, 8, (5,), quota_ragged=quota(3, "linear"))],
        attention="block_causal", block=8, extra_head=True, dtype=torch.bfloat16,
        spoilers=(*COMMON, "causal", "full", "other_origin", "no_head_norms", "wrong_kv_groups")),
    "a2d-qwen2-mdlm": Case(
        qwen(architectures=["A2DQwen2LMHeadModel"], model_type="a2d-qwen2", tie_word_embeddings=True, num_attention_heads=6,
             num_key_value_heads=2), 122,
        plans(16, 8, (5, 9), quota=quota(3, "linear"), leap=leap(0.7, 0.4, 4)), attention="full",
        spoilers=(*COMMON, "causal", "no_biases", "wrong_kv_groups")),
    "llada-moe": Case(
        {key: value for key, value in qwen(
            architectures=["LLaDAMoEModelLM"], model_type="llada", num_key_value_heads=4, rms_norm_eps=1e-5,
            rope_theta=50000.0, num_experts=8, num_experts_per_tok=3, expert_intermediate_size=20,
            dense_intermediate_size=64, shared_expert_intermediate_size=None, moe_layer_freq=[1, 1],
            qk_layernorm=True).items()
         if key != "intermediate_size"}, 126,
        plans(16, 8, (5, 9), quota=quota(4), leap=leap(0.7, 0.4, 4)), gguf="llada-moe", dtype=torch.bfloat16,
        spoilers=(*COMMON, "causal", "no_head_norms", "renormalised", "one_expert_less")),
    "llada2": Case(
        qwen(architectures=["LLaDA2MoeModelLM"], model_type="llada2_moe", num_hidden_layers=3, head_dim=16,
             rope_theta=600000.0, first_k_dense_replace=1, moe_intermediate_size=12, num_experts=16, num_experts_per_tok=4,
             num_shared_experts=1, n_group=4, topk_group=2, score_function="sigmoid", moe_router_enable_expert_bias=True,
             routed_scaling_factor=2.5, norm_topk_prob=True, router_dtype="fp32", partial_rotary_factor=0.5,
             use_qk_norm=True, use_qkv_bias=False, use_bias=False, block_size=8), 124,
        [*block_plans(8, 16, dynamic=dynamic(0.7, 8), quota=quota(4, "even_block"), editing=editing(0.6, 0.5, 8)),
         *plans(16, 8, (5, 8), editing_speed=editing(0.5, 0.0, 8), leap=leap(0.7, 0.4, 2)),
         *plans(13, 8, (5,), dynamic_ragged=dynamic(0.7, 8), editing_ragged=editing(0.6, 0.5, 8))], dtype=torch.bfloat16,
        spoilers=("no_rope", "whole_rope", "interleaved_rope", "other_theta", "no_norm_weights", "no_final_norm",
                  "swapped_mlp", "causal", "full", "other_origin", "no_head_norms", "kv_first", "no_expert_bias",
                  "biased_weights", "not_renormalised", "no_groups", "no_scale", "no_shared_expert", "softmax_router",
                  "one_expert_less")),
}


def make(name, case):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    generator = torch.Generator().manual_seed(SEED)
    tensors = random_tensors(case, read_shape(case.config, case.attention, case.block), generator)
    files = save_checkpoint(folder, case, tensors)
    # The goldens belong to the stored weights, read back in f32 as any user would.
    model = Model.load(folder, case.attention, case.block)
    exact, shape = model.double(), model.shape
    logits = make_logits(name, case, model, generator, folder)
    decodes, masks_excluded = [], 0
    for decode_name, prompt_len, plan in case.plans:
        record, trace = make_decode(name, case, model, exact, decode_name, prompt_len, plan)
        decodes.append(record)
        masks_excluded += trace.masks_excluded
    assert masks_excluded > 0, f"{name}: proposing the mask token would pass unseen"
    if shape.shift:
        plan, prompt = case.plans[0][2], decodes[0]["prompt"]
        assert run(case, model, plan, prompt, shift=False).canvas[len(prompt) :] != decodes[0]["tokens"]
    record = {
        "family": name,
        "mask_id": case.mask_id,
        "mask_id_in_config": "mask_token_id" in case.config,
        "shift": shape.shift,
        "attention": "full" if shape.block is None else "block_causal",
        "block_length": shape.block,
        "block_origin": shape.origin,
        "files": files,
        "gguf": f"{name}.gguf" if case.gguf else None,
        **logits,
        "made_with": {"torch": torch.__version__.split("+")[0], "safetensors": importlib.metadata.version("safetensors"),
                      "gguf": importlib.metadata.version("gguf"), "seed": SEED},
        "decodes": decodes,
    }
    (folder / "golden.json").write_text(compact(record) + "\n")
    if case.gguf:
        save_gguf(HERE / f"{name}.gguf", case.gguf, case, model)
    print(f"{name}: {len(decodes)} decodes, std {record['logit_std']:.2f}, rounding {record['f32_rounding_max_abs']:.1e}, "
          f"{masks_excluded} masks excluded", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}")
    torch.set_num_threads(1)
    for name in parser.parse_args().cases or CASES:
        make(name, CASES[name])


if __name__ == "__main__":
    main()
