#!/usr/bin/env python3
"""Checks who includes what: the module graph, the vendor rule and the ambient-state rule.

    scripts/check_layers.py [ROOT]

Reads every add_module(...) under src/ and kernels/ and every #include of their sources, and reports
as file:line each

  * dependency that the architecture does not allow (ALLOWED below), or a cycle;
  * #include of a module that the including module does not name in DEPS;
  * vendor header outside the files that own it (VENDORS below);
  * getenv below src/app, and OpenMP outside the CPU kernels and the program.

A file that some SOURCES list belongs to that module, and so does its header; any other file to the
nearest folder above it that has an add_module; src/app is the program and may include everything. A
module nested in another's folder implements its interface: it may include the headers that lie
directly in that folder. Exit status: 0 clean, 1 findings, 2 cannot run.
"""

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

# What each module may depend on (docs/adr/0001-architecture.md). Modules below kernels/ (backends,
# their parts) are named freely; they may use core and one another.
ALLOWED = {
    "core": set(),
    "kernels": {"core"},
    "comm": {"core"},
    "config": {"core"},
    "parallel": {"core", "kernels", "comm", "config"},
    "model": {"core", "kernels", "comm", "config", "parallel"},
    "optim": {"core", "kernels", "comm", "config"},
    "data": {"core", "comm", "config"},
    "io": {"core", "comm", "config"},
    "train": {"core", "kernels", "comm", "config", "parallel", "model", "optim", "data", "io"},
    "plan": {"core", "kernels", "comm", "config", "parallel", "model", "optim", "data", "io",
             "train"},
}
PROGRAM = "app"
ALLOWED[PROGRAM] = set(ALLOWED)


@dataclass(frozen=True)
class Vendor:
    name: str
    header: re.Pattern
    homes: tuple  # files, or folders ending in /


NCCL_HOMES = ("src/comm/nccl.cpp", "src/comm/nccl_connection.h", "src/comm/nccl_connection.cpp")
VENDORS = (
    Vendor("MPI", re.compile(r"mpi\.h|mpi-ext\.h"), ("src/comm/mpi.cpp",)),
    Vendor("NCCL", re.compile(r"nccl\.h"), NCCL_HOMES),
    Vendor("CUDA", re.compile(r"cuda[\w/]*\.h(pp)?|cuda/.*|cublas\w*\.h|cudnn\w*\.h|nvrtc\.h|cub/.*|"
                              r"thrust/.*|cooperative_groups.*|nvtx3/.*|nvToolsExt\.h|mma\.h"),
           ("kernels/cuda/",) + NCCL_HOMES),
    Vendor("oneDNN", re.compile(r"oneapi/dnnl/.*|dnnl\w*\.h(pp)?"), ("kernels/cpu/",)),
    Vendor("yaml-cpp", re.compile(r"yaml-cpp/.*"), ("src/config/load.cpp",)),
    Vendor("HDF5", re.compile(r"hdf5\w*\.h|H5\w*\.h|hdf5/.*"),
           ("src/data/token_store.cpp", "src/data/token_store_writer.cpp",
            "src/data/token_store_hdf5.h", "src/io/")),
    Vendor("OpenMP", re.compile(r"omp\.h"), ("kernels/cpu/", "src/app/")),
    Vendor("GoogleTest", re.compile(r"(gtest|gmock)/.*"), ()),
)
PRAGMA_HOMES = ("kernels/cpu/", "src/app/")
SOURCES = {".h", ".hpp", ".cpp", ".cc", ".cu", ".cuh", ".inc", ".inl"}


@dataclass
class Module:
    name: str
    folder: str  # relative to the root
    line: int
    deps: list
    sources: list = field(default_factory=list)

    def where(self):
        return f"{self.folder}/CMakeLists.txt:{self.line}"


def at_home(path, homes):
    return any(path.startswith(h) if h.endswith("/") else path == h for h in homes)


def parse_modules(root):
    """Every add_module call, and what is wrong with the calls themselves."""
    modules, findings = {}, []
    keywords = {"DEPS", "SOURCES", "PROTOS", "VENDOR"}
    for top in ("src", "kernels"):
        for file in sorted((root / top).rglob("CMakeLists.txt")):
            folder = file.parent.relative_to(root).as_posix()
            text = re.sub(r"#[^\n]*", "", file.read_text())
            for call in re.finditer(r"\badd_module\s*\(([^)]*)\)", text):
                line = text.count("\n", 0, call.start()) + 1
                words = call.group(1).split()
                if not words:
                    findings.append(f"{folder}/CMakeLists.txt:{line}: add_module without a name")
                    continue
                lists, current = {k: [] for k in keywords}, None
                for word in words[1:]:
                    if word in keywords:
                        current = word
                    elif current:
                        lists[current].append(word)
                module = Module(words[0], folder, line, lists["DEPS"],
                                lists["SOURCES"] + lists["PROTOS"])
                if module.name in modules:
                    findings.append(f"{module.where()}: module '{module.name}' is declared twice, "
                                    f"also in {modules[module.name].where()}")
                else:
                    modules[module.name] = module
    return modules, findings


def allowed_deps(module, modules):
    """The dependencies that the architecture grants, or None for a module it does not know."""
    if module.folder.startswith("kernels/"):
        return {"core"} | {m.name for m in modules.values()
                           if m.folder == "kernels" or m.folder.startswith("kernels/")}
    granted = ALLOWED.get(module.name)
    if module.name == "kernels":
        # The factory of backends may link those below it.
        granted = granted | {m.name for m in modules.values() if m.folder.startswith("kernels/")}
    return granted


def check_graph(modules):
    findings = []
    for module in modules.values():
        granted = allowed_deps(module, modules)
        if granted is None:
            findings.append(f"{module.where()}: module '{module.name}' is not in the architecture; "
                            f"add it to ALLOWED in scripts/check_layers.py and to the ADR")
            continue
        for dep in module.deps:
            if dep not in modules:
                findings.append(f"{module.where()}: '{module.name}' depends on '{dep}', which no "
                                f"add_module declares")
            elif dep not in granted:
                findings.append(f"{module.where()}: '{module.name}' must not depend on '{dep}' "
                                f"(allowed: {', '.join(sorted(granted)) or 'nothing'})")
    return findings + check_cycles(modules)


def check_cycles(modules):
    state, findings = {}, []

    def visit(name, trail):
        if state.get(name) == "done" or name not in modules:
            return
        if state.get(name) == "open":
            loop = trail[trail.index(name):] + [name]
            findings.append(f"{modules[name].where()}: cycle {' -> '.join(loop)}")
            return
        state[name] = "open"
        for dep in modules[name].deps:
            visit(dep, trail + [name])
        state[name] = "done"

    for name in modules:
        visit(name, [])
    return findings


class Owners:
    """Which module a file belongs to."""

    def __init__(self, modules):
        self.by_folder, self.by_source = {}, {}
        for module in modules.values():
            self.by_folder.setdefault(module.folder, module)
            for source in module.sources:
                listed = os.path.normpath(Path(module.folder) / source)
                self.by_source[os.path.splitext(listed)[0]] = module

    def of(self, path):
        listed = self.by_source.get(os.path.splitext(path)[0])
        if listed:
            return listed
        folder = Path(path).parent
        while folder.as_posix() not in (".", ""):
            if folder.as_posix() in self.by_folder:
                return self.by_folder[folder.as_posix()]
            if folder.as_posix() == "src/app":
                return Module(PROGRAM, "src/app", 1, [])
            folder = folder.parent
        return None


def resolve(include, path, root):
    """The repository's file that a quoted include means, or None."""
    generated = re.sub(r"\.pb\.h$", ".proto", include)
    for candidate in (Path(path).parent / include, Path("src") / include, Path(include),
                      Path("src") / generated):
        if (root / candidate).is_file():
            return os.path.normpath(candidate)
    return None


def without_comments(text):
    """Comments blanked, line numbers and string literals kept."""
    pattern = r'//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\\n])*")'
    return re.sub(pattern, lambda m: m.group(1) or "\n" * m.group(0).count("\n"), text,
                  flags=re.S)


def check_vendor(include, path):
    for vendor in VENDORS:
        if vendor.header.fullmatch(include) and not at_home(path, vendor.homes):
            return (f"{vendor.name} header <{include}> outside "
                    f"{' and '.join(vendor.homes) or 'tests/'}")
    return None


def check_include(include, angled, path, module, owners, root):
    problem = check_vendor(include, path)
    if problem:
        return problem
    target = resolve(include, path, root)
    if target is None:
        known = include.split("/")[0] in ALLOWED and "/" in include
        if known and not angled:
            return f'#include "{include}": no such file'
        return None
    owner = owners.of(target)
    if owner is None or owner.name == module.name or module.name == PROGRAM:
        return None
    if owner.name == PROGRAM:
        return f'#include "{include}": nothing may include the program (src/app)'
    implements = module.folder.startswith(owner.folder + "/")
    if implements and Path(target).parent.as_posix() == owner.folder:
        return None
    if owner.name not in module.deps:
        return (f'#include "{include}": module \'{module.name}\' does not name \'{owner.name}\' in '
                f"the DEPS of {module.where()}")
    return None


def check_file(path, root, owners):
    module = owners.of(path)
    if module is None:
        return [f"{path}:1: belongs to no module; add_module it"]
    findings = []
    text = without_comments((root / path).read_text(errors="replace"))
    for number, line in enumerate(text.splitlines(), 1):
        include = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        problem = None
        if include:
            problem = check_include(include.group(2), include.group(1) == "<", path, module, owners,
                                    root)
        elif re.match(r"\s*#\s*pragma\s+omp\b", line) and not at_home(path, PRAGMA_HOMES):
            problem = f"#pragma omp outside {' and '.join(PRAGMA_HOMES)}"
        elif (re.search(r"\b(secure_)?getenv\s*\(", line) and not path.startswith("src/app/")):
            problem = "getenv below src/app: read it in src/app and pass it down"
        if problem:
            findings.append(f"{path}:{number}: {problem}")
    return findings


def check(root):
    modules, findings = parse_modules(root)
    if not modules:
        return [f"{root}: no add_module found"], 0
    findings += check_graph(modules)
    owners = Owners(modules)
    files = 0
    for top in ("src", "kernels"):
        for file in sorted((root / top).rglob("*")):
            if file.suffix in SOURCES and file.is_file():
                files += 1
                findings += check_file(file.relative_to(root).as_posix(), root, owners)
    return findings, files


def main(arguments):
    root = Path(arguments[1] if len(arguments) > 1 else Path(__file__).resolve().parent.parent)
    if not (root / "src").is_dir():
        print(f"check_layers: {root} has no src/", file=sys.stderr)
        return 2
    findings, files = check(root)
    for finding in findings:
        print(finding)
    print(f"check_layers: {files} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
