"""scripts/check_layers.py must fail on each kind of violation, and only then."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_layers.py"

CLEAN = {
    "src/core/CMakeLists.txt": "add_module(core SOURCES a.cpp)  # not add_module(nothing)",
    "src/core/a.h": "#pragma once\n",
    "src/core/a.cpp": '#include "core/a.h"\n#include <vector>\n',
    "src/config/CMakeLists.txt": "add_module(config DEPS core PROTOS run.proto SOURCES load.cpp)",
    "src/config/run.proto": "",
    "src/config/load.cpp": '#include <yaml-cpp/yaml.h>\n#include "config/run.pb.h"\n',
    "src/comm/CMakeLists.txt": "add_module(comm\n  DEPS core\n  SOURCES mpi.cpp)",
    "src/comm/mpi.cpp": '#include <mpi.h>\n#include "core/a.h"\n',
    "src/data/CMakeLists.txt": "add_module(data DEPS core comm config SOURCES token_store.cpp)",
    "src/data/token_store.cpp": "#include <hdf5.h>\n",
    "src/app/main.cpp": '#include <cstdlib>\n#include "kernels/args.h"\nauto x = getenv("A");\n',
    "src/app/app.h": "",
    "kernels/CMakeLists.txt": "add_module(kernels DEPS core cpu_attention SOURCES backend.cpp)",
    "kernels/args.h": '#include "core/a.h"\n',
    "kernels/backend.cpp": '#include "kernels/cpu/attention/forward.h"\n',
    "kernels/cpu/matmul.cpp": '#include <oneapi/dnnl/dnnl.hpp>\n#pragma omp parallel\n',
    "kernels/cpu/attention/CMakeLists.txt":
        "add_module(cpu_attention DEPS core SOURCES f.cpp ../isa.cpp)",
    "kernels/cpu/attention/f.cpp": '#include "kernels/args.h"\n#include "kernels/cpu/isa.h"\n',
    "kernels/cpu/isa.h": "",
    "kernels/cpu/isa.cpp": "",
    "kernels/cpu/state.h": "",
    "kernels/cpu/attention/forward.h": '// #include <mpi.h>\n/* getenv("x")\n */\n',
}


def run(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        result = subprocess.run([sys.executable, str(SCRIPT), folder], capture_output=True,
                                text=True)
        return result.returncode, result.stdout + result.stderr


class CheckLayers(unittest.TestCase):
    def expect(self, changes, *words):
        status, text = run({**CLEAN, **changes})
        self.assertEqual(status, 1, text)
        for word in words:
            self.assertIn(word, text)
        self.assertIn(", 1 findings", text)

    def test_clean_tree_passes(self):
        status, text = run(CLEAN)
        self.assertEqual(status, 0, text)

    def test_include_outside_deps(self):
        self.expect({"src/comm/mpi.cpp": '#include "core/a.h"\n#include "kernels/args.h"\n'},
                    "src/comm/mpi.cpp:2", "'comm' does not name 'kernels'")

    def test_include_of_a_nested_module(self):
        self.expect({"src/data/x.h": '#include "kernels/cpu/attention/forward.h"\n'},
                    "src/data/x.h:1", "'data' does not name 'cpu_attention'")

    def test_nested_module_sees_the_interface_only(self):
        self.expect({"kernels/cpu/attention/x.h": '#include "kernels/cpu/state.h"\n'},
                    "kernels/cpu/attention/x.h:1", "'cpu_attention' does not name 'kernels'")

    def test_listed_source_belongs_to_the_module_that_lists_it(self):
        self.expect({"kernels/CMakeLists.txt": "add_module(kernels DEPS core SOURCES backend.cpp)",
                     "kernels/backend.cpp": '#include "kernels/cpu/isa.h"\n'},
                    "kernels/backend.cpp:1", "does not name 'cpu_attention'")

    def test_relative_include_is_no_way_round(self):
        self.expect({"src/comm/x.h": '#include "../config/run.pb.h"\n',
                     "src/config/run.pb.h": ""}, "'comm' does not name 'config'")

    def test_generated_header_counts(self):
        self.expect({"src/comm/x.h": '#include "config/run.pb.h"\n'},
                    "'comm' does not name 'config'")

    def test_missing_file(self):
        self.expect({"src/comm/x.h": '#include "core/absent.h"\n'}, "no such file")

    def test_dependency_against_the_architecture(self):
        self.expect({"src/comm/CMakeLists.txt": "add_module(comm DEPS core config)"},
                    "src/comm/CMakeLists.txt:1", "'comm' must not depend on 'config'")

    def test_unknown_dependency(self):
        self.expect({"src/comm/CMakeLists.txt": "add_module(comm DEPS core corre)"}, "'corre'")

    def test_unknown_module(self):
        self.expect({"src/misc/CMakeLists.txt": "\n\nadd_module(misc DEPS core)"},
                    "src/misc/CMakeLists.txt:3", "not in the architecture")

    def test_cycle(self):
        self.expect({"kernels/cpu/attention/CMakeLists.txt":
                     "add_module(cpu_attention DEPS core kernels)"}, "cycle", "->")

    def test_duplicate_module(self):
        self.expect({"src/data/CMakeLists.txt":
                     "add_module(data DEPS core comm config)\nadd_module(core)"}, "declared twice")

    def test_file_without_module(self):
        self.expect({"src/orphan/x.cpp": ""}, "src/orphan/x.cpp:1", "belongs to no module")

    def test_program_is_not_included(self):
        self.expect({"src/data/x.h": '#include "app/app.h"\n'}, "nothing may include the program")

    def test_vendor_headers(self):
        for header in ("mpi.h", "nccl.h", "cuda_runtime.h", "cublasLt.h", "cudnn.h", "hdf5.h",
                       "H5Cpp.h", "yaml-cpp/yaml.h", "oneapi/dnnl/dnnl.hpp", "gtest/gtest.h",
                       "omp.h"):
            with self.subTest(header):
                self.expect({"src/core/a.h": f"\n#include <{header}>\n"}, "src/core/a.h:2", header)

    def test_openmp_pragma(self):
        self.expect({"src/data/x.cpp": "#pragma omp parallel for\n"}, "#pragma omp")

    def test_getenv(self):
        self.expect({"src/data/x.cpp": 'auto h = std::getenv("HOME");\n'}, "src/data/x.cpp:1",
                    "getenv")


if __name__ == "__main__":
    unittest.main()
