"""Model folders: find one (a path, a hub id, or the bundled default), read and check it, write one.

A folder holds config.json, weights (model.safetensors, its sharded form, or pytorch_model.bin) and a tokenizer.
Layout and rounding rules: docs/format.md.
"""

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from thinbert.errors import ModelError
from thinbert.files import write_atomic
from thinbert.model.blocks import ENDINGS, INDEX, START, Blocks, fault, to_blocks, to_dense
from thinbert.model.config import EncoderConfig, parse_config
from thinbert.model.dtypes import to_numpy, type_name, unknown, widen_bfloat16
from thinbert.model.families import FAMILIES, Family, modern_name
from thinbert.model.quantize import SCALE_SUFFIX, dequantize_rows, quantize_rows
from thinbert.model.torchfile import read_torch
from thinbert.model.weights import Array, ClassifyHead, Embeddings, Layer, Linear, Norm, Weights

DEFAULT_MODEL = "default"
_BUNDLED = Path(__file__).parent.parent / "models" / "default"

# In order of preference; an index names the shards that hold the weights.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json")
TRAINING_FILE = "training.json"  # how a model came about, where thinbert made it

_MOST_DIMENSIONS = 8
_SWELLING, _SPARE = 16, 1 << 24  # values for a byte that is stored, and more
_LISTED = 12  # tensors named in one error message before "and N more"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder read and checked: every tensor the encoder needs is there with the right shape."""

    name: str  # as the user called it
    folder: Path
    files: tuple[Path, ...]  # weight files, in order
    config: EncoderConfig
    tensors: Mapping[str, NDArray[Any]]  # by modern name, stored dtype; int8 beside its scales
    ignored: Mapping[str, NDArray[Any]]  # in the file, but read by no forward pass: buffers, poolers, other heads
    shapes: Mapping[str, tuple[int, ...]]  # [outputs, inputs] of every tensor, also of those stored as blocks
    has_span: bool
    has_classify: bool
    stamps: tuple[object, ...]  # of the files, when they were read

    def array(self, name: str) -> Array:
        """One tensor as float32. Raises ModelError where it is not finite."""
        stored = self.tensors.get(name)
        if stored is None:
            weight = dequantize_rows(to_dense(self.blocks(name)), self.tensors[name + SCALE_SUFFIX])
        elif stored.dtype == np.int8:
            weight = dequantize_rows(stored, self.tensors[name + SCALE_SUFFIX])
        else:
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, caught below
                weight = np.require(stored, np.float32, ("C", "ALIGNED"))
        if not np.isfinite(weight).all():
            raise ModelError(f"{self.folder}: tensor {name} holds NaN or infinity; the file is damaged")
        return weight

    def release(self) -> None:
        """Gives the memory of mapped files back until it is read again: after loading, most of it never is."""
        for tensor in self.tensors.values():
            base: Any = tensor
            while isinstance(base, np.ndarray | memoryview):
                base = base.base if isinstance(base, np.ndarray) else base.obj
            if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                base.madvise(mmap.MADV_DONTNEED)

    def blocks(self, name: str) -> Blocks:
        """One matrix as int8 blocks: as stored, or quantised now."""
        if name + INDEX in self.tensors:
            start, index, values = (np.require(self.tensors[name + e], requirements=["C", "A"]) for e in ENDINGS)
            return Blocks(self.shapes[name][1], start, index, values, self.tensors[name + SCALE_SUFFIX])
        if self.tensors[name].dtype == np.int8:
            return to_blocks(self.tensors[name], self.tensors[name + SCALE_SUFFIX])
        return to_blocks(*quantize_rows(self.array(name)))

    def linear(self, stem: str) -> Linear:
        return Linear(self.array(f"{stem}.weight"), self.array(f"{stem}.bias"))

    def norm(self, stem: str) -> Norm:
        return Norm(self.array(f"{stem}.weight"), self.array(f"{stem}.bias"))

    def span(self) -> Linear | None:
        return self.linear(FAMILIES[self.config.family].span) if self.has_span else None

    def classify(self) -> ClassifyHead | None:
        if not self.has_classify:
            return None
        f = FAMILIES[self.config.family]
        return ClassifyHead(self.linear(f.classify_hidden), f.classify_activation, self.linear(f.classify_out))

    def layer(self, i: int) -> Layer:
        family = FAMILIES[self.config.family]
        stems = {field: family.prefix + stem.format(i=i) for field, stem in family.layer.items()}
        parts = {f: self.norm(s) if f.endswith("_norm") else self.linear(s) for f, s in stems.items()}
        return Layer(**parts)  # type: ignore[arg-type]

    def weights(self) -> Weights:
        """Everything the encoder and its heads compute with, as float32.

        Raises:
            ModelError: a weight is NaN or infinite.
        """
        family = FAMILIES[self.config.family]
        e = {field: family.prefix + name for field, name in family.embeddings.items()}
        return Weights(
            embeddings=Embeddings(
                token=self.array(e["token"]),
                position=self.array(e["position"]),
                token_type=self.array(e["token_type"]) if "token_type" in e else None,
                norm=self.norm(e["norm"]),
            ),
            layers=tuple(self.layer(i) for i in range(self.config.layers)),
            span=self.span(),
            classify=self.classify(),
        )

    @cached_property
    def sha256(self) -> str:
        """A digest of config, weights and tokenizer: the identity of the model in records and caches.

        Raises:
            ModelError: the files are others than those that were read.
        """
        digest = hashlib.sha256()
        try:
            for file in _read_from(self.folder, self.files):
                with file.open("rb") as f:
                    digest.update(file.name.encode() + hashlib.file_digest(f, "sha256").digest())
            same = _stamps(self.folder, self.files) == self.stamps
        except OSError:
            same = False
        if not same:
            raise ModelError(f"{self.folder}: has changed since it was loaded; load it again")
        return digest.hexdigest()


def find_model(model: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None) -> Path:
    """The local folder of a model: the bundled one for "default", a path as it is, a hub id after downloading it, also
    with its revision, `owner/name@revision`.

    A download shows a progress bar and goes to the Hugging Face cache; HF_HOME, HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE mean what they mean there. Only config, tokenizer and weights are fetched, safetensors before
    pickles.

    Raises:
        ModelError: there is no such folder and no such repository, the download failed, or a revision was given of what
            is here.
    """
    name = os.fspath(model)
    path = Path(name)
    try:
        if name == DEFAULT_MODEL or (name and path.is_dir()):
            if revision is not None:
                what = "is the bundled model" if name == DEFAULT_MODEL else "is a folder here"
                raise ModelError(f"{name} {what}, and has no revision {revision}; leave it out")
            return _BUNDLED if name == DEFAULT_MODEL else path
        if name and path.exists():
            raise ModelError(f"{name} is a file; a model is a folder with config.json, weights and a tokenizer")
    except OSError as e:  # too long a name, no right to look
        raise ModelError(f"model {name[:100]}: {e.strerror}") from e
    repo, at, named = name.partition("@")
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", repo) or name.startswith("."):
        raise ModelError(f"model {name!r}: no such folder")
    if at and (revision is not None or not re.fullmatch(r"[\w./-]{1,200}", named)):
        raise ModelError(f"model {name}: {'two revisions' if revision is not None else 'no revision after @'}")
    return _download(repo, named or revision, token)


def _download(repo: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(filename: str) -> Path:
        return Path(hf_hub_download(repo, filename, revision=revision, token=token))

    def fetch_if_there(filename: str) -> Path | None:
        if try_to_load_from_cache(repo, filename, revision=revision) is _CACHED_NO_EXIST:
            return None  # a commit lacks what it lacks; the hub need not be there to say so again
        try:
            return fetch(filename)
        except LocalEntryNotFoundError:  # offline and not cached: is an EntryNotFoundError, but says less
            if constants.HF_HUB_OFFLINE:
                return None
            raise
        except EntryNotFoundError:
            return None

    try:
        config = fetch("config.json")
        revision = config.parent.name  # the commit: a branch may move on before the next file
        for name in TOKENIZER_FILES:
            fetch_if_there(name)
        weights = next(filter(None, map(fetch_if_there, _WEIGHT_FILES)), None)
        if weights is None and constants.HF_HUB_OFFLINE:
            raise ModelError(f"model {repo}: its weights are not in the local cache, and HF_HUB_OFFLINE is set")
        if weights is not None and weights.name.endswith(".index.json"):
            for shard in _shards(weights):
                fetch(shard)
    except GatedRepoError as e:
        raise ModelError(f"model {repo} is gated: accept its terms on the hub and set HF_TOKEN") from e
    except RepositoryNotFoundError as e:
        raise ModelError(f"model {repo}: no such folder, and no such repository on the hub (or it is private)") from e
    except RevisionNotFoundError as e:
        raise ModelError(f"model {repo} has no revision {revision!r}") from e
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as e:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub did not give it ({_cause(e)})"
        raise ModelError(f"model {repo}: no such folder, not in the local cache, and {why}") from e
    except EntryNotFoundError as e:
        raise ModelError(f"model {repo} lacks a file it needs: {_cause(e)}") from e
    except ModelError:
        raise
    except Exception as e:  # a broken connection raises types of whatever HTTP library the hub client uses
        raise ModelError(f"model {repo}: download failed: {_cause(e)}") from e
    return config.parent


def _cause(error: BaseException) -> str:
    """The first line of what is at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ModelError naming the file and the place."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise ModelError(f"{path}: no such file; a model folder needs it") from e
    except OSError as e:
        raise ModelError(f"{path}: cannot be read: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def read_checkpoint(
    model: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Reads and checks a model folder or hub id (see find_model). Weights stay memory-mapped where the file allows.

    Raises:
        ModelError: anything about the folder is not as it should be. Missing, unexpected and misshapen tensors are
            listed by name with found and expected shapes.
    """
    folder = find_model(model, revision=revision, token=token)
    config = parse_config(read_json(folder / "config.json"), where=str(folder / "config.json"))
    family = FAMILIES[config.family]
    files = _weight_files(folder)
    stamps = _stamps(folder, files)
    tensors: dict[str, NDArray[Any]] = {}
    for file in files:
        read = read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
        for name, tensor in read.items():
            name = modern_name(name, family)
            if name in tensors:
                raise ModelError(f"{file}: tensor {name} is stored twice")
            tensors[name] = tensor

    def has(stem: str) -> bool:
        return f"{stem}.weight" in tensors or f"{stem}.weight{INDEX}" in tensors  # dense, or as blocks

    has_span = has(family.span)
    # a classifier that reads every token (tagging) is not ours, and has no layer before it, or one that it does not use
    has_classify = has(family.classify_out) and has(family.classify_hidden) and config.of_texts
    if has_span and config.token_types == 1:
        raise ModelError(f"{folder / 'config.json'}: type_vocab_size is 1; a question and its text need 2")
    classes = len(config.labels) or _rows(tensors, f"{family.classify_out}.weight") if has_classify else 0
    expected = dict(expected_shapes(config, family, has_span=has_span, classes=classes))
    ignored = _check_tensors(tensors, expected, family, folder)
    return Checkpoint(
        name=os.fspath(model),
        folder=folder,
        files=files,
        config=config,
        tensors={n: t for n, t in tensors.items() if n not in ignored},
        ignored={n: tensors[n] for n in ignored},
        shapes=expected,
        has_span=has_span,
        has_classify=has_classify,
        stamps=stamps,
    )


def _read_from(folder: Path, files: Iterable[Path]) -> list[Path]:
    """What a model is made of."""
    tokenizer = (folder / name for name in TOKENIZER_FILES)
    return [folder / "config.json", *files, *(f for f in tokenizer if f.is_file())]


def _stamps(folder: Path, files: Iterable[Path]) -> tuple[object, ...]:
    """What tells these files from others of their names. A file that is not there is told when it is read."""
    found = ((f.name, f.stat()) for f in _read_from(folder, files) if f.is_file())
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns) for name, at in found)


def expected_shapes(
    config: EncoderConfig, family: Family, *, has_span: bool, classes: int
) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor the model needs; without classes it needs no head for them."""
    D, p = config.width, family.prefix

    def linear(stem: str, outputs: int, inputs: int) -> Iterable[tuple[str, tuple[int, ...]]]:
        return ((f"{stem}.weight", (outputs, inputs)), (f"{stem}.bias", (outputs,)))

    rows = {"token": config.vocabulary, "position": config.positions, "token_type": config.token_types}
    for field, stem in family.embeddings.items():
        if field == "norm":
            yield from ((f"{p}{stem}.weight", (D,)), (f"{p}{stem}.bias", (D,)))
        else:
            yield p + stem, (rows[field], D)
    for i in range(config.layers):
        A, F = config.heads[i] * config.head_size, config.ffn[i]
        shapes = {
            "query": (A, D),
            "key": (A, D),
            "value": (A, D),
            "attention_output": (D, A),
            "ffn_in": (F, D),
            "ffn_out": (D, F),
        }
        for field, stem in family.layer.items():
            stem = p + stem.format(i=i)
            if field in shapes:
                yield from linear(stem, *shapes[field])
            else:
                yield from ((f"{stem}.weight", (D,)), (f"{stem}.bias", (D,)))
    if has_span:
        yield from linear(family.span, 2, D)
    if classes:
        yield from linear(family.classify_hidden, D, D)
        yield from linear(family.classify_out, classes, D)


def _check_tensors(
    tensors: Mapping[str, NDArray[Any]],
    expected: Mapping[str, tuple[int, ...]],
    family: Family,
    folder: Path,
) -> tuple[str, ...]:
    """Compares what is there with what is needed; returns the names of tensors that may be ignored.

    A stranger inside the encoder is an error, because it would mean the model computes something thinbert does not; a
    stranger outside it (the head of another task) is not.
    """
    faults = []
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if name + INDEX in tensors and len(shape) == 2:
            faults += _block_faults(tensors, name, shape)
        elif tensor is None:
            faults.append(f"missing {name} {_shape(shape)}")
        elif tensor.shape != shape:
            faults.append(f"misshapen {name}: found {_shape(tensor.shape)}, expected {_shape(shape)}")
        elif tensor.dtype == np.int8 and tensor.ndim == 2:
            scale = tensors.get(name + SCALE_SUFFIX)
            if scale is None or scale.shape != tensor.shape[:1] or scale.dtype != np.float32:
                found = "none" if scale is None else f"{_shape(scale.shape)} of {scale.dtype}"
                faults.append(f"int8 {name}: found scales {found}, expected {_shape(tensor.shape[:1])} of float32")
            elif not np.isfinite(scale).all():
                faults.append(f"int8 {name}: its scales hold NaN or infinity")
        elif tensor.dtype.kind != "f":
            faults.append(f"{name} is of type {type_name(tensor)}; expected floating point, or int8 for a matrix")
    belonging = {n + SCALE_SUFFIX for n in expected if n in tensors and tensors[n].dtype == np.int8}
    belonging |= {n + e for n in expected if n + INDEX in tensors for e in (*ENDINGS, SCALE_SUFFIX)}
    strangers = [n for n in tensors if n not in expected and n not in belonging]
    ignored = tuple(n for n in strangers if any(pattern.fullmatch(n) for pattern in family.ignorable))
    faults += [
        f"unexpected {n} {_shape(tensors[n].shape)}"
        for n in strangers
        if n.startswith(family.prefix) and n not in ignored
    ]
    if faults:
        more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise ModelError(f"{folder}: weights do not fit config.json: {'; '.join(faults[:_LISTED])}{more}")
    # a matrix without a block is a few bytes a row: a small file could ask for any amount of memory
    whole = sum(math.prod(shape) for name, shape in expected.items() if name + INDEX in tensors)
    stored = sum(tensor.nbytes for tensor in tensors.values())
    if whole > _SWELLING * stored + _SPARE:
        raise ModelError(f"{folder}: refused: matrices of {whole} values, stored as blocks in {stored} bytes")
    return tuple(strangers)


def _block_faults(tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> list[str]:
    """What is wrong with a matrix stored as blocks."""
    if name in tensors:
        return [f"{name} is stored twice, whole and as blocks"]
    absent = [name + e for e in (*ENDINGS, SCALE_SUFFIX) if name + e not in tensors]
    if absent:
        return [f"missing {n}" for n in absent]
    rows, columns = shape
    scale = tensors[name + SCALE_SUFFIX]
    if scale.shape != (rows,) or scale.dtype != np.float32 or not np.isfinite(scale).all():
        return [f"blocks of {name}: found scales {_shape(scale.shape)} of {scale.dtype}, expected [{rows}] of float32"]
    start, index, values = (tensors[name + e] for e in ENDINGS)
    wrong = fault(start, index, values, rows=rows, columns=columns)
    return [f"blocks of {name}: {wrong}"] if wrong else []


def _rows(tensors: Mapping[str, NDArray[Any]], name: str) -> int:
    """Rows of a tensor as it is stored, whole or as blocks; at least one, of a tensor yet to be checked."""
    stored = tensors.get(name)
    if stored is not None:
        return max(1, int(stored.shape[0])) if stored.ndim else 1
    start = tensors.get(name + START)
    return max(1, start.size - 1) if start is not None else 1


def _shape(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for name in _WEIGHT_FILES:
        file = folder / name
        if file.is_file():
            return tuple(folder / shard for shard in _shards(file)) if name.endswith(".index.json") else (file,)
    raise ModelError(f"{folder}: no weights; expected one of {', '.join(_WEIGHT_FILES)}")


def _shards(index: Path) -> list[str]:
    """File names listed in a sharded checkpoint's index, each checked to be a plain name in the same folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: weight_map is missing; expected tensor name -> file name")
    names = sorted({str(n) for n in weight_map.values()})
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name):
            raise ModelError(f"{index}: weight_map names the file {name!r}; expected a weight file in the same folder")
    return names


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file as read-only views of the mapped file (bfloat16 widened to float32).

    Raises:
        ModelError: missing, truncated, overlapping or otherwise invalid, or a dtype no encoder uses.
    """
    try:
        with safe_open(path, "numpy"):  # checks the header: sizes, overlaps, bounds
            pass
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, PermissionError) as e:
        reason = "no such file" if not path.exists() else "no permission to read it"
        raise ModelError(f"{path}: {reason}") from e
    except (SafetensorError, OSError, ValueError) as e:
        raise ModelError(f"{path}: not a whole safetensors file ({e}); download it again") from e
    start = 8 + int.from_bytes(data[:8], "little")
    tensors: dict[str, NDArray[Any]] = {}
    for name, entry in json.loads(data[8:start], object_pairs_hook=list):
        if name == "__metadata__":
            continue
        if name in tensors:
            raise ModelError(f"{path}: tensor {name} is stored twice")
        fields = dict(entry)
        shape = fields["shape"]
        if len(shape) > _MOST_DIMENSIONS or math.prod(n or 1 for n in shape) > len(data):
            raise ModelError(
                f"{path}: tensor {name} has the shape {shape}; expected one or two dimensions of that file"
            )
        try:
            dtype = to_numpy(fields["dtype"])
        except KeyError:  # which matters only if it is needed
            tensors[name] = np.broadcast_to(unknown(fields["dtype"]), shape)
            continue
        tensor = np.frombuffer(data, dtype, math.prod(shape), start + fields["data_offsets"][0]).reshape(shape)
        tensors[name] = widen_bfloat16(tensor) if fields["dtype"] == "BF16" else tensor
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Writes tensors atomically: the file is whole or not there."""
    from safetensors.numpy import save

    write_atomic(path, save(dict(tensors), dict(metadata)))


def copy_files(source: Path, out: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
    """Files of a model folder, its tokenizer's unless told, written into another, which loses those that it lacks."""
    for name in names:
        if (source / name).is_file():
            write_atomic(out / name, (source / name).read_bytes())
        else:
            (out / name).unlink(missing_ok=True)
