"""Training: steps with their speed and memory, and the loss curve on both devices."""

import json
import os
import re
import subprocess
import threading
import time

from runner import Failure, median

DENSE_BF16 = 989e12  # FLOP/s: H100 SXM and H200, data sheet
MODEL = "configs/llama_1b_8xgpu_32k.yaml"
# Llama 3 8B's shape with 4 of its 32 layers.
SHAPE_8B = ["model.hidden_size=4096", "model.intermediate_size=14336", "model.num_hidden_layers=4",
            "model.num_attention_heads=32", "model.num_key_value_heads=8", "model.head_dim=128",
            "model.tie_word_embeddings=false"]
TINY = ["model.hidden_size=64", "model.intermediate_size=128", "model.num_hidden_layers=2",
        "model.num_attention_heads=4", "model.num_key_value_heads=2", "model.head_dim=16",
        "model.vocab_size=512"]


def store(check, name, *options):
    """A token store of this name, made once."""
    path = check.out / "work" / f"{name}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = check.run([check.need("farspan"), "data", "synth", *options, "--out", path, "--quiet"],
                           f"data.{name}", limit=40)
        if not result.ok:
            raise Failure(result.why())
    return path


def bytes_store(check):
    return store(check, "bytes", "--kind", "documents", "--tokens", "1M", "--length", "4k")


def without_validation(path):
    return [f"data.train={path}", "data.validation=null", "evaluation.every=0", "logging.tensorboard=false"]


def metrics(folder):
    """The steps that a run has written down so far."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row.get("kind") == "train"]


class DeviceMemory:
    """The most of the GPU's memory that is in use while it lives, bytes above what was before."""

    def __init__(self, check):
        self.on, self.most, self.stop = check.on_gpu, 0, threading.Event()
        self.before = self.used() if self.on else 0

    @staticmethod
    def used():
        text = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"],
                              capture_output=True, text=True, timeout=30).stdout
        return int(text.split()[0]) << 20

    def watch(self):
        while not self.stop.wait(0.2):
            self.most = max(self.most, self.used() - self.before)

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch, daemon=True)
        if self.on:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        if self.on:
            self.thread.join(timeout=30)


UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def predicted_bytes(text):
    """What a dry run says that the device must hold: the whole where it says so, else the arenas."""
    for pattern in (r"device memory[^\d\n]*([\d.]+) ([KMGT]?i?B)", r"([\d.]+) ([KMGT]?i?B) of (?:device )?memory"):
        match = re.search(pattern, text)
        if match:
            return float(match.group(1)) * UNITS[match.group(2)]
    return None


def steps_of(check, name, overrides, wanted):
    """Runs a training until it has done `wanted` steps, then kills it, for what it would save at its
    end is gigabytes. (rows, most memory, prediction)."""
    folder = check.out / "work" / name
    command = [check.need("farspan"), "train", MODEL, f"device={check.device}", *overrides,
               "device_memory=null", "parallel.data=1", "parallel.context=1", "train.tokens=null",
               "train.steps=100000", "checkpoint.every=0", f"output_dir={folder}"]
    dry = check.run(command + ["--dry-run"], f"{name}.dry", limit=30)
    check.commands.pop()  # the run itself follows; the report says what --dry-run adds
    if not dry.ok:
        raise Failure(dry.why())
    with DeviceMemory(check) as memory:
        process = check.start(command, name)
        try:
            while process.poll() is None and len(metrics(folder)) < wanted:
                if check.left() <= 1.0 or time.monotonic() - process.began > 60:
                    break
                time.sleep(0.1)
            died = process.poll()
        finally:
            check.kill(process)
    rows = metrics(folder)
    if died is not None:
        raise Failure(check.finish(process, 1).why())
    if len(rows) < 2:
        raise Failure(f"{name}: {len(rows)} steps in {time.monotonic() - process.began:.0f} s ({name}.log)")
    return rows, memory.most, predicted_bytes(dry.output)


def runs(check):
    """(title, name, overrides, steps) of each row of the table."""
    if not check.on_gpu:
        tokens = store(check, "tiny", "--kind", "markov", "--tokens", "64k", "--length", "1k", "--vocab-size", "512")
        return [(f"tiny model, {n} tokens", f"train_{n}", [*TINY, *without_validation(tokens),
                 f"train.sequence_length={n}", f"train.batch_tokens={2 * n}", "train.micro_batch=1"], 3)
                for n in (128, 256, 512)]
    tokens = store(check, "wide", "--kind", "markov", "--tokens", "2M", "--length", "128k", "--vocab-size", "128256")
    common = [*without_validation(tokens), "train.micro_batch=1"]
    lengths = [("8k", "32k", "none", 6), ("32k", "32k", "selective", 5), ("128k", "128k", "full", 3)]
    table = [(f"1.2 B, {length} tokens, recompute {recompute}", f"train_{length}",
              [*common, f"train.sequence_length={length}", f"train.batch_tokens={batch}",
               f"train.recompute={recompute}"], wanted)
             for length, batch, recompute, wanted in (lengths[:2] if check.quick else lengths)]
    if not check.quick:
        table.append(("8 B shape, 4 of 32 layers, 128k tokens, recompute full", "train_8b_128k",
                      [*common, *SHAPE_8B, "train.sequence_length=128k", "train.batch_tokens=128k",
                       "train.recompute=full"], 3))
    return table


def size(count):
    if not count:
        return "–"
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


def steps(check):
    rows = []
    for title, name, overrides, wanted in runs(check):
        try:
            done, most, predicted = steps_of(check, name, overrides, wanted)
        except Failure as failure:
            check.fail(str(failure))
            continue
        timed = done[1:]  # the first step loads kernels and chooses algorithms
        seconds = [row["seconds"] for row in timed]
        flops = median([row["tflops_per_rank"] for row in timed]) * 1e12
        peak = check.facts.get("gemm_tflops")
        off = f"{100 * (most / predicted - 1):+.1f}%" if most and predicted else "not measured"
        rows.append([title, f"{median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f})",
                     f"{median([row['tokens_per_second'] for row in timed]):,.0f}", f"{flops / 1e12:.1f}",
                     f"{100 * flops / DENSE_BF16:.1f}%" if check.on_gpu else "–",
                     f"{flops / 1e10 / peak:.1f}%" if peak else "–",
                     size(predicted), size(most), off])
    check.table(["training step", "seconds (range)", "tokens/s", "TFLOP/s", "MFU", "of the measured GEMM",
                 "dry run", "in use", "in use / dry run"], rows)
    check.say("Model FLOPs (visible pairs only, recomputation not counted) over the wall time of a step, medians of "
              "all steps but the first; MFU against 989 TFLOP/s, the data sheet's dense bf16 rate. Memory in use is "
              "what nvidia-smi reports above what was in use before, CUDA's context included; the dry run's figure is "
              "that of the same command with --dry-run. Runs are killed after their last timed step, before they would "
              "save.")


CURVE_STEPS = {"full": 200, "quick": 50, "rehearsal": 12}


def curve_command(check, device):
    tokens = bytes_store(check)
    kind = "rehearsal" if not check.on_gpu else "quick" if check.quick else "full"
    shape = ["train.sequence_length=256", "train.batch_tokens=1k"] if not check.on_gpu else []
    # The CPU's run lasts into sections that are timed: it must not take a core from them.
    start = ["nice", "-n", "19"] if device == "cpu" and check.on_gpu else []
    return [*start, check.need("farspan"), "train", "configs/quickstart.yaml", f"device={device}",
            f"train.steps={CURVE_STEPS[kind]}", "parallel.context=1", "checkpoint.every=0", *shape,
            *without_validation(tokens), f"output_dir={check.out / 'work' / ('curve_' + device)}"]


def start_cpu_curve(check):
    """The CPU's half of the comparison, in the background while the GPU tests run."""
    check.deadline = time.monotonic() + 60
    try:
        check.facts["cpu_curve"] = check.start(
            curve_command(check, "cpu"), "curve.cpu",
            env={"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 4))})
        check.background.append(check.facts["cpu_curve"])
    except Failure as failure:
        check.facts["cpu_curve_failure"] = str(failure)


def loss_curves(check):
    if "cpu_curve" not in check.facts:
        raise Failure(check.facts.get("cpu_curve_failure", "the CPU's run was not started"))
    curves = {}
    if check.on_gpu:
        result = check.run(curve_command(check, "cuda"), "curve.cuda", limit=45)
        if not result.ok:
            raise Failure(result.why())
        curves["cuda"] = metrics(check.out / "work" / "curve_cuda")
    result = check.finish(check.facts["cpu_curve"], check.left())
    check.commands.insert(0, result.command)
    curves["cpu"] = metrics(check.out / "work" / "curve_cpu")
    if not result.ok and (result.code is not None or len(curves["cpu"]) < 20):
        raise Failure(result.why())
    gpu = curves.get("cuda", curves["cpu"])
    common = min(len(gpu), len(curves["cpu"]))
    if common < len(gpu):
        check.say(f"The CPU had done {common} of {len(gpu)} steps when its time was up; these are compared.")
    pairs = [(a["step"], a["loss"], b["loss"]) for a, b in zip(curves["cpu"][:common], gpu[:common])]
    shown = sorted({0, 1, 4, 9, 19, 49, 99, 149, common - 1} & set(range(common)))
    check.table(["step", "loss on the CPU", f"loss on {'CUDA' if check.on_gpu else 'the CPU, the same run'}", "difference"],
                [[pairs[i][0], f"{pairs[i][1]:.4f}", f"{pairs[i][2]:.4f}", f"{pairs[i][2] - pairs[i][1]:+.4f}"]
                 for i in shown])
    worst = max(abs(b - a) for _, a, b in pairs)
    last = [abs(b - a) for _, a, b in pairs[-10:]]
    check.say(f"Largest difference of any step: {worst:.4f} nats; mean of the last ten: {sum(last) / len(last):.4f}.")
    if worst > 0.1:
        check.fail(f"the loss curves part: {worst:.4f} nats at the worst step")
