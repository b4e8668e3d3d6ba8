"""The native module: built, typed, and honest about the processor."""

from pathlib import Path

import pytest

from thinbert import _core


def test_cpu_features_agree_with_the_kernel() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("/proc/cpuinfo does not exist")
    flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split(":")[1].split()
    known = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512vbmi", "avx512_bf16"}
    assert set(_core.cpu_features()) == known & set(flags)
