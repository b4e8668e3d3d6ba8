"""Throws broken model folders at the reader for a while: each is read, or refused with a ModelError, and nothing else.

    python tools/fuzz.py [--seconds 60] [--seed 0]

Folders in every stored form (packed, safetensors, both containers of torch) are made here, then a few bytes, numbers or
lengths of one file are changed. What is read is also run, so that the engine meets whatever the checks let through; it
may refuse its inputs then, or numbers that overflow. A failure keeps its folder and says where.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch

import thinbert
import tiny
from thinbert.model.checkpoint import read_checkpoint
from thinbert.model.pack import pack

Random = np.random.RandomState


def folders(root: Path) -> list[Path]:
    """One small model in every stored form."""
    config = tiny.bert_config(hidden_size=64, num_attention_heads=2, intermediate_size=64, num_hidden_layers=1)
    tensors = tiny.bert_tensors(config)
    for stem in tiny.linear_stems(config):
        tiny.prune(tensors, stem, 0.2, (1, 4))
    portable = tiny.write_model(root / "safetensors", config, tensors)
    pack(read_checkpoint(portable), root / "packed")
    made = [portable, root / "packed"]
    for name, modern in (("zip", True), ("flat", False)):
        folder = tiny.write_model(root / name, config, None)
        state = {n: torch.from_numpy(t) for n, t in tensors.items()}
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=modern)
        made.append(folder)
    return made


def flip_bytes(content: bytearray, random: Random) -> bytearray:
    # half of the changes in the first kilobytes, where headers and pickles are
    reach = len(content) if random.randint(2) else min(len(content), 4096)
    for _ in range(random.randint(1, 9)):
        content[random.randint(reach)] = random.randint(256)
    return content


def cut(content: bytearray, random: Random) -> bytearray:
    return content[: random.randint(len(content))]


def swap_numbers(content: bytearray, random: Random) -> bytearray:
    """Replaces one decimal number in the text at the head of a file by an odd one of the same length."""
    head = bytes(content[:8192])
    places = [i for i in range(len(head) - 1) if head[i : i + 1].isdigit() and not head[i - 1 : i].isdigit()]
    if not places:
        return content
    start = places[random.randint(len(places))]
    end = start
    while end < len(head) and head[end : end + 1].isdigit():
        end += 1
    content[start:end] = bytes(random.choice(list(b"0123456789"), end - start).astype(np.uint8))
    return content


CHANGES: tuple[Callable[[bytearray, Random], bytearray], ...] = (flip_bytes, cut, swap_numbers)


def try_out(folder: Path) -> str:
    """What becomes of a model folder: refused, read, or read and then stopped by one of our errors."""
    ids, types, lengths = tiny.ragged([9, 3])
    try:
        if folder.name == "packed":
            model = thinbert.load(folder, threads=2)
        else:
            model = thinbert.load(folder, precision="float32")
    except thinbert.ModelError:
        return "refused"
    try:
        model.forward(ids, types, lengths)
        model.read("who is the", ["the tower in paris"])
    except thinbert.Error:
        return "stopped"
    return "read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    random = Random(args.seed)
    root = Path(tempfile.mkdtemp(prefix="thinbert-fuzz-"))
    originals = folders(root)
    for original in originals:
        if (found := try_out(original)) != "read":
            raise SystemExit(f"{original.name}: {found} before anything was broken; nothing was tried")
    counts = {o.name: dict.fromkeys(("read", "stopped", "refused"), 0) for o in originals}
    deadline = time.monotonic() + args.seconds
    while time.monotonic() < deadline:
        original = originals[random.randint(len(originals))]
        target = root / "case" / original.name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(original, target)
        files = sorted(target.iterdir())
        file = files[random.randint(len(files))]
        change = CHANGES[random.randint(len(CHANGES))]
        file.write_bytes(change(bytearray(file.read_bytes()), random))
        try:
            counts[original.name][try_out(target)] += 1
        except Exception:
            kept = Path(tempfile.mkdtemp(prefix="thinbert-fuzz-failure-")) / original.name
            shutil.copytree(target, kept)
            print(f"{change.__name__} of {file.name} in {original.name}: kept in {kept}", file=sys.stderr)
            raise
    shutil.rmtree(root)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
