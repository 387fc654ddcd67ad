"""The installed bundle on its own: nothing it loads lies outside it but glibc and CUDA, and it trains
alone, with ranks as threads, and under its own mpirun. Where the kernel allows (root, or a user that
may make mount namespaces) it runs in a root directory that holds glibc, a shell's tools and the bundle.

    bundle_test.py CMAKE BUILD_FOLDER
"""

import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

CMAKE, BUILD = sys.argv[1:3]
GLIBC = re.compile(r"(ld-linux|linux-vdso)|lib(c|m|dl|rt|pthread|resolv|util|anl|nsl|mvec)\.so")
CUDA = re.compile(r"lib(cuda|cudart|cublas|cublasLt|cudnn|nccl|nvrtc|nvidia-ml)[._-]")
TOOLS = ["sh", "bash", "ls", "sed", "grep", "sort", "tr", "id", "dirname", "basename", "readlink", "cat", "env",
         "sleep", "mkdir", "nproc", "lscpu", "find", "wc", "tail", "hostname"]
# In a namespace of its own: the bundle's root with /proc, /sys and /dev, and no way to the rest.
ENTER = """set -e
mount --rbind /proc "$1/proc"; mount --rbind /sys "$1/sys"; mount --rbind /dev "$1/dev"
root=$1; shift
exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp OMP_NUM_THREADS=1 "$@"
"""


def loaded(file, preload=None):
    """(name, path or None) of each library that a program, or a plugin loaded by it, takes in."""
    environment = {"LD_TRACE_LOADED_OBJECTS": "1", **({"LD_PRELOAD": str(preload)} if preload else {})}
    text = subprocess.run([str(file)], env=environment, capture_output=True, text=True, timeout=60).stdout
    for line in text.splitlines():
        name, _, rest = line.strip().partition(" => ")
        path = rest.split(" (")[0].strip()
        if rest and "not found" not in rest:
            yield name, Path(path)
        elif rest:
            yield name, None


class Bundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="bundle_test_")
        cls.folder = Path(cls.temporary.name)
        cls.made = cls.folder / "made" / "dist"
        done = subprocess.run([CMAKE, "--install", BUILD, "--prefix", str(cls.made)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        # Moved: what remembers where it was installed shows.
        cls.dist = cls.folder / "moved" / "bundle"
        cls.dist.parent.mkdir()
        cls.made.rename(cls.dist)
        cls.programs = sorted(p for p in (cls.dist / "libexec").iterdir() if p.suffix != ".sh")
        cls.cuda = any(CUDA.match(name) for name, _ in loaded(cls.dist / "libexec" / "farspan"))

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def inside(self, whose, pairs):
        for name, path in pairs:
            if GLIBC.match(name) or CUDA.match(name):
                continue
            self.assertIsNotNone(path, f"{whose} lacks {name}")
            self.assertTrue(path.resolve().is_relative_to(self.dist), f"{whose} takes {name} from {path}")

    def test_programs_load_from_the_bundle(self):
        self.assertIn("farspan", [p.name for p in self.programs])
        for program in [*self.programs, self.dist / "bin" / "orterun", self.dist / "bin" / "orted"]:
            self.inside(program.name, loaded(program))

    def test_plugins_load_from_the_bundle(self):
        plugins = sorted(self.dist.glob("lib/**/mca_*.so"))
        self.assertGreater(len(plugins), 40)
        for plugin in plugins:
            self.inside(plugin.name, loaded(self.dist / "bin" / "orterun", preload=plugin))

    def test_no_links_and_no_foreign_run_paths(self):
        for path in self.dist.rglob("*"):
            self.assertFalse(path.is_symlink(), path)
        for path in [*self.dist.rglob("*.so*"), *self.programs, self.dist / "bin" / "orterun"]:
            text = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True).stdout
            for where in re.findall(r"R(?:UN)?PATH.*\[(.*)\]", text):
                self.assertTrue(where.startswith("$ORIGIN"), f"{path}: run path {where}")

    def test_size_when_packed(self):
        packed = self.folder / "bundle.tar.xz"
        # The dictionary spans programs that hold the same kernels (docs/bundle.md).
        pack = lzma.LZMAFile(packed, "w", filters=[{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 128 << 20}])
        with pack, tarfile.open(fileobj=pack, mode="w") as archive:
            archive.add(self.dist, self.dist.name)
        print(f"bundle: {packed.stat().st_size / (1 << 20):.1f} MiB packed")
        self.assertLess(packed.stat().st_size, 64 << 20)

    # ---- running it

    def root(self):
        """A root directory with glibc, tools and the bundle as /opt/farspan; None where not possible."""
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
            return None
        root = self.folder / "root"
        if root.exists():
            return root
        for folder in ("proc", "sys", "dev", "tmp", "usr/bin", "etc", "opt", "lib64"):
            (root / folder).mkdir(parents=True)
        (root / "bin").symlink_to("usr/bin")
        (root / "etc" / "passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")
        (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")

        def bring(path):
            target = root / str(path).lstrip("/")
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(os.path.realpath(path), target)

        for tool in TOOLS:
            path = shutil.which(tool)
            if path is None:
                continue
            shutil.copy2(os.path.realpath(path), root / "usr" / "bin" / tool)
            for _, library in loaded(os.path.realpath(path)):
                if library:
                    bring(library)
        for name in ("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libresolv.so.2",
                     "libutil.so.1"):
            for folder in ("/lib/x86_64-linux-gnu", "/lib64"):
                if Path(folder, name).exists():
                    bring(Path(folder, name))
                    break
        bring("/lib64/ld-linux-x86-64.so.2")
        if self.cuda:  # what a machine with CUDA has
            folder = root / "usr/local/cuda/lib64"
            folder.mkdir(parents=True)
            for library in Path("/usr/local/cuda/lib64").glob("lib*.so.*"):
                if re.match(r"lib(cublas|cublasLt|nccl)\.so\.\d+$", library.name):
                    shutil.copy2(os.path.realpath(library), folder / library.name)
        shutil.copytree(self.dist, root / "opt" / "farspan")
        return root

    def call(self, *arguments, code=0):
        """Runs a program of the bundle, its paths relative to the bundle, in the bare root."""
        root = self.root()
        if root is None:
            home, command = self.dist, list(arguments)
            command = [str(home / a[1:]) if a.startswith("@") else a for a in command]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=home.parent,
                                  env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
        else:
            command = [f"/opt/farspan/{a[1:]}" if a.startswith("@") else a for a in arguments]
            done = subprocess.run(["unshare", "-rm", "sh", "-c", ENTER, "sh", str(root), *command],
                                  capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, code, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout + done.stderr

    def train(self, store, *start, out):
        return self.call(*start, "train", "@configs/quickstart.yaml", "device=cpu", "train.steps=2",
                         "train.sequence_length=256", "train.batch_tokens=1k", f"data.train={store}",
                         "data.validation=null", "evaluation.every=0", "parallel.context=auto",
                         f"output_dir={out}")

    def test_runs(self):
        self.call("@bin/farspan", "doctor")
        prefix = "/tmp" if self.root() else str(self.folder)
        store = f"{prefix}/text.h5"
        self.call("@bin/farspan", "data", "synth", "--kind", "markov", "--tokens", "16k", "--out", store, "--quiet")
        self.train(store, "@bin/farspan", out=f"{prefix}/alone")
        text = self.call("@bin/farspan", "train", "@configs/quickstart.yaml", "--local-ranks", "2", "device=cpu",
                         "train.steps=2", "train.sequence_length=256", "train.batch_tokens=1k", f"data.train={store}",
                         "data.validation=null", "evaluation.every=0", f"output_dir={prefix}/threads")
        self.assertIn("2 ranks", text)
        text = self.train(store, "@bin/mpirun", "-np", "2", "@bin/farspan", out=f"{prefix}/mpi")
        self.assertIn("2 ranks", text)
        text = self.call("@launch/mpirun.sh", "2", "@configs/quickstart.yaml", "train.steps=1",
                         "train.sequence_length=256", "train.batch_tokens=1k", f"data.train={store}",
                         "data.validation=null", "evaluation.every=0", f"output_dir={prefix}/launched")
        self.assertIn("2 ranks", text)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
