"""PyTorch's .pth files, read without PyTorch, as data: nothing in them is imported or run.

`torch.save` has two formats. Since PyTorch 1.6 it is a zip, of a pickle and of the bytes of each storage; before that,
pickles one after the other, and the storages behind them (torch/serialization.py, `_load` and `_legacy_load`).
"""

import functools
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from alexnet_jax import pickles
from alexnet_jax.files import check_plain
from alexnet_jax.options import InputError
from alexnet_jax.pickles import Maker, Stub
from alexnet_jax.shown import reason, short

LARGEST = 2**24  # bytes of the pickles: those of a network have a few thousand
_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before 1.6
_STATES = ("state_dict", "model_state_dict", "model")  # where a training keeps the network beside other things
# PyTorch's name of a type, NumPy's, and that of its storages, where it has some of its own.
_TYPES = (
    ("float64", "f8", "Double"), ("float32", "f4", "Float"), ("float16", "f2", "Half"), ("bfloat16", None, "BFloat16"),
    ("int64", "i8", "Long"), ("int32", "i4", "Int"), ("int16", "i2", "Short"), ("int8", "i1", "Char"),
    ("uint64", "u8", ""), ("uint32", "u4", ""), ("uint16", "u2", ""), ("uint8", "u1", "Byte"), ("bool", "?", "Bool"),
)  # fmt: skip


class _Storage(NamedTuple):
    """Numbers that lie one after the other, of which tensors are views. read: their bytes, in this machine's order,
    for numbers of so many bytes each.
    """

    dtype: np.dtype
    length: int
    read: Callable[[int], bytes]


class _Tensor(Stub):
    """A view of a storage, of which nothing is read before `array`. Offset, shape and strides are in numbers."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *others: Any, dtype: Any = None):
        self._of, self._others, self._dtype = (storage, offset, shape, strides), others, dtype

    def array(self) -> Shaped[np.ndarray, "..."]:
        """Its numbers, without a copy. Raises ValueError where it is no view of its storage."""
        storage, offset, shape, strides = self._of
        if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
            raise ValueError("it has no storage, shape or strides")
        numbers = (offset, *shape, *strides)
        if len(numbers) > 64 or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError("its offset, shape or strides are none")
        if any(isinstance(other, dict) and other for other in self._others):
            raise ValueError("it has hooks, or is the negative or conjugate of its storage")
        dtype, content = self._dtype or storage.dtype, storage.read((self._dtype or storage.dtype).itemsize)
        there, wanted = len(content) // dtype.itemsize, math.prod(shape)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if len(content) != storage.length * storage.dtype.itemsize:
            raise ValueError(f"its storage has {len(content):,} bytes")
        if not wanted:
            return np.empty(shape, dtype)
        if last >= there or wanted > there:  # the second: the same numbers again and again, more than the file holds
            raise ValueError(f"its shape is {shape}, and its storage has {there:,} numbers")
        return np.ndarray(shape, dtype, content, offset * dtype.itemsize, [dtype.itemsize * of for of in strides])


def _of_dtype(*arguments: Any) -> _Tensor:
    """torch._utils._rebuild_tensor_v3, whose storage is of bytes: its type stands beside."""
    *before, dtype = arguments[:7]
    if not isinstance(dtype, np.dtype):
        raise ValueError("a tensor of no type")
    return _Tensor(*before, *arguments[7:], dtype=dtype)


_FIRST = Maker(lambda first=(), *others: first)  # what wraps data, and says nothing that is needed
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Maker(pickles.mapping),
    ("collections", "Counter"): _FIRST,
    ("__builtin__", "set"): _FIRST,
    ("builtins", "set"): _FIRST,
    ("_codecs", "encode"): Maker(pickles.encoded),
    ("torch", "Size"): _FIRST,
    ("torch", "device"): _FIRST,
    ("torch._utils", "_rebuild_tensor"): Maker(_Tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(_Tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Maker(_of_dtype),
    ("torch._utils", "_rebuild_parameter"): _FIRST,
    ("torch._utils", "_rebuild_parameter_with_state"): _FIRST,
    ("torch.storage", "UntypedStorage"): np.dtype("u1"),
}
for _name, _kind, _storages in _TYPES:
    _KNOWN["torch", _name] = _KNOWN["torch", f"{_storages}Storage"] = np.dtype(_kind or jnp.bfloat16)


def read(file: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The tensors of a state dict by their names, in their own types; also of one that a training keeps beside other
    things, as "state_dict", "model_state_dict" or "model".

    Memory is taken for what the file holds at most. Raises InputError, which names the file, and the tensor where it
    is of one, if it is damaged, or holds something else.
    """
    check_plain(file)
    try:
        with file.open("rb") as opened:
            state = (_of_zip if opened.read(len(_ZIP)) == _ZIP else _legacy)(opened, file.stat().st_size)
            for name in _STATES:
                if isinstance(state, dict) and isinstance(state.get(name), dict):
                    state = state[name]
            return _arrays(state)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except MemoryError:
        raise
    except Exception as error:  # of many types, from zipfile and struct
        raise InputError(f"{file}: is damaged, or holds other things than tensors ({reason(error)})") from error


def _arrays(state: Any) -> dict[str, np.ndarray]:
    tensors = state if isinstance(state, dict) else {}
    if not tensors:
        raise InputError("is no state dict of tensors (it holds none)")
    found = {}
    for name, tensor in tensors.items():
        if type(tensor) is not _Tensor or type(name) is not str:
            raise InputError(
                f"is no state dict of tensors ({short(name)} in it is of type {type(tensor).__name__.strip('_')})"
            )
        try:
            found[name] = tensor.array()
        except Exception as error:  # as above
            raise InputError(f"is damaged ({short(name)}: {reason(error)})") from error
    return found


def _of_zip(opened: BinaryIO, size: int) -> Any:
    """What is in a file since PyTorch 1.6."""
    members = zipfile.ZipFile(opened)
    names = members.namelist()
    top, _, _ = names[0].partition("/")
    if sum(member.file_size for member in members.infolist()) > size:  # PyTorch compresses nothing
        raise ValueError("it says that it holds more than it does")

    def content(name: str, most: int = LARGEST) -> bytes:
        member = members.getinfo(f"{top}/{name}")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > most:
            raise ValueError(f"{name} in it is compressed, or has {member.file_size:,} bytes")
        return members.read(member)

    order = content("byteorder") if f"{top}/byteorder" in names else b"little"  # which older versions do not say
    if order not in (b"little", b"big"):
        raise ValueError("its byte order is none")

    @functools.cache
    def bytes_of(key: str, itemsize: int) -> bytes:
        """itemsize: of numbers whose bytes are to be turned around; else 1."""
        found = content(f"data/{key}", size)
        return np.frombuffer(found, f"u{itemsize}").byteswap().tobytes() if itemsize > 1 else found

    def persistent(identifier: Any) -> _Storage:
        dtype, key, length = _checked(identifier, 5)
        return _Storage(dtype, length, lambda itemsize: bytes_of(key, itemsize if order == b"big" else 1))

    return pickles.unpickled(io.BytesIO(content("data.pkl")), _KNOWN, persistent=persistent)


def _legacy(opened: BinaryIO, size: int) -> Any:
    """What is in a file of the format before 1.6: its numbers begin with their lowest byte."""
    opened.seek(0)
    stream = io.BytesIO(opened.read(min(LARGEST, size)))
    storages: dict[str, _Storage] = {}
    starts: dict[str, int] = {}

    def persistent(identifier: Any) -> _Storage:
        dtype, key, length = _checked(identifier, 6)

        @functools.cache
        def content(itemsize: int) -> bytes:
            opened.seek(starts[key])
            return opened.read(length * dtype.itemsize)

        found = storages.setdefault(key, _Storage(dtype, length, content))
        if (found.dtype, found.length) != (dtype, length):
            raise ValueError(f"two storages {key}")
        return found

    if pickles.unpickled(stream, _KNOWN) != _MAGIC or pickles.unpickled(stream, _KNOWN) != _PROTOCOL:
        raise ValueError("no file of torch.save")
    pickles.unpickled(stream, _KNOWN)  # the sizes of C's types
    state = pickles.unpickled(stream, _KNOWN, persistent=persistent)
    keys, place = pickles.unpickled(stream, _KNOWN), stream.tell()
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ValueError("its list of storages is none")
    for key in keys:
        opened.seek(place)
        starts[key], place = place + 8, place + 8 + storages[key].length * storages[key].dtype.itemsize
        if opened.read(8) != struct.pack("<q", storages[key].length) or place > size:
            raise ValueError(f"its storage {key} is not whole")
    return state


def _checked(identifier: Any, parts: int) -> tuple[np.dtype, str, int]:
    """Type, key and length of a storage, from ("storage", type, key, device, length) and, before 1.6, a view of it."""
    if type(identifier) is not tuple or len(identifier) != parts or identifier[0] != "storage":
        raise pickle.UnpicklingError("a pickle of something else than storages")
    _, dtype, key, _, length, *view = identifier
    if not isinstance(dtype, np.dtype) or type(key) is not str or type(length) is not int or length < 0 or any(view):
        raise pickle.UnpicklingError("a storage that is none")
    return dtype, key, length
