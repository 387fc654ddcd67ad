"""launch/mpirun.sh, bind_gpu.sh and supervise.sh, with stand-ins for mpirun, farspan and nvidia-smi."""

import os
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Writes its arguments down, then runs the program once, as a single rank would.
MPIRUN = """#!/bin/bash
echo "$@" >> "$STATE/mpirun.args"
while [ "$1" != "$FARSPAN" ]; do shift; done
trap 'kill -USR1 $child' USR1
"$@" & child=$!
while :; do wait $child; rc=$?; kill -0 $child 2>/dev/null || break; done
wait $child; exit $?
"""

# `config` prints where the run lives; `train` follows the script in $STATE/plan: each line is
# "exit code, step of the checkpoint that it leaves (or -)", used up from the top.
FARSPAN = """#!/bin/bash
if [ "$1" = config ]; then
  [ "$2" = bad.yaml ] && { echo "bad.yaml:1:1: no" >&2; exit 2; }
  echo "name: x"; echo "output_dir: $STATE/run  # from the test"; exit 0
fi
date +%s.%N >> "$STATE/starts"
read -r code step < "$STATE/plan"; sed -i 1d "$STATE/plan"
[ "$step" = - ] || mkdir -p "$STATE/run/checkpoints/step_$step"
if [ "$code" = wait ]; then
  trap 'sleep 0.2; echo saved > "$STATE/saved"; exit 75' USR1
  touch "$STATE/waiting"
  for _ in $(seq 200); do sleep 0.05; done
  exit 1
fi
exit "$code"
"""


class Launch(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.state = Path(self.folder.name)
        for name, text in (("mpirun", MPIRUN), ("farspan", FARSPAN)):
            (self.state / name).write_text(text)
            (self.state / name).chmod(0o755)
        self.environment = {**os.environ, "STATE": str(self.state), "SUPERVISE_PAUSE": "0",
                            "FARSPAN": str(self.state / "farspan"),
                            "PATH": f"{self.state}:{os.environ['PATH']}"}
        self.environment.pop("MPIRUN_ARGS", None)

    def tearDown(self):
        self.folder.cleanup()

    def start(self, script, *arguments, plan, **extra):
        (self.state / "plan").write_text("".join(line + "\n" for line in plan))
        return subprocess.Popen([str(ROOT / "launch" / script), *arguments],
                                env={**self.environment, **extra}, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, start_new_session=True)

    def run_to_end(self, script, *arguments, plan, **extra):
        process = self.start(script, *arguments, plan=plan, **extra)
        text = process.communicate(timeout=30)[0]
        return process.returncode, text

    def starts(self):
        path = self.state / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for(self, name):
        for _ in range(200):
            if (self.state / name).exists():
                return
            time.sleep(0.05)
        self.fail(f"{name} did not appear")


class Mpirun(Launch):
    def test_exit_codes_come_through(self):
        for code in (0, 1, 2, 3, 5, 6, 75):
            self.assertEqual(self.run_to_end("mpirun.sh", "2", "a.yaml", plan=[f"{code} -"])[0],
                             code)

    def test_configuration_means_train_and_commands_stay(self):
        self.run_to_end("mpirun.sh", "3", "a.yaml", "train.steps=5", plan=["0 -"])
        self.run_to_end("mpirun.sh", "3", "eval", "score", plan=["0 -"])
        lines = (self.state / "mpirun.args").read_text().splitlines()
        self.assertIn("-np 3", lines[0])
        self.assertTrue(lines[0].endswith("farspan train a.yaml train.steps=5"), lines[0])
        self.assertTrue(lines[1].endswith("farspan eval score"), lines[1])
        if os.getuid() == 0:
            self.assertIn("--allow-run-as-root", lines[0])

    def test_more_ranks_than_cores(self):
        self.run_to_end("mpirun.sh", str(os.cpu_count() + 1), "a.yaml", plan=["0 -"])
        self.assertIn("--oversubscribe", (self.state / "mpirun.args").read_text())

    def test_own_options_replace_the_binding(self):
        self.run_to_end("mpirun.sh", "2", "a.yaml", plan=["0 -"], MPIRUN_ARGS="--hostfile h")
        line = (self.state / "mpirun.args").read_text()
        self.assertIn("--hostfile h", line)
        self.assertNotIn("--bind-to", line)

    def test_runs_on_gpus_are_bound_beside_them(self):
        gpu = self.state / "gpu.yaml"
        gpu.write_text("name: x\ndevice: cuda   # one of them\n")
        for arguments, bound in (([str(gpu)], True), ([str(gpu), "device=cpu"], False),
                                 (["a.yaml"], False), (["a.yaml", "device=cuda"], True)):
            self.run_to_end("mpirun.sh", "2", *arguments, plan=["0 -"])
            line = (self.state / "mpirun.args").read_text().splitlines()[-1]
            self.assertEqual("launch/bind_gpu.sh " in line, bound, line)
            self.assertIn(f"farspan train {' '.join(arguments)}", line)

    def test_signals_become_a_checkpoint_and_75(self):
        for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            with self.subTest(sent.name):
                process = self.start("mpirun.sh", "2", "a.yaml", plan=["wait -"])
                self.wait_for("waiting")
                process.send_signal(sent)
                process.send_signal(sent)  # the same request by another way must not kill
                text = process.communicate(timeout=30)[0]
                self.assertEqual(process.returncode, 75, text)
                (self.state / "saved").unlink()
                (self.state / "waiting").unlink()

    def test_a_signal_to_the_whole_group_reaches_mpirun_through_the_launcher_only(self):
        process = self.start("mpirun.sh", "2", "a.yaml", plan=["wait -"])
        self.wait_for("waiting")
        os.killpg(process.pid, signal.SIGTERM)
        text = process.communicate(timeout=30)[0]
        self.assertEqual(process.returncode, 75, text)
        self.assertTrue((self.state / "saved").exists())

    def test_usage(self):
        for arguments in ((), ("2",), ("two", "a.yaml"), ("0", "a.yaml")):
            self.assertEqual(self.run_to_end("mpirun.sh", *arguments, plan=[])[0], 2)

    def test_missing_program(self):
        status, text = self.run_to_end("mpirun.sh", "2", "a.yaml", plan=[], FARSPAN="/no/farspan")
        self.assertEqual(status, 2)
        self.assertIn("/no/farspan", text)


# Two nodes of 8 cores, the hyperthreads of the first in a second run; GPUs 0, 1 hang on node 1.
GPUS = ((0, "GPU-a", "00000000:1A:00.0", 1), (1, "GPU-b", "00000000:3B:00.0", 1),
        (2, "GPU-c", "00000000:9C:00.0", 0), (3, "GPU-d", "00000001:D8:00.0", 0))


class BindGpu(Launch):
    def setUp(self):
        super().setUp()
        sys = self.state / "sys"
        for node, cores in ((0, "0-3,8-11"), (1, "4-7,12-15")):
            folder = sys / f"devices/system/node/node{node}"
            folder.mkdir(parents=True)
            (folder / "cpulist").write_text(cores + "\n")
        for _, _, bus, node in GPUS:
            folder = sys / "bus/pci/devices" / bus[4:].lower()
            folder.mkdir(parents=True)
            (folder / "numa_node").write_text(f"{node}\n")
        lines = "\n".join(f"{i}, {uuid}, {bus}" for i, uuid, bus, _ in GPUS)
        (self.state / "nvidia-smi").write_text(f"#!/bin/bash\ncat <<E\n{lines}\nE\n")
        (self.state / "nvidia-smi").chmod(0o755)

    def bound(self, rank, ranks, **extra):
        text = subprocess.run(
            [str(ROOT / "launch/bind_gpu.sh"), "true"], text=True, check=True,
            stdout=subprocess.PIPE,
            env={**self.environment, "FARSPAN_SYSFS": str(self.state / "sys"),
                 "FARSPAN_BIND": "show", "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
                 "OMPI_COMM_WORLD_LOCAL_SIZE": str(ranks), **extra}).stdout.strip()
        return text.removeprefix(f"rank {rank}: ")

    def test_one_rank_per_gpu(self):
        self.assertEqual([self.bound(r, 4) for r in range(4)],
                         ["GPU 00000000:1A:00.0, node 1, cores 4,5,6,7",
                          "GPU 00000000:3B:00.0, node 1, cores 12,13,14,15",
                          "GPU 00000000:9C:00.0, node 0, cores 0,1,2,3",
                          "GPU 00000001:D8:00.0, node 0, cores 8,9,10,11"])

    def test_alone(self):
        self.assertEqual(self.bound(0, 1),
                         "GPU 00000000:1A:00.0, node 1, cores 4,5,6,7,12,13,14,15")

    def test_visible_devices(self):
        for visible in ("2,0", "GPU-c,GPU-a", "2,0,9,1"):
            self.assertEqual(
                [self.bound(r, 3, CUDA_VISIBLE_DEVICES=visible) for r in range(3)],
                ["GPU 00000000:9C:00.0, node 0, cores 0,1,2,3",
                 "GPU 00000000:1A:00.0, node 1, cores 4,5,6,7,12,13,14,15",
                 "GPU 00000000:9C:00.0, node 0, cores 8,9,10,11"])

    def test_more_ranks_than_cores_share_the_node(self):
        self.assertEqual(self.bound(0, 40, CUDA_VISIBLE_DEVICES="2"),
                         "GPU 00000000:9C:00.0, node 0, cores 0,1,2,3,8,9,10,11")

    def test_unbound_with_the_reason(self):
        self.assertEqual(self.bound(0, 1, CUDA_VISIBLE_DEVICES=""), "unbound: no GPU")
        (self.state / "sys/bus/pci/devices/0000:1a:00.0/numa_node").write_text("-1\n")
        self.assertEqual(self.bound(0, 1), "unbound: the GPU's NUMA node is unknown")

    def test_the_program_runs_and_its_exit_code_comes_through(self):
        for bind in ("no", ""):
            done = subprocess.run([str(ROOT / "launch/bind_gpu.sh"), "bash", "-c", "exit 75"],
                                  env={**self.environment, "FARSPAN_BIND": bind,
                                       "CUDA_VISIBLE_DEVICES": ""})
            self.assertEqual(done.returncode, 75)

    def test_usage(self):
        done = subprocess.run([str(ROOT / "launch/bind_gpu.sh")], stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("mpirun -np 8", done.stderr)


class Supervise(Launch):
    def test_done_and_hopeless_ends_are_not_started_again(self):
        for code in (0, 2, 3):
            before = self.starts()
            self.assertEqual(self.run_to_end("supervise.sh", "2", "a.yaml",
                                             plan=[f"{code} -", "0 -"])[0], code)
            self.assertEqual(self.starts(), before + 1)

    def test_goes_on_while_there_is_progress(self):
        plan = ["6 00000010", "6 -", "1 -", "75 00000020", "6 -", "6 -", "6 00000030", "0 00000040"]
        self.assertEqual(self.run_to_end("supervise.sh", "2", "a.yaml", plan=plan)[0], 0)
        self.assertEqual(self.starts(), 8)

    def test_gives_up_after_three_starts_without_progress(self):
        plan = ["6 00000010"] + ["6 -"] * 9
        status, text = self.run_to_end("supervise.sh", "2", "a.yaml", plan=plan)
        self.assertEqual(status, 6)
        self.assertEqual(self.starts(), 4)
        self.assertIn("step 10", text)

    def test_folders_that_are_no_checkpoint_are_no_progress(self):
        plan = ["6 00000010.tmp.1", "6 00000020.tmp.2", "6 00000030.tmp.3", "0 -"]
        self.assertEqual(self.run_to_end("supervise.sh", "2", "a.yaml", plan=plan)[0], 6)

    def test_stop_request_is_passed_on_and_ends_it(self):
        process = self.start("supervise.sh", "2", "a.yaml", plan=["wait -", "0 -"])
        self.wait_for("waiting")
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=30)[0]
        self.assertEqual(process.returncode, 75, text)
        self.assertTrue((self.state / "saved").exists())
        self.assertEqual(self.starts(), 1)

    def test_broken_configuration_is_shown(self):
        status, text = self.run_to_end("supervise.sh", "2", "bad.yaml", plan=[])
        self.assertEqual(status, 2)
        self.assertIn("bad.yaml:1:1: no", text)


if __name__ == "__main__":
    unittest.main()
