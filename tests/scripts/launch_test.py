"""launch/mpirun.sh and launch/supervise.sh, with stand-ins for mpirun and farspan."""

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
