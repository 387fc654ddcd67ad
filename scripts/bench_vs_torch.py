#!/usr/bin/env python3
"""PyTorch against Farspan on this machine's CPU: attention alone, and whole training steps.

    scripts/setup.sh --bench                     PyTorch, in an environment of its own
    scripts/bench_vs_torch.py --out docs/benchmarks/cpu_vs_torch.md

Both train the same Llama-like model (6 layers x 512, 8 query and 4 key/value heads, SwiGLU 1408,
260 tokens, tied head, causal) one sequence a step with AdamW and clipping, in fp32 and in bf16 (bf16
weights and activations, fp32 master weights and moments). Both use the same number of threads and
take turns in one run; medians over all turns, with the range of the turns' medians. PyTorch is
represented by the fastest of its variants for each row: attention written out, its
scaled_dot_product_attention with and without enable_gqa, and torch.compile.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "farspan" / "bench"

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    interpreter = VENV / "bin" / "python"
    if interpreter.exists() and Path(sys.prefix) != VENV:
        os.execv(interpreter, [str(interpreter), *sys.argv])
    sys.exit("bench_vs_torch: PyTorch is not installed; run scripts/setup.sh --bench")

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN, VOCAB = 6, 512, 8, 4, 1408, 260
HEAD_DIM = HIDDEN // HEADS
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Written-out attention holds heads x S x S scores for each layer.
WRITTEN_OUT_LIMIT = 4096
# A variant this much slower than the best of its row after the first turn is not timed again.
HOPELESS = 1.5


# ---- PyTorch -------------------------------------------------------------------------------------


def attention_written_out(q, k, v):
    """q (B, Hq, S, D), k and v (B, Hkv, S, D): softmax(q k^T) v with explicit scores."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    s = q.shape[2]
    hidden = torch.ones(s, s, dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), -1, dtype=torch.float32).to(
        q.dtype) @ v


def attention_sdpa(q, k, v):
    group = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1),
                                          v.repeat_interleave(group, 1), is_causal=True)


def attention_sdpa_gqa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


ATTENTIONS = {"written out": attention_written_out, "SDPA": attention_sdpa,
              "SDPA, enable_gqa": attention_sdpa_gqa}


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = torch.nn.RMSNorm(HIDDEN, eps=1e-5)
        self.qkv = torch.nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.out = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.norm2 = torch.nn.RMSNorm(HIDDEN, eps=1e-5)
        self.gate_up = torch.nn.Linear(HIDDEN, 2 * FFN, bias=False)
        self.down = torch.nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x, cos, sin, attention):
        b, s, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, s, HEADS + 2 * KV_HEADS, HEAD_DIM).transpose(1, 2)
        q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], 1)
        a = attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.out(a.transpose(1, 2).reshape(b, s, HIDDEN))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Llama(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCAB, HIDDEN)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = torch.nn.RMSNorm(HIDDEN, eps=1e-5)
        for p in self.parameters():
            if p.dim() > 1:
                torch.nn.init.normal_(p, std=0.02)

    def forward(self, tokens, labels, cos, sin, attention):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, attention)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


class TorchStep:
    """Training steps of one variant; .run(n) returns seconds of each."""

    def __init__(self, dtype, tokens, attention, compiled):
        torch.manual_seed(1)
        self.dtype = DTYPES[dtype]
        self.model = Llama().to(self.dtype)
        self.working = list(self.model.parameters())
        self.masters = self.working if dtype == "fp32" else [
            p.detach().float().requires_grad_() for p in self.working]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-3, betas=(0.9, 0.95), eps=1e-8,
                                           weight_decay=0.1, fused=True)
        angles = torch.outer(torch.arange(tokens, dtype=torch.float64), 10000.0 ** (
            -torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM))
        self.cos, self.sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        self.data = torch.randint(0, VOCAB, (1, tokens + 1))
        self.attention = attention
        self.loss = torch.compile(self.model, dynamic=False) if compiled else self.model

    def step(self):
        loss = self.loss(self.data[:, :-1], self.data[:, 1:], self.cos, self.sin, self.attention)
        loss.backward()
        if self.masters is not self.working:
            for master, p in zip(self.masters, self.working):
                master.grad = p.grad.float()
                p.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.masters is not self.working:
            with torch.no_grad():
                torch._foreach_copy_(self.working, self.masters)

    def run(self, count):
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - begin)
        return times


def parameters_of_torch():
    return sum(p.numel() for p in Llama().parameters())


def torch_attention(dtype, tokens, name, repeat):
    """Seconds of `repeat` forward and backward passes, after one to warm up."""
    shape = [(1, h, tokens, HEAD_DIM) for h in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (torch.randn(s).to(DTYPES[dtype]).requires_grad_() for s in shape)
    gradient = torch.randn(shape[0]).to(DTYPES[dtype])
    forward, backward = [], []
    for i in range(repeat + 1):
        begin = time.perf_counter()
        out = ATTENTIONS[name](q, k, v)
        middle = time.perf_counter()
        torch.autograd.grad(out, (q, k, v), gradient)
        if i > 0:
            forward.append(middle - begin)
            backward.append(time.perf_counter() - middle)
        del out
    return forward, backward


# ---- Farspan -------------------------------------------------------------------------------------


def call(command, threads):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    if result.returncode != 0:
        sys.exit(f"bench_vs_torch: {' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def farspan_attention(options, dtype, tokens, repeat):
    found = json.loads(call(
        [options.build / "bench_attention", "--q-heads", HEADS, "--kv-heads", KV_HEADS, "--head-dim",
         HEAD_DIM, "--tokens", tokens, "--dtype", dtype, "--threads", options.threads, "--mask",
         "causal", "--repeat", repeat, "--json"], options.threads))
    return found["forward_seconds_median"], found["backward_seconds_median"], found["isa"]


CONFIG = """
name: bench
output_dir: {folder}/run
model: {{vocab_size: {vocab}, hidden_size: {hidden}, intermediate_size: {ffn},
  num_hidden_layers: {layers}, num_attention_heads: {heads}, num_key_value_heads: {kv_heads},
  tie_word_embeddings: true}}
data: {{train: [{{path: {store}}}], documents: joined}}
train: {{sequence_length: {tokens}, batch_tokens: {tokens}, steps: {steps}, precision: {dtype}}}
optimizer: {{lr: 1.0e-3, weight_decay: 0.1, grad_clip: 1.0}}
schedule: {{type: constant}}
parallel: {{data: 1, context: 1}}
evaluation: {{every: 0}}
logging: {{every: 1, tensorboard: false}}
"""


def farspan_step(options, folder, dtype, tokens, count):
    """Seconds of each of `count` steps after two to warm up, the parameters, the device's words."""
    store = folder / f"markov_{tokens}.h5"
    if not store.exists():
        call([options.build / "farspan", "data", "synth", "--kind", "markov", "--tokens",
              tokens * 64, "--length", tokens, "--vocab-size", VOCAB, "--out", store, "--quiet"],
             options.threads)
    config = folder / "bench.yaml"
    config.write_text(CONFIG.format(folder=folder, vocab=VOCAB, hidden=HIDDEN, ffn=FFN,
                                    layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, store=store,
                                    tokens=tokens, steps=count + 2, dtype=dtype))
    shutil.rmtree(folder / "run", ignore_errors=True)
    call([options.build / "farspan", "train", config, "--quiet"], options.threads)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    seconds = [r["tokens"] and tokens / r["tokens_per_second"] for r in rows if r["kind"] == "train"]
    summary = json.loads((folder / "run" / "summary.json").read_text())
    if len(seconds) != count + 2:
        sys.exit(f"bench_vs_torch: {len(seconds)} steps in metrics.jsonl, {count + 2} expected")
    return seconds[2:], summary["parameters"], summary["device"]


# ---- Turns and the report ------------------------------------------------------------------------


class Row:
    """One line of a table: medians of each turn for Farspan and for every variant of PyTorch."""

    def __init__(self, *labels):
        self.labels = labels
        self.farspan, self.torch = [], {}

    def best(self):
        """(variant, its turns), the fastest by the median of its turns."""
        return min(self.torch.items(), key=lambda item: statistics.median(item[1]))

    def worth_timing(self, variant):
        if variant not in self.torch or len(self.torch) == 1:
            return True
        return min(self.torch[variant]) < HOPELESS * min(min(t) for t in self.torch.values())


def spread(turns, scale, form):
    values = sorted(scale / t for t in turns)
    return f"{form(statistics.median(values))} ({form(values[0])}–{form(values[-1])})"


def markdown(rows, header, unit, scale_of, form):
    lines = [f"| {' | '.join(header)} | Farspan, {unit} | PyTorch, {unit} | PyTorch's best variant "
             "| Farspan / PyTorch |", "|" + " --- |" * (len(header) + 4)]
    for row in rows:
        name, turns = row.best()
        ratio = statistics.median(turns) / statistics.median(row.farspan)
        lines.append(f"| {' | '.join(row.labels)} | {spread(row.farspan, scale_of(row), form)} | "
                     f"{spread(turns, scale_of(row), form)} | {name} | **{ratio:.2f}x** |")
    return "\n".join(lines) + "\n"


def length_text(tokens):
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def progress(*words):
    print(f"[{time.strftime('%H:%M:%S')}]", *words, file=sys.stderr, flush=True)


def bench_attention(options):
    rows = []
    for dtype in options.dtypes:
        for tokens in options.tokens:
            forward = Row("forward", dtype, length_text(tokens))
            backward = Row("backward", dtype, length_text(tokens))
            both = Row("forward + backward", dtype, length_text(tokens))
            for turn in range(options.rounds):
                f, b, options.isa = farspan_attention(options, dtype, tokens, options.repeat)
                forward.farspan.append(f), backward.farspan.append(b), both.farspan.append(f + b)
                for name in ATTENTIONS:
                    if name == "written out" and tokens > WRITTEN_OUT_LIMIT:
                        continue
                    if not (forward.worth_timing(name) or backward.worth_timing(name)):
                        continue
                    fs, bs = torch_attention(dtype, tokens, name, options.repeat)
                    f, b = statistics.median(fs), statistics.median(bs)
                    for row, t in ((forward, f), (backward, b), (both, f + b)):
                        row.torch.setdefault(name, []).append(t)
                progress("attention", dtype, tokens, f"turn {turn + 1}: Farspan",
                         f"{1e3 * forward.farspan[-1]:.1f} + {1e3 * backward.farspan[-1]:.1f} ms,",
                         {n: f"{1e3 * forward.torch[n][-1]:.1f} + {1e3 * backward.torch[n][-1]:.1f}"
                          for n in forward.torch})
            rows += [forward, backward, both]
    for row in rows:
        row.tokens = next(t for t in options.tokens if length_text(t) == row.labels[2])
    flops = {"forward": 4, "backward": 10, "forward + backward": 14}
    return markdown(rows, ["pass", "dtype", "tokens"], "GFLOP/s",
                    lambda r: 1e-9 * flops[r.labels[0]] * HEADS * HEAD_DIM * r.tokens
                    * (r.tokens + 1) / 2, lambda v: f"{v:.0f}")


def step_variants(options, tokens):
    variants = {f"eager, {name}": (name, False) for name in ATTENTIONS
                if name != "written out" or tokens <= WRITTEN_OUT_LIMIT}
    if options.compile:
        variants |= {f"torch.compile, {n}": (n, True) for n in ("SDPA", "SDPA, enable_gqa")}
    return variants


def torch_turn(row, options, dtype, tokens, count):
    for name, (attention, compiled) in step_variants(options, tokens).items():
        if not row.worth_timing(name) or name in options.broken:
            continue
        try:
            step = TorchStep(dtype, tokens, ATTENTIONS[attention], compiled)
            step.run(2)  # warms up, compiles
            row.torch.setdefault(name, []).append(statistics.median(step.run(count)))
        except Exception as e:  # a variant that does not work here must not end the comparison
            options.broken[name] = f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"
            progress(name, "does not work:", options.broken[name])
        finally:
            step = None
            gc.collect()


def bench_step(options):
    rows = []
    with tempfile.TemporaryDirectory(prefix="farspan_bench.") as name:
        folder = Path(name)
        for dtype in options.dtypes:
            for tokens in options.tokens:
                row = Row(dtype, length_text(tokens))
                row.tokens = tokens
                count = options.steps if tokens <= 4096 else max(2, options.steps // 2)
                for turn in range(options.rounds):
                    seconds, parameters, options.device = farspan_step(options, folder, dtype,
                                                                       tokens, count)
                    if parameters != parameters_of_torch():
                        sys.exit(f"bench_vs_torch: {parameters} parameters in Farspan, "
                                 f"{parameters_of_torch()} in PyTorch: not the same model")
                    row.farspan.append(statistics.median(seconds))
                    torch_turn(row, options, dtype, tokens, count)
                    progress("step", dtype, tokens, f"turn {turn + 1}: Farspan",
                             f"{tokens / row.farspan[-1]:.0f} tokens/s,",
                             {n: f"{tokens / t[-1]:.0f}" for n, t in row.torch.items()})
                rows.append(row)
    return markdown(rows, ["dtype", "tokens"], "tokens/s", lambda r: r.tokens,
                    lambda v: f"{v:,.0f}")


def machine():
    text = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in text.splitlines()
                  if line.startswith("model name")), platform.machine())
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    known = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    return f"{model}, {len(os.sched_getaffinity(0))} hardware threads, {' '.join(known)}"


def lengths(text):
    return [int(t[:-1]) * 1024 if t.endswith("k") else int(t) for t in text.split(",")]


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--tokens", type=lengths, default=[2048, 8192], help="such as 2k,8k")
    parser.add_argument("--dtypes", type=lambda t: t.split(","), default=["bf16", "fp32"])
    parser.add_argument("--only", choices=["attention", "step"], help="one of the two tables")
    parser.add_argument("--repeat", type=int, default=5, help="attention: passes a turn")
    parser.add_argument("--steps", type=int, default=6, help="steps a turn (half from 8k on)")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cpu")
    parser.add_argument("--out", type=Path, help="markdown file; default: standard output")
    options = parser.parse_args()
    for program in ("farspan", "bench_attention"):
        if not (options.build / program).exists():
            sys.exit(f"bench_vs_torch: {options.build / program} is not built; run "
                     "cmake --preset cpu && cmake --build --preset cpu")
    options.build = options.build.resolve()
    options.isa, options.device, options.broken = "", "", {}
    return options


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    command = "scripts/bench_vs_torch.py " + " ".join(sys.argv[1:])
    parts = []
    if options.only != "step":
        parts.append("## Attention alone\n\nModel FLOPs (4 D per visible pair forward, 10 D backward) "
                     "over time.\n\n" + bench_attention(options))
    if options.only != "attention":
        parts.append("## Training step\n\nForward, backward, clipping and AdamW; one sequence a "
                     "step.\n\n" + bench_step(options))
    version = call([options.build / "farspan", "--version"], options.threads).strip()
    broken = "".join(f"* {n} did not work: {why}\n" for n, why in options.broken.items())
    text = f"""# Farspan against PyTorch on a CPU

    {command.strip()}

* {machine()}; {options.threads} threads for each; load average before the run {load:.1f}
* Farspan {version}{', ' + options.isa + ' attention' if options.isa else ''}{'; ' + options.device if options.device else ''}
* PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; {datetime.date.today()}
* {options.rounds} turns, interleaved. Each figure is the median of the turns, with their range.
{broken}
{LAYERS} layers x {HIDDEN}, {HEADS} query and {KV_HEADS} key/value heads of {HEAD_DIM}, SwiGLU {FFN}, {VOCAB} tokens, causal.

""" + "\n".join(parts)
    if options.out:
        options.out.write_text(text)
        progress("wrote", options.out)
    else:
        print(text)


if __name__ == "__main__":
    main()
