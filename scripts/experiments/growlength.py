"""GrowLength against fixed length, at equal tokens and at equal time. See growlength.sh."""

import argparse
import json
import statistics
from pathlib import Path

import lab as lab_module
from lab import Lab, ROOT, length_text, mean_and_deviation, metrics, plot, table

SHORTEST, LONGEST = 256, 8192
BATCH = 65536
LAYERS, WIDTH = 2, 64


def config(lab, steps, seed, growing):
    text, held_out = lab.text()
    curriculum = {"type": "growlength", "min_length": SHORTEST} if growing else {"type": "fixed"}
    return {"seed": seed,
            "model": {"vocab_size": 260, "hidden_size": WIDTH, "intermediate_size": 176,
                      "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2,
                      "head_dim": 32, "tie_word_embeddings": True, "initializer_range": 0.05,
                      "rope": {"theta": 100000}},
            "data": {"train": [{"path": str(text)}], "validation": str(held_out),
                     "documents": "joined"},
            "train": {"sequence_length": LONGEST, "batch_tokens": BATCH, "steps": steps,
                      "precision": "fp32"},
            "optimizer": {"lr": 2.0e-3, "weight_decay": 0.1},
            "schedule": {"type": "cosine", "warmup": max(2, steps // 20)},
            "parallel": {"data": 1, "context": 1}, "curriculum": curriculum,
            "logging": {"every": 1, "tensorboard": False}}


def seconds(run):
    return sum(row["seconds"] for row in metrics(run))


def final_loss(lab, run):
    """Nats per byte of held-out text in windows of LONGEST tokens."""
    result = lab.evaluate("perplexity", run, lengths=[LONGEST], tokens=131072, threads=lab_module.cores())
    return result["cells"][0]["nll"]


def flops(length, parameters):
    """Of one token, forward and backward: matmul and causal attention (page 3 of the design: 6 N and
    6 layers x width x length)."""
    return 6.0 * parameters, 6.0 * LAYERS * WIDTH * length


def fit_rates(points):
    """Least squares of t = matmul / x + attention / y over [(matmul, attention, t)], weighing relative
    errors; the two rates."""
    a11 = a12 = a22 = b1 = b2 = 0.0
    for matmul, attention, t in points:
        u, v = matmul / t, attention / t
        a11, a12, a22, b1, b2 = a11 + u * u, a12 + u * v, a22 + v * v, b1 + u, b2 + v
    det = a11 * a22 - a12 * a12
    return det / (b1 * a22 - b2 * a12), det / (b2 * a11 - b1 * a12)


def time_by_length(run):
    """Rows (length, seconds per token measured, modelled, deviation), and the two rates."""
    parameters = json.loads((run / "summary.json").read_text())["parameters"]
    by_length = {}
    for row in metrics(run):
        by_length.setdefault(row["sequence_length"], []).append(row["seconds"] / BATCH)
    medians = {n: statistics.median(t) for n, t in by_length.items()}
    rates = fit_rates([(*flops(n, parameters), t) for n, t in medians.items()])
    rows = []
    for n, t in sorted(medians.items()):
        modelled = sum(work / rate for work, rate in zip(flops(n, parameters), rates))
        rows.append((n, t, modelled, modelled / t - 1))
    return rows, rates


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, shorter")
    parser.add_argument("--folder", help="where runs are kept; default runs/experiments/...")
    options = parser.parse_args()
    seeds, steps = ([1], 12) if options.quick else ([1, 2, 3], 40)
    suffix = "_quick" if options.quick else ""
    folder = Path(options.folder or ROOT / "runs" / "experiments" / f"growlength{suffix}")
    out = folder if options.quick else ROOT / "docs" / "experiments"
    lab = Lab(folder)
    out.mkdir(parents=True, exist_ok=True)
    threads = lab_module.cores()
    # One run at a time: they are timed.
    results, first = {}, {}
    for seed in seeds:
        fixed = lab.train(f"fixed_{seed}", config(lab, steps, seed, False), threads)
        tokens = lab.train(f"grow_tokens_{seed}", config(lab, steps, seed, True), threads)
        more = max(steps, round(steps * seconds(fixed) / seconds(tokens)))
        equal = lab.train(f"grow_time_{seed}", config(lab, more, seed, True), threads)
        for arm, run in (("fixed", fixed), ("grow, equal tokens", tokens), ("grow, equal time", equal)):
            results.setdefault(arm, []).append(
                {"loss": final_loss(lab, run), "seconds": seconds(run),
                 "tokens": metrics(run)[-1]["tokens"], "run": run})
            first.setdefault(arm, run)
    rows = [[arm, f"{r[0]['tokens'] / 1e6:.2f}M" if len({x['tokens'] for x in r}) == 1 else
             " / ".join(f"{x['tokens'] / 1e6:.2f}M" for x in r),
             mean_and_deviation([x["seconds"] for x in r], 1),
             mean_and_deviation([x["loss"] for x in r], 4)] for arm, r in results.items()]
    text = "# GrowLength against fixed length\n\n"
    text += f"Command: `scripts/experiments/growlength.sh{' --quick' if suffix else ''}`. "
    text += f"Hardware: {lab_module.hardware()}; one run at a time on all cores.\n\n"
    text += (f"A Llama of {LAYERS} layers x {WIDTH} (bytes, fp32) on the King James Bible, chapters joined, "
             f"{BATCH} tokens a step. Fixed: {steps} steps at {LONGEST} tokens. Growing: {SHORTEST} to "
             f"{LONGEST} tokens, doubling, equal shares of the tokens (GrowLength, arXiv 2310.00576); once "
             f"with the same tokens, once with as many as the fixed run's time allows. Held-out loss: nats "
             f"per byte in disjoint windows of {LONGEST}. Seeds: {seeds}.\n\n")
    text += table(["arm", "tokens", "seconds of training", "held-out loss"], rows)
    series = {}
    for arm, run in first.items():
        points, at = [], 0.0
        for row in metrics(run):
            at += row["seconds"]
            points.append((at, row["loss"]))
        series[arm] = points
    if plot(out / "growlength_loss.svg", "Training loss against time, seed 1", "seconds of training",
            "nats per byte", series):
        text += "\n![training loss against time](growlength_loss.svg)\n"
    timing, rates = time_by_length(first["grow, equal time"])
    worst = max(abs(row[3]) for row in timing)
    text += "\n## Time per token at each length\n\n"
    text += (f"Model: 6 N / matmul rate + 6 layers x width x length / attention rate; both rates fitted to "
             f"this run ({rates[0] / 1e9:.1f} and {rates[1] / 1e9:.1f} GFLOP/s), medians over a stage's "
             f"steps. Largest deviation {100 * worst:.0f}%.\n\n")
    text += table(["length", "measured, µs", "modelled, µs", "deviation"],
                  [[length_text(n), f"{t * 1e6:.2f}", f"{m * 1e6:.2f}", f"{100 * d:+.0f}%"]
                   for n, t, m, d in timing])
    reading = ROOT / "docs" / "experiments" / "growlength.reading.md"
    if not options.quick and reading.exists():
        text += "\n" + reading.read_text()
    (out / "growlength.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
