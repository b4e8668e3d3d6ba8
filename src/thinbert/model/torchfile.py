"""Reads `pytorch_model.bin` without torch, and without trusting it.

A torch checkpoint is a pickle beside raw buffers, and a pickle is a program. This reader runs it in a machine that can
build dictionaries, numbers, strings and tensors, and refuses every other global by name, so that nothing in the file is
executed. Both containers are read: the zip of torch >= 1.6 and the older flat file.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from thinbert.errors import ModelError, quoted
from thinbert.model.dtypes import to_numpy, widen_bfloat16

# torch storage class -> dtype in the spelling of thinbert.model.dtypes
_STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}

# First pickle of the flat format (torch.serialization.MAGIC_NUMBER) and the version that follows it.
_FLAT_MAGIC = 0x1950A86A20F9469CFC6C
_FLAT_PROTOCOL = 1001
_FLAT_BEGINNING = 256  # bytes, which hold the magic: a file that is none is not read


_MOST_PICKLE = 4 << 20  # bytes: those of BERT-large's are 0.1 MB, and each can take a hundred in memory
_MOST_NUMBERS = 17  # of a tensor: its offset, and sizes and strides of up to eight dimensions


class _RefusedError(Exception):
    """Something in the file that no tensor needs."""


def read_torch(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a torch checkpoint by name, in their stored dtype (bfloat16 as float32).

    Raises:
        ModelError: the file is damaged, holds anything but tensors, or reaches outside its own buffers.
    """
    try:
        with path.open("rb") as file:
            return _read_zip(file) if zipfile.is_zipfile(file) else _read_flat(file)
    except _RefusedError as e:
        raise ModelError(f"{path}: refused: {e}. thinbert reads tensors only; nothing in the file was run") from None
    except OSError as e:
        raise ModelError(f"{path}: cannot be read: {e.strerror or e}") from e
    # A damaged pickle can fail in any of the unpickler's own ways.
    except Exception as e:
        raise ModelError(f"{path}: not a whole torch checkpoint ({type(e).__name__}: {e}); download it again") from e


@dataclass(frozen=True)
class _Storage:
    """A flat buffer of `count` values somewhere in the file."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage; offset and strides in elements. Checked on creation to stay inside it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.size, *self.stride)
        if len(numbers) > _MOST_NUMBERS or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise _RefusedError("a tensor with a malformed layout")
        if not isinstance(self.storage, _Storage):
            raise _RefusedError("a tensor without a buffer")
        if len(self.size) != len(self.stride):
            raise _RefusedError(f"a tensor with {len(self.size)} sizes and {len(self.stride)} strides")
        values = math.prod(self.size)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        # more values than the buffer has would be a broadcast (stride 0): a few bytes posing as gigabytes
        if values and (values > self.storage.count or last >= self.storage.count):
            raise _RefusedError(
                f"a tensor of shape {list(self.size)} that reaches outside its buffer of {self.storage.count} values"
            )

    def view(self, buffer: NDArray[Any]) -> NDArray[Any]:
        if not math.prod(self.size):
            return np.empty(self.size, buffer.dtype)
        strides = tuple(s * buffer.itemsize for s in self.stride)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(buffer[self.offset :], self.size, strides))


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _Tensor:
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _ordered(*content: object) -> OrderedDict[Any, Any]:
    """An empty one, which torch then fills: of a small list in the file, copies could be made without end."""
    if content:
        raise _RefusedError("a dictionary made of something else")
    return OrderedDict()


def _rebuild_parameter(data: _Tensor, *_: object) -> _Tensor:
    return data


_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


_NEVER_WRITTEN = {
    code[0] for code in (pickle.BYTEARRAY8, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT)
}


def _check_names(keys: list[Any]) -> None:
    """Raises where one is no name: Python's hash of what is nested deep enough ends the process."""
    if not all(type(key) is str for key in keys):
        raise _RefusedError("a dictionary with other keys than names")


class _TensorUnpickler(pickle._Unpickler):
    """An unpickler whose whole vocabulary is _ALLOWED.

    The one written in Python: the other allocates its memo by the largest index named, so that a hundred bytes can take
    gigabytes. State dicts are short. Without instructions that torch never writes and that take memory before they
    read, or compute hashes of what is nested too deep for that.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: carry_out for code, carry_out in pickle._Unpickler.dispatch.items() if code not in _NEVER_WRITTEN
    }

    def load_setitem(self) -> None:
        _check_names(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _check_names(self.stack[::2])  # since the mark
        super().load_setitems()  # type: ignore[misc]

    def load_build(self) -> None:
        """torch hangs the versions of its modules on a state dict, which nobody reads."""
        self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:
            raise _RefusedError("it changes something after making it")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"it asks for the Python object {module:.50}.{name:.50}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        # ("storage", dtype, key, device, count[, view]) in both containers
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise _RefusedError(f"an unknown reference {quoted(pid)}")
        _, dtype, key, _, count, *view = pid
        if dtype not in _STORAGES.values() or not isinstance(key, str) or type(count) is not int or count < 0:
            raise _RefusedError(f"a malformed buffer {quoted(pid)}")
        if any(v is not None for v in view):
            raise _RefusedError("a view of a buffer (written before torch 0.4); save the file anew with a newer torch")
        return _Storage(key, dtype, count)


def _unpickle(file: io.BytesIO) -> Any:
    begun = file.tell()
    part = io.BytesIO(file.read(_MOST_PICKLE))
    made = _TensorUnpickler(part, encoding="utf-8").load()
    file.seek(begun + part.tell())
    return made


def _read_zip(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """The container of torch >= 1.6: NAME/data.pkl beside one stored entry NAME/data/KEY per buffer."""
    with zipfile.ZipFile(file) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(pickles) != 1:
            raise _RefusedError(f"a zip file with {len(pickles)} data.pkl entries, where a torch checkpoint has one")
        # torch never compresses; a compressed entry could swell without bound when read
        squeezed = next((e.filename for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED), None)
        if squeezed is not None:
            raise _RefusedError(f"a compressed entry {squeezed!r}, which torch never writes")
        sizes, size = sum(e.file_size for e in archive.infolist()), file.seek(0, io.SEEK_END)
        if sizes > size:  # entries that overlap
            raise _RefusedError(f"entries of {sizes} bytes in a file of {size}")
        if not any(e.CRC for e in archive.infolist()):  # torch.serialization.set_crc32_options(False)
            for e in archive.infolist():
                e.CRC = None  # type: ignore[assignment]  # zipfile then checks none
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise _RefusedError("a big-endian file; save it anew on a little-endian machine")
        tensors = _state_dict(_unpickle(io.BytesIO(archive.read(pickles[0]))))
        storages = _storages(tensors)
        buffers = {key: _buffer(archive.read(f"{root}data/{key}"), storage) for key, storage in storages.items()}
    return _views(tensors, buffers)


def _read_flat(content: BinaryIO) -> dict[str, NDArray[Any]]:
    """The container before torch 1.6: magic, version, platform, state dict, keys, then count and bytes per key."""
    content.seek(0)
    if _unpickle(io.BytesIO(content.read(_FLAT_BEGINNING))) != _FLAT_MAGIC:
        raise _RefusedError("it does not begin like a torch checkpoint")
    content.seek(0)
    file = io.BytesIO(content.read())  # a read of more than there is costs nothing here
    _unpickle(file)
    if _unpickle(file) != _FLAT_PROTOCOL:
        raise _RefusedError("an unknown version of torch's flat format")
    platform = _unpickle(file)
    if not isinstance(platform, dict) or platform.get("little_endian") is not True:
        raise _RefusedError("a big-endian file; save it anew on a little-endian machine")
    tensors = _state_dict(_unpickle(file))
    storages = _storages(tensors)
    keys = _unpickle(file)
    if isinstance(keys, list):
        _check_names(keys)
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise _RefusedError("a list of buffers that does not match its tensors")
    buffers: dict[str, NDArray[Any]] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        if count != storages[key].count:
            raise _RefusedError(
                f"buffer {quoted(key)} of {count} values where its tensors expect {storages[key].count}"
            )
        buffers[key] = _buffer(file.read(count * to_numpy(storages[key].dtype).itemsize), storages[key])
    return _views(tensors, buffers)


def _state_dict(state: object) -> dict[str, _Tensor]:
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise _RefusedError(f"it holds a {type(state).__name__}, not a dictionary of tensors (a state dict)")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _RefusedError(f"entry {quoted(name)} is a {type(value).__name__}, not a tensor")
    return state


def _storages(tensors: dict[str, _Tensor]) -> dict[str, _Storage]:
    """The buffers that tensors refer to, by key. Tensors were checked against what each said of its buffer, so all must
    say the same."""
    storages: dict[str, _Storage] = {}
    for tensor in tensors.values():
        if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise _RefusedError(f"buffer {quoted(tensor.storage.key)} described in two ways")
    return storages


def _buffer(data: bytes, storage: _Storage) -> NDArray[Any]:
    dtype = to_numpy(storage.dtype)
    if len(data) != storage.count * dtype.itemsize:
        raise _RefusedError(
            f"buffer {quoted(storage.key)} of {len(data)} bytes where {storage.count} values of {storage.dtype} "
            f"take {storage.count * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype)


def _views(tensors: dict[str, _Tensor], buffers: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    # many tensors over one buffer would make gigabytes of a small file; torch stores tied ones once, which are two
    total, stored = sum(math.prod(t.size) for t in tensors.values()), sum(len(b) for b in buffers.values())
    if total > 2 * stored:
        raise _RefusedError(f"tensors of {total} values over {stored} that are stored")
    views = {name: tensor.view(buffers[tensor.storage.key]) for name, tensor in tensors.items()}
    return {n: widen_bfloat16(v) if tensors[n].storage.dtype == "BF16" else v for n, v in views.items()}
