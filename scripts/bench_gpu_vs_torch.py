#!/usr/bin/env python3
"""PyTorch's attention beside Farspan's on one GPU: one table of forward and backward.

    scripts/setup.sh --bench                      PyTorch, in an environment of its own
    cmake --preset cuda && cmake --build --preset cuda --target bench_attention
    scripts/bench_gpu_vs_torch.py --out docs/benchmarks/gpu_attention.md

Causal, bf16, 64 query and 8 key/value heads, head dims 64 and 128, 4k to 64k tokens. Farspan: its own
kernels, whose gradients repeat bit by bit, and cuDNN through Farspan. PyTorch:
scaled_dot_product_attention with its cuDNN and its flash backend. Medians of events around single
calls, random data; FLOPs of visible pairs (4 D forward, 10 D backward each). Without a GPU, or without
PyTorch, it says what is missing and exits with 2.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "farspan" / "bench"
Q_HEADS, KV_HEADS = 64, 8
COLUMNS = ("farspan own", "farspan cudnn", "torch cudnn", "torch flash")


def missing(what):
    print(f"bench_gpu_vs_torch: {what}", file=sys.stderr)
    sys.exit(2)


try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:
    interpreter = VENV / "bin" / "python"
    if interpreter.exists() and Path(sys.prefix) != VENV:
        os.execv(interpreter, [str(interpreter), *sys.argv])
    missing("PyTorch is not installed; run scripts/setup.sh --bench")


# ---- PyTorch -------------------------------------------------------------------------------------


def median_seconds(call, repeat):
    times = []
    for i in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def torch_rates(backend, tokens, head_dim, repeat):
    """{forward, backward: TFLOP/s}, or {refused: why}."""
    def draw(heads):
        # (1, H, S, D) over memory in the order (S, H, D), which is Farspan's too.
        x = torch.randn(1, tokens, heads, head_dim, device="cuda", dtype=torch.bfloat16)
        return x.transpose(1, 2).detach().requires_grad_()

    try:
        q, k, v = draw(Q_HEADS), draw(KV_HEADS), draw(KV_HEADS)
        upstream = torch.randn_like(q)
        out = None

        def forward():
            nonlocal out
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def backward():
            torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True)

        with sdpa_kernel([backend]):
            seconds = median_seconds(forward, repeat), median_seconds(backward, repeat)
    except RuntimeError as error:  # no kernel of this backend, or no memory
        return {"refused": str(error).splitlines()[0]}
    pairs = tokens * (tokens + 1) / 2 * Q_HEADS * head_dim
    return {"forward": 4 * pairs / seconds[0] / 1e12, "backward": 10 * pairs / seconds[1] / 1e12}


# ---- Farspan -------------------------------------------------------------------------------------


def find_program(given):
    for path in (given, ROOT / "bin" / "bench_attention", ROOT / "build" / "cuda" / "bench_attention"):
        if path and Path(path).is_file():
            return Path(path)
    return missing("no bench_attention; build it: cmake --preset cuda && cmake --build --preset cuda "
                   "--target bench_attention")


def farspan_rows(program, kernel, head_dim, lengths, repeat):
    """{tokens: {forward, backward: TFLOP/s, or refused}}."""
    command = [str(program), "--device", "cuda", "--json", "--mask", "causal", "--kernel", kernel,
               "--q-heads", Q_HEADS, "--kv-heads", KV_HEADS, "--head-dim", head_dim,
               "--tokens", ",".join(map(str, lengths)), "--repeat", repeat]
    if kernel == "cudnn":
        command.append("--any-order")
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode != 0:
        print(f"bench_gpu_vs_torch: {' '.join(map(str, command))}\n{result.stderr.strip()}",
              file=sys.stderr)
        sys.exit(result.returncode)
    rows = {}
    for line in result.stdout.splitlines():
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        rates = {p: row[f"{p}_gflops"] / 1e3 for p in ("forward", "backward") if f"{p}_gflops" in row}
        refused = [row[key] for key in ("forward_refused", "backward_refused") if key in row]
        if refused:
            rates["refused"] = refused[0]
        rows[row["tokens"]] = rates
        rows["matmul"] = row["matmul_gflops"] / 1e3
    return rows


# ---- The table -----------------------------------------------------------------------------------


def measure(arguments, program):
    lengths = arguments.tokens
    cells, reasons, matmul = {}, [], None
    for head_dim in arguments.head_dim:
        for kernel in ("own", "cudnn"):
            rows = farspan_rows(program, kernel, head_dim, lengths, arguments.repeat)
            matmul = rows.pop("matmul", matmul)
            for tokens, rates in rows.items():
                cells[head_dim, tokens, f"farspan {kernel}"] = rates
        for name, backend in (("torch cudnn", SDPBackend.CUDNN_ATTENTION),
                              ("torch flash", SDPBackend.FLASH_ATTENTION)):
            for tokens in lengths:
                cells[head_dim, tokens, name] = torch_rates(backend, tokens, head_dim,
                                                            arguments.repeat)
                torch.cuda.empty_cache()
    for (head_dim, tokens, name), rates in cells.items():
        if "refused" in rates:
            reasons.append(f"{name}, head dim {head_dim}, {tokens} tokens: {rates['refused']}")
    return cells, reasons, matmul


def text_of(arguments, cells, reasons, matmul):
    props = torch.cuda.get_device_properties(0)
    cudnn = torch.backends.cudnn.version()
    revision = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD"],
                              capture_output=True, text=True).stdout.strip() or "unknown"
    lines = ["# Attention on a GPU, beside PyTorch", "",
             f"{props.name}, {datetime.date.today()}, commit {revision}. `scripts/bench_gpu_vs_torch.py`: "
             f"causal, bf16, {Q_HEADS}/{KV_HEADS} heads, TFLOP/s of visible pairs, forward / backward, "
             f"medians of {arguments.repeat}. PyTorch {torch.__version__} with cuDNN {cudnn}."]
    if matmul:
        lines.append(f"A bf16 product of 8192^3 in the same run: {matmul:.1f} TFLOP/s.")
    lines += ["", "| head dim | tokens | " + " | ".join(COLUMNS) + " |",
              "|---:|---:|" + "---|" * len(COLUMNS)]
    for head_dim in arguments.head_dim:
        for tokens in arguments.tokens:
            row = [cells.get((head_dim, tokens, name), {}) for name in COLUMNS]
            lines.append(f"| {head_dim} | {tokens} | " + " | ".join(
                " / ".join(f"{r[p]:.0f}" if p in r else "-" for p in ("forward", "backward"))
                for r in row) + " |")
    if reasons:
        lines += ["", "Not measured:", ""] + [f"* {reason}" for reason in reasons]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(n) for n in text.split(",")]
    parser.add_argument("--out", help="file for the table; default standard output")
    parser.add_argument("--program", help="bench_attention; default this tree's")
    parser.add_argument("--tokens", type=numbers, help="default 4096,8192,16384,32768,65536")
    parser.add_argument("--head-dim", type=numbers, help="default 64,128")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="head dim 128 at 8k and 32k")
    arguments = parser.parse_args()
    arguments.tokens = arguments.tokens or ([8192, 32768] if arguments.quick else
                                            [4096, 8192, 16384, 32768, 65536])
    arguments.head_dim = arguments.head_dim or ([128] if arguments.quick else [64, 128])
    if not torch.cuda.is_available():
        missing("PyTorch sees no GPU here (nvidia-smi; is this PyTorch built for CUDA?)")
    text = text_of(arguments, *measure(arguments, find_program(arguments.program)))
    if arguments.out:
        Path(arguments.out).write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
