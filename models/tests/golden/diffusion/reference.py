"""Forward passes of the masked diffusion families in plain PyTorch: the reference for the goldens in this folder.

One sequence, no cache unless the caller keeps one, and attention by an explicit matrix of who sees whom. Everything is in
the dtype of the weights, normally f32: norms, RoPE angles, the router, and the sum over experts. Logits are raw rows: a
family whose row `i` scores slot `i + 1` is shifted by the decoder, not here.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

# Our name of a tensor -> its name in the checkpoint, for the three layouts. `{i}` is a layer, `{e}` an expert.
HF = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "q": "model.layers.{i}.self_attn.q_proj.weight",
    "k": "model.layers.{i}.self_attn.k_proj.weight",
    "v": "model.layers.{i}.self_attn.v_proj.weight",
    "q_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "k_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "v_bias": "model.layers.{i}.self_attn.v_proj.bias",
    "o": "model.layers.{i}.self_attn.o_proj.weight",
    "q_norm": "model.layers.{i}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{i}.self_attn.k_norm.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "down": "model.layers.{i}.mlp.down_proj.weight",
    "router": "model.layers.{i}.mlp.gate.weight",
    "expert_bias": "model.layers.{i}.mlp.gate.expert_bias",
    "expert_gate": "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
    "expert_up": "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
    "expert_down": "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
    "shared_gate": "model.layers.{i}.mlp.shared_experts.gate_proj.weight",
    "shared_up": "model.layers.{i}.mlp.shared_experts.up_proj.weight",
    "shared_down": "model.layers.{i}.mlp.shared_experts.down_proj.weight",
}
LLADA = {
    "embed": "model.transformer.wte.weight",
    "norm": "model.transformer.ln_f.weight",
    "head": "model.transformer.ff_out.weight",
    "attn_norm": "model.transformer.blocks.{i}.attn_norm.weight",
    "mlp_norm": "model.transformer.blocks.{i}.ff_norm.weight",
    "q": "model.transformer.blocks.{i}.q_proj.weight",
    "k": "model.transformer.blocks.{i}.k_proj.weight",
    "v": "model.transformer.blocks.{i}.v_proj.weight",
    "o": "model.transformer.blocks.{i}.attn_out.weight",
    "gate": "model.transformer.blocks.{i}.ff_proj.weight",
    "up": "model.transformer.blocks.{i}.up_proj.weight",
    "down": "model.transformer.blocks.{i}.ff_out.weight",
}
LLADA2 = HF | {
    "embed": "model.word_embeddings.weight",
    "qkv": "model.layers.{i}.attention.query_key_value.weight",
    "o": "model.layers.{i}.attention.dense.weight",
    "q_norm": "model.layers.{i}.attention.query_layernorm.weight",
    "k_norm": "model.layers.{i}.attention.key_layernorm.weight",
}


@dataclass
class Router:
    """How rows find their experts."""

    experts: int
    chosen: int
    sigmoid: bool = False  # Scores are sigmoids; otherwise a softmax over all experts.
    groups: int = 1
    kept_groups: int = 1
    renormalise: bool = False
    scale: float = 1.0
    # Ways to get it wrong, for the spoilers.
    biased_weights: bool = False


@dataclass
class Shape:
    """What the config says, in one spelling for all families."""

    names: dict
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    theta: float
    eps: float
    vocab: int
    mlp: int
    tied: bool
    biases: bool  # On q, k and v only.
    head_norms: bool
    shift: bool  # Row `i` scores slot `i + 1`.
    block: int | None  # Length of the blocks of a block-causal model; `None`: every row sees every other.
    origin: str | None  # Blocks are counted from `start` (position 0) or from `prompt_end`.
    router: Router | None = None
    dense_layers: int = 0  # Layers at the front that have a plain MLP although the model has experts.
    expert_mlp: int = 0
    shared_mlp: int = 0
    interleaved_rope: bool = False  # Never right for these checkpoints; for the spoilers.


def read_shape(config, attention=None, block=None):
    """The shape of a config. `attention` (`full` or `block_causal`) and `block` are for A2D, whose config says neither."""
    kind = config["architectures"][0]
    if kind == "LLaDAModelLM":
        head_dim = config["d_model"] // config["n_heads"]
        return Shape(
            names=LLADA, layers=config["n_layers"], hidden=config["d_model"], heads=config["n_heads"],
            kv_heads=config["n_kv_heads"], head_dim=head_dim, rotary_dim=head_dim, theta=config["rope_theta"],
            eps=config["rms_norm_eps"], vocab=config["embedding_size"], mlp=config["mlp_hidden_size"],
            tied=config["weight_tying"], biases=False, head_norms=False, shift=False, block=None, origin=None)

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    shape = Shape(
        names=HF, layers=config["num_hidden_layers"], hidden=config["hidden_size"], heads=heads,
        kv_heads=config["num_key_value_heads"], head_dim=head_dim, rotary_dim=head_dim, theta=config["rope_theta"],
        eps=config["rms_norm_eps"], vocab=config["vocab_size"], mlp=config.get("intermediate_size", 0),
        tied=config["tie_word_embeddings"], biases=False, head_norms=False, shift=False, block=None, origin=None)
    if kind == "ILLaDAForCausalLM":
        return shape
    if kind == "DreamModel":
        return replace(shape, biases=True, shift=True)
    if kind == "SDARForCausalLM":
        return replace(shape, head_norms=True, block=config["block_size"], origin="start")
    if kind == "Fast_dLLM_QwenForCausalLM":
        return replace(shape, biases=True, shift=True, block=config["bd_size"], origin="start")
    if kind in ("A2DQwen3LMHeadModel", "A2DQwen2LMHeadModel"):
        shape = replace(shape, head_norms=kind == "A2DQwen3LMHeadModel", biases=kind == "A2DQwen2LMHeadModel")
        return replace(shape, block=block, origin="prompt_end") if attention == "block_causal" else shape
    if kind == "LLaDAMoEModelLM":
        router = Router(experts=config["num_experts"], chosen=config["num_experts_per_tok"])
        expert_mlp = config["expert_intermediate_size"]
        return replace(shape, head_norms=config["qk_layernorm"], router=router, expert_mlp=expert_mlp)
    if kind == "LLaDA2MoeModelLM":
        router = Router(
            experts=config["num_experts"], chosen=config["num_experts_per_tok"], sigmoid=True, groups=config["n_group"],
            kept_groups=config["topk_group"], renormalise=config["norm_topk_prob"], scale=config["routed_scaling_factor"])
        return replace(
            shape, names=LLADA2, head_norms=config["use_qk_norm"], router=router, block=config.get("block_size", 32),
            origin="start", rotary_dim=int(head_dim * config["partial_rotary_factor"]),
            dense_layers=config["first_k_dense_replace"], expert_mlp=config["moe_intermediate_size"],
            shared_mlp=config["moe_intermediate_size"] * config["num_shared_experts"])
    raise ValueError(f"unknown architecture {kind}")


def full(length):
    """Every row sees every other."""
    return torch.ones(length, length, dtype=torch.bool)


def causal(length):
    """A row sees itself and everything before it."""
    return full(length).tril()


def blocks(length, block, origin=0):
    """A row sees its own block and those before it. Borders lie at `origin` and whole blocks away from it."""
    index = (torch.arange(length) - origin).div(block, rounding_mode="floor")
    return index[None, :] <= index[:, None]


def visibility(shape, length, prompt_len):
    """Who sees whom in this family; `prompt_len` matters only where blocks are counted from the end of the prompt."""
    if shape.block is None:
        return full(length)
    return blocks(length, shape.block, prompt_len % shape.block if shape.origin == "prompt_end" else 0)


class Model:
    def __init__(self, shape, tensors):
        self.shape, self.tensors = shape, tensors
        self.dtype = tensors[shape.names["embed"]].dtype
        self.router_gap = float("inf")  # The closest call of any router since it was last set.

    @classmethod
    def load(cls, folder, attention=None, block=None):
        """A checkpoint folder, whatever dtype it is stored in, as f32."""
        tensors = {}
        for file in sorted(Path(folder).glob("model*.safetensors")):
            tensors |= load_file(file)
        config = json.loads((Path(folder) / "config.json").read_text())
        return cls(read_shape(config, attention, block), {name: value.float() for name, value in tensors.items()})

    def double(self):
        return Model(self.shape, {name: value.double() for name, value in self.tensors.items()})

    def weight(self, name, i=0, e=0):
        return self.tensors[self.shape.names[name].format(i=i, e=e)]

    def empty_cache(self, length):
        """Keys and values of every layer, all zero: pairs of `[kv_heads, length, head_dim]`."""
        size = (self.shape.kv_heads, length, self.shape.head_dim)
        zeros = [torch.zeros(size, dtype=self.dtype) for _ in range(2 * self.shape.layers)]
        return list(zip(zeros[::2], zeros[1::2]))

    @torch.no_grad()
    def logits(self, ids, visible):
        """Raw logits `[len, vocab]` of a whole sequence."""
        return self.forward(ids, range(len(ids)), visible, self.empty_cache(len(ids)))

    @torch.no_grad()
    def forward(self, ids, rows, visible, cache):
        """Raw logits `[len(rows), vocab]` of the positions `rows`. Their keys and values replace those in `cache`; keys and
        values of all other positions are taken from there as they are."""
        s, rows = self.shape, torch.tensor(list(rows))
        x = self.weight("embed")[torch.tensor(ids)[rows]]
        for i in range(s.layers):
            h = self.rms_norm(x, self.weight("attn_norm", i))
            x = x + self.attention(i, h, rows, visible, *cache[i])
            h = self.rms_norm(x, self.weight("mlp_norm", i))
            if s.router is None or i < s.dense_layers:
                x = x + self.mlp(h, "", i)
            else:
                x = x + self.experts(i, h)
        tied = s.tied and s.names["head"] not in self.tensors
        return self.rms_norm(x, self.weight("norm")) @ self.weight("embed" if tied else "head").T

    def rms_norm(self, x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.shape.eps) * weight

    def attention(self, i, h, rows, visible, keys, values):
        s = self.shape
        if "qkv" in s.names:
            q, k, v = (h @ self.weight("qkv", i).T).split([n * s.head_dim for n in (s.heads, s.kv_heads, s.kv_heads)], -1)
        else:
            q, k, v = (h @ self.weight(name, i).T for name in "qkv")
        if s.biases:
            q, k, v = (y + self.weight(f"{name}_bias", i) for y, name in zip((q, k, v), "qkv"))
        q, k, v = (y.reshape(len(rows), -1, s.head_dim).transpose(0, 1) for y in (q, k, v))
        if s.head_norms:
            q, k = self.rms_norm(q, self.weight("q_norm", i)), self.rms_norm(k, self.weight("k_norm", i))
        keys[:, rows], values[:, rows] = self.rotate(k, rows), v
        scores = self.rotate(q, rows) @ self.per_query_head(keys).transpose(1, 2) / s.head_dim**0.5
        weights = scores.masked_fill(~visible[rows], float("-inf")).softmax(-1)
        out = weights @ self.per_query_head(values)
        return out.transpose(0, 1).reshape(len(rows), -1) @ self.weight("o", i).T

    def per_query_head(self, y):
        return y.repeat_interleave(self.shape.heads // self.shape.kv_heads, 0)

    def rotate(self, y, positions):
        """RoPE on the first `rotary_dim` dimensions: dimension `d` turns with `d + rotary_dim / 2`."""
        r = self.shape.rotary_dim
        if r == 0:
            return y
        frequencies = self.shape.theta ** -(torch.arange(0, r, 2, dtype=self.dtype) / r)
        angles = positions.to(self.dtype)[:, None] * frequencies
        turned, rest = y[..., :r], y[..., r:]
        if self.shape.interleaved_rope:
            a, b = turned[..., 0::2], turned[..., 1::2]
        else:
            a, b = turned.chunk(2, -1)
        a, b = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
        turned = torch.stack((a, b), -1).flatten(-2) if self.shape.interleaved_rope else torch.cat((a, b), -1)
        return torch.cat((turned, rest), -1)

    def mlp(self, h, prefix, i, e=0):
        gate, up, down = (self.weight(f"{prefix}{name}", i, e) for name in ("gate", "up", "down"))
        return (F.silu(h @ gate.T) * (h @ up.T)) @ down.T

    def experts(self, i, h):
        router = self.shape.router
        chosen, weights = self.route(i, h)
        out = torch.zeros_like(h)
        for e in range(router.experts):
            row, place = (chosen == e).nonzero(as_tuple=True)
            if len(row):
                out[row] += weights[row, place, None] * self.mlp(h[row], "expert_", i, e)
        return out + self.mlp(h, "shared_", i) if self.shape.shared_mlp else out

    def route(self, i, h):
        """Experts of each row and the weights of what they say, both `[rows, chosen]`."""
        router = self.shape.router
        scores = h @ self.weight("router", i).T
        scores = scores.sigmoid() if router.sigmoid else scores.softmax(-1)
        # The bias decides who is chosen, and nothing else.
        has_bias = self.shape.names["expert_bias"].format(i=i) in self.tensors
        ranked = biased = scores + self.weight("expert_bias", i) if has_bias else scores
        if router.groups > 1:
            grouped = ranked.reshape(len(h), router.groups, -1)
            kept = self.best(grouped.topk(2).values.sum(-1), router.kept_groups)
            mask = torch.zeros(len(h), router.groups, dtype=torch.bool).scatter(1, kept, True)
            ranked = grouped.masked_fill(~mask[..., None], float("-inf")).reshape(len(h), -1)
        chosen = self.best(ranked, router.chosen)
        weights = (biased if router.biased_weights else scores).gather(1, chosen)
        if router.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * router.scale

    def best(self, scores, count):
        """Indices of the `count` best of each row; remembers how close the call was."""
        if count < scores.shape[1]:
            top = scores.topk(count + 1).values
            self.router_gap = min(self.router_gap, (top[:, -2] - top[:, -1]).min().item())
        return scores.topk(count).indices
