"""Makes the tiny random checkpoints with local linear attention in this folder, and their logits in float64.

    python make_lla_goldens.py

The forward pass below shares nothing with the one it checks. A query's output is the intercept of a weighted ridge
regression of the values on `[1, k - q]`, and is found as that: by an orthogonal factorisation of the regression itself,
without means, covariances or normal equations.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
SEED = 20251124
PROMPT_LENS = (1, 7, 33)
USUAL = dict(
    architectures=["LeapfrogLlaForCausalLM"], model_type="leapfrog_lla", hidden_act="silu", max_position_embeddings=256,
    bos_token_id=1, eos_token_id=2, torch_dtype="float32", num_hidden_layers=2, num_attention_heads=4,
)  # fmt: skip

# What a config may leave out is left out in the first case and set in the second.
CASES = {
    "tied": dict(
        hidden_size=64, intermediate_size=80, num_key_value_heads=2, vocab_size=128, tie_word_embeddings=True,
        rms_norm_eps=1e-5, rope_theta=10000.0, lla_ridge_floor=0.05,
    ),
    "window": dict(
        hidden_size=48, intermediate_size=64, num_key_value_heads=1, head_dim=24, vocab_size=104,
        tie_word_embeddings=False, rms_norm_eps=1e-6, rope_theta=1000000.0, lla_ridge_floor=0.2, lla_scale=0.35,
        lla_tolerance=1e-6, lla_max_iterations=200, sliding_window=9, torch_dtype="float16",
    ),
}  # fmt: skip

# Each is a way to get the layer wrong; the script insists that the logits would show it.
SPOILERS = (
    "no_rope", "norms_behind_rope", "no_q_norm", "no_k_norm", "no_norm_weights", "wrong_kv_groups", "no_softplus",
    "no_floor", "floor_under_softplus", "one_ridge", "softmax_attention", "usual_scale", "no_window", "window_off_by_one",
)  # fmt: skip


def weights_of(config, generator):
    """Weights wide enough that logits spread. Matrices and norms as stored, `ridge` always in float32."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], head_dim(config)
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        for part, shape in {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (heads * dim, hidden),
            "self_attn.k_proj.weight": (kv_heads * dim, hidden),
            "self_attn.v_proj.weight": (kv_heads * dim, hidden),
            "self_attn.o_proj.weight": (hidden, heads * dim),
            "self_attn.q_norm.weight": (dim,),
            "self_attn.k_norm.weight": (dim,),
            "self_attn.ridge": (heads,),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }.items():
            shapes[f"model.layers.{layer}.{part}"] = shape
    weights = {}
    for name, shape in sorted(shapes.items()):
        noise = generator.standard_normal(shape)
        if name.endswith("ridge"):
            weights[name] = (-0.5 + noise).astype(np.float32)
            continue
        values = 1.0 + 0.3 * noise if "norm" in name else 0.25 * noise
        weights[name] = values.astype(config["torch_dtype"])
    return weights


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rms_norm(x, weight, config):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight


def rotate(x, config, spoiler):
    """RoPE over halves on `[rows, heads, dim]`."""
    if spoiler == "no_rope":
        return x
    half = x.shape[-1] // 2
    frequencies = config["rope_theta"] ** (-np.arange(half) / half)
    angles = np.arange(len(x))[:, None, None] * frequencies
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def intercept(q, keys, values, scale, ridge):
    """Value at `q` of the affine function of the keys that fits the values best, `[dim]`."""
    scores = scale * (keys @ q)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    data = np.sqrt(p)[:, None] * np.concatenate([np.ones((len(keys), 1)), keys - q], 1)
    penalty = np.concatenate([np.zeros((len(q), 1)), np.sqrt(ridge) * np.eye(len(q))], 1)
    right = np.concatenate([np.sqrt(p)[:, None] * values, np.zeros((len(q), values.shape[1]))])
    return np.linalg.lstsq(np.concatenate([data, penalty]), right, rcond=None)[0][0]


def ridges(theta, floor, spoiler):
    softplus = np.logaddexp(0.0, theta)
    if spoiler == "no_softplus":
        return floor + np.abs(theta)
    if spoiler == "floor_under_softplus":
        return np.logaddexp(0.0, theta + floor)
    if spoiler == "no_floor":
        return softplus
    if spoiler == "one_ridge":
        return np.full_like(theta, floor + softplus.mean())
    return floor + softplus


def attention(x, weights, config, spoiler):
    """Attention of one layer on `[rows, hidden]`."""
    rows, dim = len(x), head_dim(config)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    q = (x @ weights["q_proj.weight"].T).reshape(rows, heads, dim)
    k = (x @ weights["k_proj.weight"].T).reshape(rows, kv_heads, dim)
    v = (x @ weights["v_proj.weight"].T).reshape(rows, kv_heads, dim)
    q_weight, k_weight = weights["q_norm.weight"], weights["k_norm.weight"]
    if spoiler == "no_norm_weights":
        q_weight, k_weight = np.ones(dim), np.ones(dim)
    if spoiler == "norms_behind_rope":
        q, k = rotate(q, config, spoiler), rotate(k, config, spoiler)
    q = q if spoiler == "no_q_norm" else rms_norm(q, q_weight, config)
    k = k if spoiler == "no_k_norm" else rms_norm(k, k_weight, config)
    if spoiler != "norms_behind_rope":
        q, k = rotate(q, config, spoiler), rotate(k, config, spoiler)
    ridge = ridges(weights["ridge"], config["lla_ridge_floor"], spoiler)
    scale = config.get("lla_scale", dim**-0.5)
    if spoiler == "usual_scale":
        scale = dim**-0.5
    window = config.get("sliding_window", rows)
    if spoiler == "no_window":
        window = rows
    if spoiler == "window_off_by_one":
        window += 1
    out = np.empty((rows, heads, dim))
    for row in range(rows):
        visible = slice(max(0, row + 1 - window), row + 1)
        for head in range(heads):
            kv_head = head % kv_heads if spoiler == "wrong_kv_groups" else head // (heads // kv_heads)
            # A large ridge leaves nothing of the slope: softmax attention.
            lam = 1e12 if spoiler == "softmax_attention" else ridge[head]
            out[row, head] = intercept(q[row, head], k[visible, kv_head], v[visible, kv_head], scale, lam)
    return out.reshape(rows, heads * dim) @ weights["o_proj.weight"].T


def logits_of(ids, weights, config, spoiler=None):
    """Logits `[len, vocab]` of every position."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        mixer = {name.removeprefix("self_attn."): value for name, value in part.items() if name.startswith("self_attn.")}
        x = x + attention(rms_norm(x, part["input_layernorm.weight"], config), mixer, config, spoiler)
        y = rms_norm(x, part["post_attention_layernorm.weight"], config)
        gate = y @ part["mlp.gate_proj.weight"].T
        gated = gate / (1.0 + np.exp(-gate)) * (y @ part["mlp.up_proj.weight"].T)
        x = x + gated @ part["mlp.down_proj.weight"].T
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms_norm(x, weights["model.norm.weight"], config) @ head.T


def is_shown(spoiler, config):
    """Whether the case has what the spoiler spoils."""
    if spoiler == "usual_scale":
        return "lla_scale" in config
    if "window" in spoiler:
        return "sliding_window" in config
    return spoiler != "wrong_kv_groups" or config["num_key_value_heads"] > 1


def make(name, case):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = USUAL | case
    generator = np.random.default_rng(SEED)
    weights = weights_of(config, generator)
    prompts = [generator.integers(0, config["vocab_size"], length).tolist() for length in PROMPT_LENS]
    logits = [logits_of(ids, weights, config) for ids in prompts]
    spread = max(rows.max() for rows in logits) - min(rows.min() for rows in logits)
    shown = {}
    for spoiler in filter(lambda spoiler: is_shown(spoiler, config), SPOILERS):
        spoiled = [logits_of(ids, weights, config, spoiler) for ids in prompts]
        moved = max(np.abs(a - b).max() for a, b in zip(logits, spoiled))
        shown[spoiler] = float(moved / spread)
        assert moved > 0.01 * spread, f"{name}: {spoiler} would pass unseen, logits move by {moved / spread:.1e}"
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({f"prompt_{i}": rows.astype(np.float32) for i, rows in enumerate(logits)}, folder / "logits.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    record = {
        "prompts": [{"logits": f"prompt_{i}", "ids": ids} for i, ids in enumerate(prompts)],
        "logit_std": float(np.concatenate([rows.ravel() for rows in logits]).std()),
        "mistakes_move_logits_by": {spoiler: round(moved, 3) for spoiler, moved in shown.items()},
        "made_with": {"numpy": np.__version__, "seed": SEED},
    }
    (folder / "prompts.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{name}: std {record['logit_std']:.2f}, least visible mistake {min(shown, key=shown.get)} {min(shown.values()):.3f}")


if __name__ == "__main__":
    for case_name, case_config in CASES.items():
        make(case_name, case_config)
