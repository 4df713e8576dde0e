"""Local linear attention in PyTorch, for `leapfrog-bench lla --torch PYTHON`.

    python bench/peers/lla_torch.py FOLDER

FOLDER holds meta.json, q.bin [rows, heads, dim], k.bin and v.bin [kv_heads, context, dim] in f32 and reference.bin
[reference rows, heads, dim] in f64, all little-endian; the bench writes them. Prints one line of JSON for each form:

    {"name": .., "absent": null or why, "seconds": [..], "peak_bytes": .., "error": ..}

Forms: the dense evaluation (tensor of differences, one matrix and one solve for each query), the same for some rows at
a time, both under torch.compile, softmax attention by PyTorch itself at the same shape (another function, so without an
error), and the Triton kernels that can be imported. Rounds are interleaved: each form runs once in each.

peak_bytes: on a GPU, of the allocator beside the inputs; on a CPU, growth of the resident memory (VmHWM after a reset,
less VmRSS) in one run after the timed ones, in this process, so memory that the allocator kept does not count: a lower
bound. The first run of a form compiles and is not counted.
"""

import importlib
import json
import math
import pathlib
import sys
import time

import torch


def load(folder, meta):
    def read(name, dtype, shape):
        return torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=dtype).reshape(shape)

    heads, kv_heads, dim = meta["heads"], meta["kv_heads"], meta["dim"]
    q = read("q.bin", torch.float32, (meta["rows"], heads, dim)).transpose(0, 1).contiguous()
    k = read("k.bin", torch.float32, (kv_heads, meta["context"], dim))
    v = read("v.bin", torch.float32, (kv_heads, meta["context"], dim))
    reference = read("reference.bin", torch.float64, (len(meta["reference_rows"]), heads, dim))
    repeat = heads // kv_heads
    return q, k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0), reference


def dense(q, k, v, first, ridge, scale):
    """Rows `first..` of one head: q [rows, dim], k and v [context, dim]."""
    rows, dim = q.shape
    visible = torch.arange(k.shape[0], device=q.device)[None, :] <= (first + torch.arange(rows, device=q.device))[:, None]
    scores = (q @ k.T * scale).masked_fill(~visible, -math.inf)
    w = torch.exp(scores - scores.max(1, keepdim=True).values)
    omega = w.sum(1)
    z = k[None] - q[:, None]
    mu = (w[:, None] @ z)[:, 0]
    sigma = (w[..., None] * z).transpose(1, 2) @ z
    sigma = sigma + (ridge * omega)[:, None, None] * torch.eye(dim, device=q.device)
    rho = torch.linalg.solve(sigma, mu)
    denominator = omega - (mu * rho).sum(1)
    return (w * (1 - (z @ rho[..., None])[..., 0])) @ v / denominator[:, None]


def forms(meta, device):
    """Name, and a function of q, k, v `[heads, .., dim]`, or a text that says why there is none."""
    ridge, scale = meta["ridge"], meta["scale"]
    rows, context, dim = meta["rows"], meta["context"], meta["dim"]
    offset = context - rows
    chunk = max(1, min(rows, 2**25 // (context * dim)))

    def whole(row_function):
        return lambda q, k, v: torch.stack([row_function(q[h], k[h], v[h], offset, ridge, scale) for h in range(len(q))])

    def chunked(row_function):
        def head(q, k, v):
            parts = range(0, rows, chunk)
            return torch.cat([row_function(q[i : i + chunk], k, v, offset + i, ridge, scale) for i in parts])

        return lambda q, k, v: torch.stack([head(q[h], k[h], v[h]) for h in range(len(q))])

    def sdpa(q, k, v):
        mask = torch.ones(rows, context, dtype=torch.bool, device=q.device).tril(offset) if offset else None
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale)[0]

    fits = 4 * rows * context * (2 * dim + 4) <= meta["dense_bytes"]
    too_large = "the tensor of differences would be too large"
    # Dynamic shapes would compile once more for the last chunk; whole sizes compile once each.
    compiled = torch.compile(dense, dynamic=False)
    yield "torch dense", whole(dense) if fits else too_large
    yield f"torch dense, {chunk} rows at a time", chunked(dense)
    yield "torch.compile dense", whole(compiled) if fits else too_large
    yield f"torch.compile dense, {chunk} rows at a time", chunked(compiled)
    yield "torch softmax attention", sdpa
    for name, entry in [("flash_lla", "flash_lla"), ("fla", None)]:
        try:
            module = importlib.import_module(name)
        except ImportError:
            yield name, "not installed"
            continue
        if device.type != "cuda":
            yield name, "installed, needs a GPU"
        elif entry is None or not hasattr(module, entry):
            yield name, "installed, has no local linear attention under a name that is known here"
        else:
            kernel = getattr(module, entry)
            lam = torch.full((len(range(meta["heads"])), rows), ridge, device=device)
            half = torch.bfloat16
            yield name, lambda q, k, v, kernel=kernel, lam=lam: kernel(q.to(half), k.to(half), v.to(half), lam).float()


def largest_error(output, reference, rows):
    got = output.double().cpu().transpose(0, 1)[rows]
    difference, length = (got - reference).norm(dim=-1), reference.norm(dim=-1)
    return (difference / length.clamp(min=0.05 * length.max().item())).max().item()


def resident(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None


def measure_peak(body, device):
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = body()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, output
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    output = body()
    return max(0, resident("VmHWM") - before), output


def main():
    folder = pathlib.Path(sys.argv[1])
    meta = json.loads((folder / "meta.json").read_text())
    device = torch.device(meta["device"])
    torch.set_num_threads(meta["threads"])
    q, k, v, reference = load(folder, meta)
    q, k, v = (tensor.to(device) for tensor in (q, k, v))

    def run(function):
        output = function(q, k, v)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return output

    found, ready = [], []
    with torch.no_grad():
        for name, function in forms(meta, device):
            row = {"name": name, "absent": None, "seconds": [], "peak_bytes": None, "error": None}
            found.append(row)
            if isinstance(function, str):
                row["absent"] = function
                continue
            try:
                output = run(function)
            except Exception as error:  # A form that cannot run must not hide the others.
                row["absent"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
                continue
            if name != "torch softmax attention":
                row["error"] = largest_error(output, reference, meta["reference_rows"])
            ready.append((row, function))
            del output
        for _ in range(meta["rounds"]):
            for row, function in ready:
                start = time.perf_counter()
                run(function)
                row["seconds"].append(time.perf_counter() - start)
        for row, function in ready:
            row["peak_bytes"], _ = measure_peak(lambda: function(q, k, v), device)
    for row in found:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
