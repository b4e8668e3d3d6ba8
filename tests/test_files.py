"""Files that are written whole or not at all."""

from pathlib import Path
from typing import Any

import pytest

from thinbert import files


def test_a_write_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    files.write_atomic(path, b"old")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["kept.json"]


def test_what_a_killed_write_left_is_known(tmp_path: Path) -> None:
    names = [".a.json.0123abcd.tmp", ".b.json.0123abcd.tmp", ".a.json.tmp", "a.json.0123abcd.tmp"]
    for name in names:
        (tmp_path / name).touch()
    assert {f.name for f in files.leftovers(tmp_path)} == set(names[:2])
    assert [f.name for f in files.leftovers(tmp_path, "a.json")] == names[:1]
