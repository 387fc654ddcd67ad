"""Linear interpolation, NTK and YaRN without tuning. See scaling_without_tuning.sh."""

import argparse
import statistics
from pathlib import Path

import lab as lab_module
import small_model
from context_extension import loss, retrieval
from lab import Lab, ROOT, length_text, mean_and_deviation, plot, table

SCALINGS = {"none": [], "linear": ["linear"], "ntk": ["ntk"], "yarn": ["yarn"]}


def overrides(kind):
    if kind == "none":
        return []
    section = "model.rope.scaling."
    return [f"{section}type={kind}", f"{section}original_context={small_model.ORIGINAL}",
            f"{section}target_context={small_model.TARGET}"]


def measure(lab, kind, seed, plan):
    run = small_model.base(lab, plan, seed)
    keys = lab.evaluate("passkey", run, *overrides(kind), name=f"passkey_{kind}",
                        lengths=plan["lengths"], depths=plan["depths"], samples=plan["samples"],
                        seed=77)
    text = lab.evaluate("perplexity", run, *overrides(kind), name=f"perplexity_{kind}",
                        lengths=plan["lengths"], tokens=plan["text_tokens"])
    lab.say(f"measured {kind}, seed {seed}")
    return {"retrieval": retrieval(keys), "loss": loss(text)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, shorter")
    parser.add_argument("--folder", help="where runs are kept; default those of context_extension")
    options = parser.parse_args()
    plan = {"seeds": [1, 2, 3], "key_steps": 500, "base_steps": 200, "lengths": [256, 512, 1024, 2048], "depths": 5,
            "samples": 12, "text_tokens": 65536}
    if options.quick:
        plan |= {"seeds": [1], "key_steps": 400, "base_steps": 60, "samples": 8, "text_tokens": 16384}
    suffix = "_quick" if options.quick else ""
    folder = Path(options.folder or ROOT / "runs" / "experiments" / f"context_extension{suffix}")
    lab = Lab(folder)  # the base is that of context_extension
    out = folder if options.quick else ROOT / "docs" / "experiments"
    out.mkdir(parents=True, exist_ok=True)
    lab.text()
    lab.together([lambda s=s: small_model.base(lab, plan, s) for s in plan["seeds"]])
    places = [(kind, seed) for seed in plan["seeds"] for kind in SCALINGS]
    results = dict(zip(places, lab.together(
        [lambda k=k, s=s: measure(lab, k, s, plan) for k, s in places])))
    header = ["scaling", *[length_text(n) for n in plan["lengths"]]]
    text = "# Rotary scaling without tuning: PI, NTK, YaRN\n\n"
    text += f"Command: `scripts/experiments/scaling_without_tuning.sh{' --quick' if suffix else ''}`. "
    text += f"Hardware: {lab_module.hardware()}.\n\n"
    text += (f"The base of [context_extension.md](context_extension.md): 2 layers x 128, trained at 256 "
             f"tokens for {plan['key_steps'] + plan['base_steps']} steps, evaluated as it is with `model.rope.scaling` "
             f"for 2048 tokens (factor 8). Seeds: {plan['seeds']}.\n")
    for what, title, digits, limits in (("retrieval", "share of passkeys found", 2, "0:1.05"),
                                        ("loss", "nats per byte of held-out text", 3, "")):
        rows = [[kind, *[mean_and_deviation([results[kind, s][what][n] for s in plan["seeds"]], digits)
                         for n in plan["lengths"]]] for kind in SCALINGS]
        text += f"\n## {title[0].upper() + title[1:]}\n\n" + table(header, rows)
        series = {kind: [(n, statistics.mean(results[kind, s][what][n] for s in plan["seeds"]))
                         for n in plan["lengths"]] for kind in SCALINGS}
        name = f"scaling_without_tuning_{what}.svg"
        if plot(out / name, "Rotary scaling without tuning", "context (tokens)", title, series,
                log_x=True, y_range=limits):
            text += f"\n![{title}]({name})\n"
    reading = ROOT / "docs" / "experiments" / "scaling_without_tuning.reading.md"
    if not options.quick and reading.exists():
        text += "\n" + reading.read_text()
    (out / "scaling_without_tuning.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
