"""Models packed on their first use, kept in the user's cache by what they hold."""

import errno
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from thinbert import __version__
from thinbert.errors import ModelError
from thinbert.model.checkpoint import Checkpoint, read_checkpoint, read_json
from thinbert.model.config import PACKED_VERSION
from thinbert.model.pack import is_packed, pack

CACHE_VARIABLE = "THINBERT_CACHE"
_WORK, _ABANDONED = "packing-", 86_400  # seconds after which what is being packed belonged to a process that was killed
_log = logging.getLogger("thinbert")


def cache_folder() -> Path:
    """THINBERT_CACHE, else thinbert in XDG_CACHE_HOME or ~/.cache. Raises OSError where there is no home."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "thinbert"
    try:
        return Path("~/.cache").expanduser() / "thinbert"
    except RuntimeError:  # and a folder for all would hold what anybody put there
        raise OSError(errno.ENOENT, f"there is no home folder; set {CACHE_VARIABLE}") from None


def packed(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself if it is packed, else its packed form: from the cache, or made now and kept there.

    Raises:
        ModelError: the cache cannot be written.
    """
    if is_packed(read_json(checkpoint.folder / "config.json")):
        return checkpoint
    folder = "the cache"
    try:
        folder = str(cache_folder())
        # by version too: another may pack otherwise
        target = Path(folder) / f"packed-{PACKED_VERSION}-{__version__}" / checkpoint.sha256
        made = _kept(target) or _make(checkpoint, target)
    except OSError as e:
        raise ModelError(
            f"{folder}: cannot be written: {e.strerror}; set {CACHE_VARIABLE}, or load with precision float32"
        ) from e
    return replace(made, name=checkpoint.name)


def _kept(target: Path) -> Checkpoint | None:
    """What is there, or None where it is nothing, or damaged."""
    try:
        return read_checkpoint(target) if target.exists() else None
    except ModelError:
        return None


def _make(checkpoint: Checkpoint, target: Path) -> Checkpoint:
    _log.info("packing %s into %s (once)", checkpoint.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.glob(f"{_WORK}*"):
        with suppress(FileNotFoundError):  # whose process has just finished
            if time.time() - old.stat().st_mtime > _ABANDONED:
                shutil.rmtree(old, ignore_errors=True)
    # beside its place, then moved: several processes may pack at once, and the first to finish wins
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=target.parent) as work:
        mine = Path(work) / "model"
        while True:
            if not mine.exists():  # not yet; or it was there, and another process took it for the damaged one before
                pack(checkpoint, mine)
            try:
                mine.rename(target)
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if made := _kept(target):
                return made
            with suppress(FileNotFoundError):
                target.rename(Path(tempfile.mkdtemp(dir=work)) / "damaged")
