"""The native module: built, typed, and honest about the processor."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from thinbert import _core


def test_cpu_features_agree_with_the_kernel() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("/proc/cpuinfo does not exist")
    flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split(":")[1].split()
    known = {"avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "amx_tile", "amx_int8"}
    found, there = set(_core.cpu_features()), known & set(flags)
    assert found - there == set()
    assert there - found <= {"amx_tile", "amx_int8"}  # a sandbox may refuse them


ROOT = Path(__file__).parent.parent
FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avxvnni": ["-mavx2", "-mfma"],
    "avx512vnni": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
    "amx": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
}


@pytest.mark.parametrize("isa", FLAGS)
def test_kernel_files_share_no_code(tmp_path: Path, isa: str) -> None:
    """A kernel file defines one symbol and nothing the linker could merge: code compiled for one instruction set must
    never run in another's place."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler or platform.machine() != "x86_64":
        pytest.skip("no C++ compiler for x86-64")
    source = ROOT / "core" / "kernels" / f"{isa}.cc"
    made = tmp_path / "kernel.o"
    subprocess.run([compiler, "-std=c++17", "-O2", "-fPIC", *FLAGS[isa], "-c", source, "-o", made], check=True)
    symbols = subprocess.run(
        ["nm", "--defined-only", "-g", "-C", made], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split(maxsplit=2)[2] for line in symbols.splitlines()]
    assert names == [f"thinbert::{isa}_kernels()"]
    if isa == "generic":  # and no instruction beyond the baseline
        code = subprocess.run(["objdump", "-d", made], capture_output=True, text=True, check=True).stdout
        assert not re.search(r"%[yz]mm|\tv[a-z]+ps\b", code)


def test_flags_are_those_of_the_build_and_of_the_dispatch() -> None:
    """What a kernel file may use is what the processor is asked for."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    needs = {name: features for name, features, _, _ in _core.instruction_sets()}
    for isa in ("avx2", "avxvnni", "avx512vnni", "amx"):
        flags = re.search(rf'{isa}\.cc PROPERTIES COMPILE_OPTIONS\s+"([^"]+)"', cmake)
        assert flags
        used = {f.removeprefix("-m") for f in flags[1].split(";") if f.startswith("-m") and "width" not in f}
        written = {"avx_vnni", "amx_tile", "amx_int8"} if isa in ("avxvnni", "amx") else set()  # as assembly
        assert used == {f.replace("_", "") for f in needs[isa] if f not in written}


def test_stub_names_what_the_module_has() -> None:
    stub = (ROOT / "src" / "thinbert" / "_core.pyi").read_text()
    for name in (n for n in dir(_core) if not n.startswith("_")):
        assert re.search(rf"^(def|class) {name}\b", stub, re.MULTILINE), name
    for name in (n for n in dir(_core.Encoder) if not n.startswith("_")):
        assert re.search(rf"^    def {name}\b", stub, re.MULTILINE), name
