"""The one door for what a file of ours says: JSON and NumPy's archives, read against a declared form.

A form says types and ranges (of JSON: a type for msgspec) or types and shapes (of arrays). What does not fit is one
InputError that names file and field. Nothing is run, nothing imported; memory is taken for what a file holds at most.
"""

import collections
import io
import json
import math
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from alexnet_jax.options import InputError
from alexnet_jax.shown import reason, short

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]
LARGEST, DEEPEST = 2**25, 12  # bytes of what JSON says, which take thirty times as much memory; levels of lists in it
LARGEST_OF_LINES = 2**28  # bytes of a file of such lines
CHECKSUMS = "checksums"  # of the other arrays, in an archive of ours


def read_json(file: Path, form: Any, *, finite: bool = True) -> Any:
    """What a file says, as `form`. Raises FileNotFoundError, or InputError where it does not fit."""
    return from_json(_content(file, LARGEST), form, f"{file}:", finite=finite)


def from_json(text: bytes | str, form: Any, what: str, *, finite: bool = True) -> Any:
    """What a text says, as `form`. Raises InputError, which begins with `what`, as "run/config.json:".

    finite: whether every number must be.
    """
    if len(text) > LARGEST:
        raise InputError(f"{what} cannot be read (it is larger than {LARGEST:,} bytes)")
    try:
        try:
            value = _parsed(text)
        except RecursionError:
            value = _parsed(_cut(text if isinstance(text, str) else text.decode(errors="replace")))
    except ValueError as error:
        raise InputError(f"{what} cannot be read (it is no JSON: {error})") from error
    return fitted(value, form, what, finite=finite)


def fitted(value: Any, form: Any, what: str, field: str = "", *, finite: bool = True) -> Any:
    """A part of what JSON says, as `form`; raises as `from_json` does. field: its name, in messages."""
    try:
        if found := _unfit(value, finite, DEEPEST):
            raise ValueError("{} - at `${}`".format(*found))
        return msgspec.convert(value, form)
    except (ValueError, msgspec.ValidationError) as error:  # older ones are no ValueError
        raise InputError(f"{what} cannot be read ({_said(error, field)})") from error


def read_lines(file: Path, form: Any) -> Iterator[tuple[bytes, dict[str, Any] | InputError]]:
    """Each line of a file of JSON lines as it stands there, and what it says: an object with the fields of `form`, and
    any others, whose numbers may be any; or what is wrong with it. None for one that its writer has not finished.
    """
    content = _content(file, LARGEST_OF_LINES) if file.exists() else b""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        what = f"{file}: line {number}"
        try:
            row = from_json(line, dict[str, Any], what, finite=False)
            fitted(row, form, what, finite=False)
            yield line, row
        except InputError as error:
            yield line, error


def _content(file: Path, most: int) -> bytes:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file}: cannot be read (it is no file)")
        if status.st_size > most:
            raise InputError(f"{file}: cannot be read (it is larger than {most:,} bytes)")
        return file.read_bytes()
    except (FileNotFoundError, InputError):
        raise
    except (OSError, ValueError) as error:  # the second for a name that no file can have
        raise InputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _parsed(text: bytes | str) -> Any:
    return json.loads(text, object_pairs_hook=_object, parse_int=_whole)


def _cut(text: str) -> str:
    """Up to where it is nested too deeply; there all lists and objects end, so that the place can be told."""
    ends: list[str] = []
    for token in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]', text):
        if token[0] in "[{":
            ends.append("]" if token[0] == "[" else "}")
            if len(ends) > DEEPEST:
                return text[: token.end()] + "".join(reversed(ends))
        elif token[0] in "]}" and ends:
            ends.pop()
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{short(name)} is there twice")
    return found


def _whole(digits: str) -> int | float:
    """Not a number that takes Python minutes to read: one of more than 64 bits is none of ours."""
    return int(digits) if len(digits) < 20 else math.inf


def _unfit(value: Any, finite: bool, levels: int) -> tuple[str, str] | None:
    """What none of our files says, in the words of msgspec, and the path to it; None where all is well."""
    if isinstance(value, (dict, list)) and not levels:
        return "It is nested too deeply", ""
    if isinstance(value, float) and finite and not math.isfinite(value):
        return "Expected a finite number of 64 bits", ""
    if isinstance(value, str) and not _is_text(value):
        return "Expected text", ""
    if isinstance(value, dict) and not all(map(_is_text, value)):
        return "A name in it is no text", ""
    for name, of in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if found := _unfit(of, finite, levels - 1):
            return found[0], (f".{name}" if isinstance(value, dict) else f"[{name}]") + found[1]
    return None


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON also has halves of characters."""
    try:
        return bool(text.encode()) or True
    except UnicodeEncodeError:
        return False


def _said(error: Exception, field: str = "") -> str:
    """What msgspec said, with the name of the field before it."""
    reason, _, path = str(error).partition(" - at `$")
    place = f"{field}{path}".removesuffix("`").removeprefix(".")
    return f"{short(place)}: {short(reason)}" if place else short(reason)


class ArrayForm(NamedTuple):
    """The form of an array: the kinds of its type ("f": floats, "iu": whole numbers, "U": text), its shape, and the
    range of its numbers. A length is a number, or a name that stands for the same one in all arrays of a file.
    """

    kinds: str
    shape: tuple[int | str, ...] = ()
    least: float = -math.inf
    most: float = math.inf  # which is not in it


def archive(**arrays: Any) -> bytes:
    """An .npz of these, and of their checksums."""
    content, values = io.BytesIO(), {name: np.asarray(value) for name, value in arrays.items()}
    sums = [f"{name} {checksum(value)}" for name, value in values.items()]
    np.savez(content, **{**values, CHECKSUMS: np.array(sums)})  # type: ignore[arg-type]
    return content.getvalue()


def checksum(values: np.ndarray) -> str:
    """Of an array's form and numbers."""
    form = zlib.crc32(repr((values.shape, values.dtype.str)).encode())
    return f"{zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, form):08x}"


def read_arrays(file: Path, forms: Mapping[str, ArrayForm]) -> dict[str, np.ndarray]:
    """The arrays of these names in an .npz that was written by `archive`, or by `np.savez`.

    Raises FileNotFoundError, or InputError where one is missing, of another form, or not as `archive` wrote it.
    """
    lengths: dict[str, tuple[int, str]] = {}
    name = ""
    try:
        if not file.is_file() and file.exists():
            raise ValueError("it is no file")
        with zipfile.ZipFile(file) as members:
            found: dict[str, np.ndarray] = {}
            for name, form in forms.items():
                found[name] = _array(members, name, form, lengths)
            name, sums = CHECKSUMS, {}
            if f"{CHECKSUMS}.npy" in members.namelist():  # not in version 0.1
                sums = dict(of.rsplit(" ", 1) for of in _array(members, name, ArrayForm("U", ("arrays",)), {}).tolist())
            for name in found:
                if sums.get(name, checksum(found[name])) != checksum(found[name]):
                    raise ValueError(f"it is not what was written, by its {CHECKSUMS}")
            return found
    except FileNotFoundError:
        raise
    except Exception as error:  # of many types, from zipfile and NumPy
        raise InputError(f"{file}: cannot be read ({f'{name}: ' if name else ''}{reason(error)})") from error


def _array(members: zipfile.ZipFile, name: str, form: ArrayForm, lengths: dict[str, tuple[int, str]]) -> np.ndarray:
    """One of an archive. Its form is known before its memory is taken, and that is on the disk."""
    try:
        member = members.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError("it is missing") from None
    with members.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, in_columns, kind = header(opened)
        if kind.kind not in form.kinds:
            raise ValueError(f"its numbers are of the type {kind}" if "U" not in form.kinds else "it is no text")
        if len(shape) != len(form.shape):
            raise ValueError(f"its shape is {shape}; it must have {len(form.shape)} dimensions")
        for of, length in zip(form.shape, shape, strict=True):
            known, by = lengths.setdefault(of, (length, name)) if isinstance(of, str) else (of, "its form")
            if length != known:
                raise ValueError(f"its shape is {shape}; there must be {known}, by {by}")
        values = math.prod(shape)
        if member.compress_type != zipfile.ZIP_STORED or values * kind.itemsize != member.file_size - opened.tell():
            raise ValueError("its length is not that of its shape")
        content = opened.read()
    found = np.ndarray(shape, kind, content, order="F" if in_columns else "C")
    found = found.astype(kind.newbyteorder("="), copy=False)
    if kind.kind == "U":
        codes = np.frombuffer(content, np.dtype(np.uint32).newbyteorder(kind.byteorder))
        if not ((codes < 0xD800) | ((codes > 0xDFFF) & (codes < 0x110000))).all():
            raise ValueError("it is no text")
    elif not ((found >= form.least) & (found <= form.most) & (found < math.inf)).all():
        raise ValueError(f"there are numbers that are not between {form.least:g} and {form.most:g}")
    return found
