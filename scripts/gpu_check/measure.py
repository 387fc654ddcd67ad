"""Peaks and attention: Farspan's benchmark programs, with PyTorch beside them."""

import json
import sys
from pathlib import Path

from runner import Failure
from tests import as_json

HERE = Path(__file__).resolve().parent


def torch_peaks(check):
    """{copy_gbs, gemm_tflops} that PyTorch reaches; None without it."""
    if not check.facts.get("torch"):
        check.say("PyTorch cannot be imported here: its peaks are missing.")
        return None
    size = "small" if not check.on_gpu else "full"
    result = check.run([sys.executable, HERE / "torch_peaks.py", check.device, size], "peaks.torch", limit=40)
    found = as_json(result.output)
    if not result.ok or not found:
        check.fail(result.why())
        return None
    return found[-1]


def benchmark_rows(text):
    """Context and rows of a google-benchmark program that ran with --benchmark_format=json."""
    begin = text.find("{\n" if "{\n" in text else "{")
    if begin < 0:
        return {}, []
    whole = json.JSONDecoder().raw_decode(text[begin:])[0]
    return whole["context"], whole["benchmarks"]


def peaks(check):
    theirs = torch_peaks(check)
    if theirs:
        check.facts["gemm_tflops"], check.facts["copy_gbs"] = theirs["gemm_tflops"], theirs["copy_gbs"]
        check.table(["PyTorch's best of several", "reached"],
                    [["device-to-device copy, bytes read and written", f"{theirs['copy_gbs']:,.0f} GB/s"],
                     [f"bf16 product {theirs['n']}^3, random data", f"{theirs['gemm_tflops']:,.1f} TFLOP/s"]])
    program = check.need("bench_kernels")
    options = ["--benchmark_format=json", "--benchmark_min_time=0.02"]
    if check.on_gpu:
        options.append("--device=cuda")
    elif check.quick or not check.on_gpu:
        options.append("--benchmark_filter=copy|fill|add")
    result = check.run([program, *options], "peaks.bench_kernels", limit=check.left())
    try:
        context, found = benchmark_rows(result.output)
    except (ValueError, KeyError):
        context, found = {}, []
    if not result.ok or not found:
        raise Failure(result.why())
    rows = []
    for row in found:
        rate = {key: value for key, value in row.items() if key.endswith("/s") and isinstance(value, float)}
        if "error_message" in row:
            check.fail(f"{row['name']}: {row['error_message']}")
            continue
        share = ""
        if "GB/s" in rate and check.facts.get("copy_gbs"):
            share = f"{100 * rate['GB/s'] / check.facts['copy_gbs']:.0f}% of the copy"
        elif "GFLOP/s" in rate and check.facts.get("gemm_tflops"):
            share = f"{rate['GFLOP/s'] / 10 / check.facts['gemm_tflops']:.0f}% of the product"
        rows.append([row["name"], f"{row['real_time']:,.1f} {row['time_unit']}",
                     ", ".join(f"{value:,.1f} {key}" for key, value in rate.items()), share])
    own = [f"{label} {context[key]}" for key, label in
           (("copy", "copies at"), ("product_bf16_8192", "the bf16 product of 8192^3 at")) if key in context]
    if own:
        check.say("Farspan itself: " + ", ".join(own) + ".")
    check.table(["bench_kernels", "time", "rate", "of PyTorch's peak"], rows)


def attention(check):
    script = check.root / "scripts" / "bench_gpu_vs_torch.py"
    if check.on_gpu and check.facts.get("torch") and script.exists():
        return beside_torch(check, script)
    if check.on_gpu:
        check.say("Without PyTorch, or without scripts/bench_gpu_vs_torch.py: Farspan alone.")
    command = [check.need("bench_attention"), "--json", "--mask", "causal"]
    if check.on_gpu:
        command += ["--device", "cuda", "--q-heads", "64", "--kv-heads", "8", "--head-dim", "128",
                    "--tokens", "8192,32768"]
    else:
        command += ["--tokens", "256,512", "--repeat", "2", "--threads", "1"]
    result = check.run(command, "attention", limit=check.left())
    rows = as_json(result.output)
    if not result.ok or not rows:
        raise Failure(result.why())
    keys = [key for key, value in rows[0].items() if isinstance(value, (int, float, str))]
    check.table(keys, [[f"{row[key]:,.4g}" if isinstance(row.get(key), float) else row.get(key, "") for key in keys]
                       for row in rows])
    return None


def beside_torch(check, script):
    table = check.raw / "attention.md"
    command = [sys.executable, script, "--program", check.need("bench_attention"), "--out", table]
    if check.quick:
        command.append("--quick")
    result = check.run(command, "attention", limit=check.left())
    if table.exists():
        text = table.read_text()
        check.say("\n".join(line for line in text.splitlines() if not line.startswith("# ")).strip())
    if not result.ok or not table.exists():
        raise Failure(result.why())
