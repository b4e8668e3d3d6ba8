"""The Open Inference Protocol, version 2 (KServe, Triton), in JSON and with its binary tensor extension.

Question answering takes `question` and `context` (BYTES, one shape) and gives `answer` (BYTES), `score` (FP32), `start`
and `end` (INT64) and `no_answer` (FP32). Classification takes `text` and, if wanted, `text_pair`, and gives `label`
(BYTES) and `score` (FP32).
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinbert.corpus.pages import is_text
from thinbert.errors import InputError

HEADER = "Inference-Header-Content-Length"  # bytes of the JSON that binary tensors follow
LARGEST = 1 << 16  # elements of a tensor: a shape is a promise, and memory is made for it
_DEEPEST = 8
_NUMBERS = {"FP32": "<f4", "INT64": "<i8"}


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]  # flat: str for BYTES, numbers else


@dataclass(frozen=True)
class Request:
    id: str | None
    inputs: Mapping[str, Tensor]
    wanted: Mapping[str, bool] | None  # outputs that are asked for, and whether in binary; None: all
    binary: bool  # of all outputs, where nothing is said


def parse(body: bytes, header_length: str | None) -> Request:
    """A request, JSON alone, or JSON of `header_length` bytes followed by binary tensors in the order of the inputs.

    Raises:
        InputError: saying what is wrong and where.
    """
    length = len(body)
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
        if not digits or int(header_length) > len(body):
            raise InputError(f"{HEADER} is {header_length[:20]!r}; expected from 0 to the body's {len(body)}")
        length = int(header_length)
    try:
        root = json.loads(body[:length])
    except (ValueError, RecursionError) as e:
        raise InputError(f"not valid JSON: {e}") from None
    if not isinstance(root, dict):
        raise InputError("expected a JSON object with inputs")
    place = length
    inputs: dict[str, Tensor] = {}
    for number, raw in enumerate(_list(root, "inputs")):
        where = f"inputs[{number}]"
        if not isinstance(raw, dict):
            raise InputError(f"{where}: expected an object")
        size = _parameters(raw, where).get("binary_data_size")
        content = None
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(body) - place:
                raise InputError(
                    f"{where}: binary_data_size is {size!r}; {len(body) - place} bytes are left in the body"
                )
            content, place = body[place : place + size], place + size
        tensor = _tensor(raw, content, where)
        if tensor.name in inputs:
            raise InputError(f"{where}: a second input named {tensor.name!r}")
        inputs[tensor.name] = tensor
    if place != len(body):
        raise InputError(f"{len(body) - place} bytes after the last tensor")
    binary = bool(_parameters(root, "").get("binary_data_output", False))
    wanted = None
    if root.get("outputs") is not None:
        wanted = {}
        for number, raw in enumerate(_list(root, "outputs")):
            where = f"outputs[{number}]"
            if not isinstance(raw, dict) or not is_text(raw.get("name")):
                raise InputError(f"{where}: expected an object with a name")
            wanted[raw["name"]] = bool(_parameters(raw, where).get("binary_data", binary))
    request_id = root.get("id")
    if request_id is not None and not is_text(request_id):
        raise InputError("id: expected a text")
    return Request(request_id, inputs, wanted, binary)


def texts(request: Request, name: str, like: Tensor | None = None, *, may_be_empty: bool = False) -> Tensor:
    """The input of that name: text, and of the same shape as another.

    Raises:
        InputError: it is missing, of another type or shape, not UTF-8, or empty.
    """
    tensor = request.inputs.get(name)
    if tensor is None:
        raise InputError(f"inputs: {name} is missing; found {', '.join(request.inputs) or 'none'}")
    if tensor.datatype != "BYTES":
        raise InputError(f"{name}: datatype is {tensor.datatype}; expected BYTES")
    if like is not None and tensor.shape != like.shape:
        raise InputError(f"{name}: shape is {list(tensor.shape)}, and {like.name} has {list(like.shape)}")
    for number, text in enumerate(tensor.data):
        if not text.strip() and not may_be_empty:
            raise InputError(f"{name}[{number}]: is empty")
    return tensor


def answer(
    request: Request, model: str, version: str, outputs: Sequence[tuple[str, str, Sequence[Any]]], shape: Sequence[int]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part where binary tensors follow.

    Args:
        outputs: (name, datatype, flat data) of each.
    Raises:
        InputError: an output was asked for that there is not.
    """
    known = {name for name, _, _ in outputs}
    for name in request.wanted or ():
        if name not in known:
            raise InputError(f"outputs: there is no {name!r}; there are {', '.join(sorted(known))}")
    described, binary = [], b""
    for name, datatype, data in outputs:
        if request.wanted is not None and name not in request.wanted:
            continue
        one: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
        if request.wanted[name] if request.wanted is not None else request.binary:
            packed = _pack(datatype, data)
            one["parameters"] = {"binary_data_size": len(packed)}
            binary += packed
        else:
            one["data"] = list(data)
        described.append(one)
    root: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        root["id"] = request.id
    head = json.dumps(root, ensure_ascii=False).encode()
    return head + binary, len(head) if binary else None


def _pack(datatype: str, data: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        encoded = [text.encode() for text in data]
        return b"".join(struct.pack("<I", len(e)) + e for e in encoded)
    return np.asarray(data, _NUMBERS[datatype]).tobytes()


def _tensor(raw: Mapping[str, Any], content: bytes | None, where: str) -> Tensor:
    name, datatype, shape = raw.get("name"), raw.get("datatype"), raw.get("shape")
    if not is_text(name) or not is_text(datatype):
        raise InputError(f"{where}: expected a name and a datatype, both texts")
    if (
        not isinstance(shape, list)
        or len(shape) > _DEEPEST
        or not all(type(n) is int and 0 <= n <= LARGEST for n in shape)
        or math.prod(shape) > LARGEST
    ):
        raise InputError(
            f"{name}: shape is {str(shape)[:80]}; expected up to {_DEEPEST} sizes, {LARGEST} elements in all"
        )
    count = math.prod(shape)
    if datatype != "BYTES":
        return Tensor(name, datatype, tuple(shape), [])  # none of our inputs; `texts` says so where it is asked for
    if content is not None:
        data = _unpack(content, count, name)
    else:
        data = _flat(raw.get("data"), name, 0)
        if len(data) != count:
            raise InputError(f"{name}: {len(data)} elements for a shape of {count}")
    return Tensor(name, datatype, tuple(shape), data)


def _unpack(content: bytes, count: int, name: str) -> list[str]:
    """Elements of a BYTES tensor: each a length in four bytes, little end first, and so many bytes."""
    found, place = [], 0
    for number in range(count):
        if place + 4 > len(content):
            raise InputError(f"{name}: ends before element {number} of {count}")
        (size,) = struct.unpack_from("<I", content, place)
        place += 4
        if size > len(content) - place:
            raise InputError(f"{name}[{number}]: {size} bytes, and {len(content) - place} are left")
        try:
            found.append(content[place : place + size].decode())
        except UnicodeDecodeError as e:
            raise InputError(f"{name}[{number}]: not UTF-8 at byte {e.start}") from None
        place += size
    if place != len(content):
        raise InputError(f"{name}: {len(content) - place} bytes after its last element")
    return found


def _flat(data: Any, name: str, depth: int) -> list[str]:
    if isinstance(data, list) and depth <= _DEEPEST:
        return [text for part in data for text in _flat(part, name, depth + 1)]
    if not isinstance(data, str):
        raise InputError(f"{name}: data holds {'nothing' if data is None else type(data).__name__}; expected texts")
    if not is_text(data):
        raise InputError(f"{name}: holds half a surrogate pair, which is no text")
    return [data]


def _list(raw: Mapping[str, Any], key: str) -> list[Any]:
    value = raw.get(key)
    if not isinstance(value, list):
        raise InputError(f"{key}: expected a list")
    return value


def _parameters(raw: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    value = raw.get("parameters")
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{where}{'.' if where else ''}parameters: expected an object")
    return value or {}
