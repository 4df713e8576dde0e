"""Times the forward pass of a language model of a given shape in PyTorch, as a yardstick: random weights, attention by
scaled_dot_product_attention over a preallocated cache, one CUDA graph for each cell, with and without torch.compile.

Reads one JSON object from standard input:

    {"hidden": .., "layers": .., "heads": .., "kv_heads": .., "head_dim": .., "ffn": .., "vocab": .., "qkv_bias": bool,
     "qk_norm": bool, "dtype": "bf16" | "f16", "causal": bool,
     "cells": [["graph" | "compile", rows, context], ..], "rounds": n, "repeats": n, "budget_s": s}

and prints one JSON object a line: {"torch": version, "device": name} first, then for each cell
{"variant", "rows", "context", "ms": [..]}, the time of a pass that also takes the likeliest token of each row, in
milliseconds of device time; each of the rounds is the mean of passes that are given at once. A cell with "error" in place
of "ms" could not be measured. {"error": text} alone says why nothing could, with exit code 3: there is no torch or no CUDA
device.
"""

import json
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(json.dumps({"error": f"no torch: {error}"}))
    sys.exit(3)

if not torch.cuda.is_available():
    print(json.dumps({"error": "torch sees no CUDA device"}))
    sys.exit(3)

GIVEN = json.load(sys.stdin)
DTYPE = {"bf16": torch.bfloat16, "f16": torch.float16}[GIVEN["dtype"]]
BEGAN = time.monotonic()


def tell(**fields):
    print(json.dumps(fields), flush=True)


def weight(outputs, inputs):
    return torch.randn(outputs, inputs, device="cuda", dtype=DTYPE) / inputs**0.5


class Layer:
    def __init__(self):
        hidden, head_dim = GIVEN["hidden"], GIVEN["head_dim"]
        q, kv = GIVEN["heads"] * head_dim, GIVEN["kv_heads"] * head_dim
        self.qkv = weight(q + 2 * kv, hidden)
        self.bias = torch.zeros(q + 2 * kv, device="cuda", dtype=DTYPE) if GIVEN["qkv_bias"] else None
        self.output = weight(hidden, q)
        self.gate_up = weight(2 * GIVEN["ffn"], hidden)
        self.down = weight(hidden, GIVEN["ffn"])
        self.norms = [torch.ones(hidden, device="cuda", dtype=DTYPE) for _ in range(2)]
        self.head_norms = [torch.ones(head_dim, device="cuda", dtype=DTYPE) for _ in range(2)]


def rotate(xs, cos, sin):
    low, high = xs.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Model:
    def __init__(self, context_len):
        hidden, head_dim = GIVEN["hidden"], GIVEN["head_dim"]
        self.embedding = weight(GIVEN["vocab"], hidden)
        self.head = weight(GIVEN["vocab"], hidden)
        self.norm = torch.ones(hidden, device="cuda", dtype=DTYPE)
        self.layers = [Layer() for _ in range(GIVEN["layers"])]
        shape = (GIVEN["layers"], 2, 1, GIVEN["kv_heads"], context_len, head_dim)
        self.cache = torch.zeros(shape, device="cuda", dtype=DTYPE)
        frequencies = 1e4 ** (-torch.arange(0, head_dim, 2, device="cuda") / head_dim)
        angles = torch.outer(torch.arange(context_len, device="cuda"), frequencies)
        self.cos, self.sin = angles.cos().to(DTYPE), angles.sin().to(DTYPE)

    def forward(self, tokens, positions, end):
        """The likeliest next token of each row; rows see all positions below `end`, or, in a causal model, their own."""
        rows, head_dim = tokens.shape[0], GIVEN["head_dim"]
        heads, kv_heads = GIVEN["heads"], GIVEN["kv_heads"]
        xs = F.embedding(tokens, self.embedding)
        cos, sin = self.cos[positions], self.sin[positions]
        mask = None
        if GIVEN["causal"] and rows > 1:
            mask = torch.arange(end, device="cuda") <= positions[:, None]
        for layer, cache in zip(self.layers, self.cache):
            normed = F.rms_norm(xs, (xs.shape[-1],), layer.norms[0], 1e-6)
            qkv = F.linear(normed, layer.qkv, layer.bias)
            q, k, v = qkv.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=-1)
            q = q.view(rows, heads, head_dim).transpose(0, 1)
            k = k.view(rows, kv_heads, head_dim).transpose(0, 1)
            v = v.view(rows, kv_heads, head_dim).transpose(0, 1)
            if GIVEN["qk_norm"]:
                q = F.rms_norm(q, (head_dim,), layer.head_norms[0], 1e-6)
                k = F.rms_norm(k, (head_dim,), layer.head_norms[1], 1e-6)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            cache[0, 0].index_copy_(1, positions, k)
            cache[1, 0].index_copy_(1, positions, v)
            keys, values = cache[0, :, :, :end], cache[1, :, :, :end]
            mixed = F.scaled_dot_product_attention(
                q[None], keys, values, attn_mask=mask, enable_gqa=heads != kv_heads
            )
            xs = xs + F.linear(mixed[0].transpose(0, 1).reshape(rows, -1), layer.output)
            normed = F.rms_norm(xs, (xs.shape[-1],), layer.norms[1], 1e-6)
            gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=-1)
            xs = xs + F.linear(F.silu(gate) * up, layer.down)
        logits = F.linear(F.rms_norm(xs, (xs.shape[-1],), self.norm, 1e-6), self.head)
        return logits.float().max(dim=-1)


def measure(forward, rows, context):
    tokens = torch.arange(rows, device="cuda") % GIVEN["vocab"]
    positions = torch.arange(context, context + rows, device="cuda")
    end = context + rows
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward(tokens, positions, end)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(tokens, positions, end)
    graph.replay()
    times = []
    for _ in range(GIVEN["rounds"]):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(GIVEN["repeats"]):
            graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / GIVEN["repeats"])
    return times


def main():
    tell(torch=torch.__version__, device=torch.cuda.get_device_name())
    torch.manual_seed(0)
    with torch.inference_mode():
        model = Model(max(rows + context for _, rows, context in GIVEN["cells"]))
        for variant, rows, context in GIVEN["cells"]:
            if time.monotonic() - BEGAN > GIVEN["budget_s"]:
                tell(variant=variant, rows=rows, context=context, error="the time for PyTorch is spent")
                continue
            forward = model.forward
            if variant == "compile":
                # Each cell is compiled for its own sizes; code of earlier ones counts against a limit.
                torch._dynamo.reset()
                forward = torch.compile(model.forward, dynamic=False)
            try:
                tell(variant=variant, rows=rows, context=context, ms=measure(forward, rows, context))
            except Exception as error:  # one cell that fails leaves the others
                lines = str(error).splitlines() or [type(error).__name__]
                tell(variant=variant, rows=rows, context=context, error=lines[0][:200])


main()
