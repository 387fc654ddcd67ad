"""The GPU tests, run without ctest, and NCCL's with several ranks on one GPU."""

import json
import re

from runner import Failure


def listed(check):
    """(program, ranks, filter of tests) of each GPU test; the build wrote the list."""
    path = check.root / ("share/farspan/gpu_tests.txt" if check.bundle
                         else f"build/{'cuda' if check.on_gpu else 'cpu'}/gpu_tests.txt")
    if not path.exists():
        raise Failure(f"{path.name} is not there: build the tests")
    tests = []
    for line in path.read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        head, _, only = line.partition(" :")
        name, *ranks = head.split()
        tests.append((name, [int(n) for n in ranks], only))
    if not tests and not check.on_gpu:
        tests = [(name, [], "") for name in ("test_kernels_parity", "test_kernels") if check.program(name)]
        check.say("The cpu preset has no GPU tests: the rehearsal runs others in their place.")
    return tests


def counts(result):
    """{passed, failed, skipped: number} and the names of failed tests, from what GoogleTest prints."""
    found = {}
    for word in ("PASSED", "FAILED", "SKIPPED"):
        match = re.search(rf"\[\s*{word}\s*\] (\d+) tests?", result.output)
        found[word.lower()] = int(match.group(1)) if match else 0
    failed = re.findall(r"^\[\s*FAILED\s*\] ([\w./<>-]+/?[\w./<>-]*)(?:,|$| \()", result.output, re.M)
    return found, sorted(set(failed))


def judge(check, name, result):
    """A row of the table; what is wrong with it is a failure of the section."""
    found, failed = counts(result)
    if failed:
        shown = ", ".join(failed[:6]) + (f" and {len(failed) - 6} more" if len(failed) > 6 else "")
        check.fail(f"{name}: {shown} ({result.log.name})")
    elif not result.ok:
        check.fail(result.why())
    elif found["passed"] == 0:
        reason = re.search(r"no GPU[^\n]*", result.output)
        check.fail(f"{name}: no test ran{': ' + reason.group(0) if reason else ''} ({result.log.name})")
    return [name, found["passed"], len(failed) or found["failed"], found["skipped"],
            "timed out" if result.code is None else f"{result.seconds:.1f} s"]


def gpu_tests(check):
    rows = []
    for name, ranks, only in listed(check):
        if ranks:
            continue  # under mpirun: the section nccl
        path = check.program(name)
        if path is None:
            check.fail(f"{name} is not built")
            continue
        command = [path, "--gtest_brief=0", "--gtest_color=no"] + ([f"--gtest_filter={only}"] if only else [])
        rows.append(judge(check, name, check.run(command, f"test.{name}", limit=90)))
    if not rows and not check.failures:
        if check.on_gpu:
            raise Failure("no test was found")
        check.say("None of them is built.")
    check.table(["program", "passed", "failed", "skipped", "time"], rows)


def nccl(check):
    """The communicator's tests with 1, 2 and 4 ranks, then two ranks that train on one GPU."""
    rows = []
    for name, ranks, only in listed(check):
        if not ranks:
            continue
        for count in sorted({*ranks, *([4] if not check.quick else [])}):
            path = check.program(name)
            if path is None:
                check.fail(f"{name} is not built")
                continue
            command = check.mpirun(count) + [path, "--gtest_color=no"]
            result = check.run(command, f"test.{name}.np{count}", limit=25)
            rows.append(judge(check, f"{name}, {count} ranks", result))
    check.table(["program", "passed", "failed", "skipped", "time"], rows)
    train_with_ranks(check)


# NCCL refuses two ranks on one GPU of one host: each process says that it is a host of its own, and
# the ranks speak through sockets of the loopback device. It is slow, and NCCL's real code.
AS_HOSTS = ["sh", "-c", 'NCCL_HOSTID=$OMPI_COMM_WORLD_RANK NCCL_SOCKET_IFNAME=lo exec "$@"', "sh"]


def train_with_ranks(check):
    import training
    store = training.bytes_store(check)
    program = check.need("farspan")
    rows, losses = [], {}
    tokens = "2k" if check.on_gpu else "256"
    for name, ranks, title, start in (("one", 1, "1 rank", []), ("nccl", 2, "2 ranks, NCCL", AS_HOSTS),
                                      ("staged", 2, "2 ranks, through host memory", [])):
        folder = check.out / "work" / f"ranks_{name}"
        command = [*start, program, "train", "configs/quickstart.yaml", f"device={check.device}", "train.steps=3",
                   f"train.sequence_length={tokens}", "train.batch_tokens=4k", f"parallel.context={ranks}",
                   "checkpoint.every=0", *training.without_validation(store), f"output_dir={folder}"]
        if ranks > 1:
            command = check.mpirun(ranks) + command
        result = check.run(command, f"train.ranks_{name}", limit=40)
        if not result.ok:
            check.fail(result.why())
            continue
        steps = training.metrics(folder)
        losses[title] = [row["loss"] for row in steps]
        transport = re.search(r"transport: [^\n]*", result.output)
        if name == "nccl" and check.on_gpu and (transport is None or "NCCL" not in transport.group(0)):
            check.fail(f"the ranks did not use NCCL ({result.log.name})")
        rows.append([title, ", ".join(f"{loss:.4f}" for loss in losses[title]),
                     f"{steps[-1]['seconds'] * 1e3:.0f} ms", transport.group(0)[11:80] if transport else ""])
    check.table(["quickstart", "loss of each step", "last step", "transport"], rows)
    if "1 rank" in losses and len(losses) > 1:
        alone = losses.pop("1 rank")
        worst = max(abs(a - b) / abs(a) for other in losses.values() for a, b in zip(alone, other))
        check.say(f"Largest relative difference of the losses from one rank's: {worst:.1e}.")
        if worst > 1e-2:
            check.fail(f"2 ranks train otherwise than 1: losses differ by {worst:.1e}")


def as_json(text):
    """The JSON objects among the lines of a text."""
    objects = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                objects.append(json.loads(line))
            except ValueError:
                pass
    return objects
