"""Five arms of context extension, 256 to 2048 tokens. See context_extension.sh."""

import argparse
import statistics
from pathlib import Path

import lab as lab_module
import small_model
from lab import Lab, ROOT, length_text, mean_and_deviation, plot, table

# Linear scaling by 8 squeezes neighbouring tokens together, and looking up has to be learned once more. With
# the few answers that long passkeys hold it is not, in these steps; full length needs no scaling.
ARMS = {
    "full": "trained at 2048 tokens (passkeys of 256, 512, 1024 and 2048), no scaling: it sees all positions",
    "pose": "trained at 256 tokens, positions skip up to 2048 (PoSE, 2 chunks), linear scaling by 8",
    "randpos": "trained at 256 tokens, positions drawn from 2048 (RandPos), linear scaling by 8",
    "pi": "trained at 256 tokens, positions 0..255, linear scaling by 8 (PI)",
    "untuned": "the base, as it is",
}


ARM_TEXT_SHARE = 0.03  # of the samples; about half of the scored tokens


def train_arm(lab, arm, seed, plan):
    base = small_model.base(lab, plan, seed)
    if arm == "untuned":
        return base
    sampler = {"pose": "pose", "randpos": "randomized"}.get(arm)
    sections = {"model": {"from": str(base)}}
    if sampler:
        sections["positions"] = {"sampler": sampler, "original_context": small_model.ORIGINAL,
                                 "target_context": small_model.TARGET}
    length, scaling = (small_model.TARGET, None) if arm == "full" else (small_model.ORIGINAL, "linear")
    return lab.train(f"{arm}_{seed}", small_model.config(
        lab, plan["arm_steps"], seed + 1000, 2.0e-3, length, scaling, ARM_TEXT_SHARE, **sections))


def measure(lab, arm, seed, plan):
    run = train_arm(lab, arm, seed, plan)
    keys = lab.evaluate("passkey", run, lengths=plan["lengths"], depths=plan["depths"],
                        samples=plan["samples"], seed=77)
    text = lab.evaluate("perplexity", run, lengths=plan["lengths"], tokens=plan["text_tokens"])
    lab.say(f"measured {arm}, seed {seed}")
    return {"retrieval": retrieval(keys), "loss": loss(text)}


def retrieval(result):
    """Length -> share of keys found."""
    found = {}
    for cell in result["cells"]:
        found.setdefault(cell["length"], []).append(cell["accuracy"])
    return {length: statistics.mean(values) for length, values in found.items()}


def loss(result):
    """Length -> nats per byte."""
    return {row["length"]: row["nll"] for row in result["cells"]}


def rows_of(results, what, plan, digits):
    rows = []
    for arm in ARMS:
        row = [arm]
        for length in plan["lengths"]:
            row.append(mean_and_deviation([results[arm, s][what][length] for s in plan["seeds"]],
                                          digits))
        rows.append(row)
    return rows


def mean_of(results, arm, what, length, plan):
    return statistics.mean(results[arm, s][what][length] for s in plan["seeds"])


def far_retrieval(results, plan):
    """Arm -> mean share of keys found beyond the original context."""
    far = [n for n in plan["lengths"] if n > small_model.ORIGINAL]
    return {arm: statistics.mean(mean_of(results, arm, "retrieval", n, plan) for n in far)
            for arm in ARMS}


def verdict(far):
    """What the order of retrieval is, and whether it is the expected one."""
    order = sorted(far, key=far.get, reverse=True)
    text = "Retrieval beyond 256 tokens, mean over lengths, depths and seeds: " + ", ".join(
        f"{arm} {far[arm]:.2f}" for arm in order) + ".\n"
    chain = ["full", "pose", "pi", "untuned"]
    wrong = [(a, b) for i, (a, b) in enumerate(zip(chain, chain[1:]))
             if far[a] < far[b] or (i > 0 and far[a] == far[b])]
    if not wrong:
        return text + "This is the expected order: full >= PoSE > PI-contiguous > untuned.\n"
    return text + "Expected was full >= PoSE > PI-contiguous > untuned; it does not hold for " + \
        " and ".join(f"{a} against {b}" for a, b in wrong) + ".\n"


def page(results, plan, folder, pictures, lab):
    header = ["arm", *[length_text(n) for n in plan["lengths"]]]
    text = "# Context extension from 256 to 2048 tokens on a small model\n\n"
    text += f"Command: `scripts/experiments/context_extension.sh{' --quick' if plan['quick'] else ''}`. "
    text += f"Hardware: {lab_module.hardware()}.\n\n"
    text += ("A Llama of 2 layers x 128 (bytes), trained at 256 tokens for {key_steps} steps of 8192 tokens on "
             "passkeys and {base_steps} more with a share of the King James Bible; each arm starts from it with a new "
             "optimizer and trains {arm_steps} steps of 8192 tokens, lr 2e-3, cosine, bf16. Seeds: {seeds}. "
             "Retrieval: {depths} depths x {samples} passkeys for each length, all five digits and the "
             "end right, teacher-forced. Loss: nats per byte of held-out chapters in disjoint windows of each length, "
             "so that a byte's context is half of it on average, and ends at the start of its chapter.\n\n").format(**plan)
    text += table(["arm", "what it is"], [[f"`{arm}`", what] for arm, what in ARMS.items()])
    text += "\n## Retrieval: share of passkeys found\n\n"
    text += table(header, rows_of(results, "retrieval", plan, 2))
    text += "\n" + verdict(far_retrieval(results, plan))
    text += "\n## Loss on held-out text, nats per byte\n\n"
    text += table(header, rows_of(results, "loss", plan, 3))
    for name, title in pictures:
        text += f"\n![{title}]({name})\n"
    if len(plan["seeds"]) > 1:
        text += "\nNumbers after ± are standard deviations over the seeds.\n"
    (folder / "context_extension.md").write_text(text + plan["reading"])


def draw(results, plan, folder):
    pictures = []
    for what, label, limits in (("retrieval", "share of passkeys found", "0:1.05"),
                                ("loss", "nats per byte of held-out text", "")):
        series = {arm: [(n, mean_of(results, arm, what, n, plan)) for n in plan["lengths"]]
                  for arm in ARMS}
        name = f"context_extension_{what}.svg"
        if plot(folder / name, "From 256 to 2048 tokens, five ways", "context (tokens)", label, series,
                log_x=True, y_range=limits):
            pictures.append((name, label))
    return pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, shorter, under five minutes")
    parser.add_argument("--folder", help="where runs are kept; default runs/experiments/...")
    options = parser.parse_args()
    plan = {"quick": options.quick, "seeds": [1, 2, 3], "key_steps": 500, "base_steps": 200, "arm_steps": 1000,
            "lengths": [256, 512, 1024, 2048], "depths": 5, "samples": 12, "text_tokens": 65536}
    if options.quick:
        plan |= {"seeds": [1], "key_steps": 400, "base_steps": 60, "arm_steps": 600, "samples": 8, "text_tokens": 16384}
    name = "context_extension" + ("_quick" if options.quick else "")
    folder = Path(options.folder or ROOT / "runs" / "experiments" / name)
    lab = Lab(folder)
    out = folder if options.quick else ROOT / "docs" / "experiments"
    out.mkdir(parents=True, exist_ok=True)
    lab.text()
    for length in plan["lengths"]:  # before anything asks for them at the same time
        lab.synth(f"passkey{length}", "passkey", length, "8M", seed=length)
    lab.together([lambda s=s: small_model.base(lab, plan, s) for s in plan["seeds"]])
    places = [(arm, seed) for seed in plan["seeds"] for arm in ARMS]
    results = dict(zip(places, lab.together(
        [lambda a=a, s=s: measure(lab, a, s, plan) for a, s in places])))
    reading = ROOT / "docs" / "experiments" / "context_extension.reading.md"
    plan["reading"] = "" if options.quick or not reading.exists() else "\n" + reading.read_text()
    page(results, plan, out, draw(results, plan, out), lab)
    print((out / "context_extension.md").read_text())


if __name__ == "__main__":
    main()
