#!/usr/bin/env python3
"""torch_peaks.py DEVICE full|small: the copy bandwidth and the bf16 matrix rate that PyTorch reaches,
as one line of JSON. Random data: products of zeros run faster than real ones. Best of several."""

import json
import sys
import time

import torch


def seconds(call, device, repeats):
    call()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return min(times)


def main():
    device, full = sys.argv[1], sys.argv[2] == "full"
    n, count = (8192, 1 << 32) if full else (256, 1 << 20)
    source = torch.empty(count, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device, 20)
    del source, target
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(a)
    product = seconds(lambda: torch.mm(a, b, out=out), device, 20)
    print(json.dumps({"copy_gbs": 2 * count / copy / 1e9, "gemm_tflops": 2 * n**3 / product / 1e12, "n": n}))


if __name__ == "__main__":
    main()
