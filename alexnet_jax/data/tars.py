"""Tar files, read where they lie: what is in them, and where. Any bytes may be in one."""

import bz2
import gzip
import lzma
import posixpath
import shutil
import tarfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from alexnet_jax.files import check_length

COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class Place(NamedTuple):
    """Where a file lies: in which one, from which byte on, how many. pieces: (start, size) of what is no hole in it."""

    file: Path
    offset: int
    size: int
    pieces: tuple[tuple[int, int], ...] | None = None

    def read(self) -> bytes:
        """What it holds. Raises OSError where it is longer than a picture may be, or damaged."""
        check_length(self.size)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            if self.pieces is None:
                return file.read(self.size)
            content = bytearray(self.size)
            for start, size in self.pieces:
                if not 0 <= start <= start + size <= self.size:
                    raise OSError("a file with holes at impossible places")
                content[start : start + size] = file.read(size)
            if len(content) != self.size:
                raise OSError("a file with holes that is not whole")
            return bytes(content)


class Member(NamedTuple):
    """found: where it lies; None where it is a folder; "" where it is a link to another member; or what is amiss."""

    name: str
    found: Place | str | None


def members(path: Path, start: int = 0, size: int | None = None) -> list[Member]:
    """What is in an uncompressed tar, or in the one at a place in `path`; of members of one name the last. Nothing of
    a name reaches a file system: a leading "/", and ".." above all, are dropped.

    Raises tarfile.TarError, or what else tarfile raises for damage.
    """
    found: dict[str, Place | str | None] = {}
    links: dict[str, str] = {}
    with path.open("rb") as file:
        for member in _headers(file, start, size):
            name = _plain(member.name)
            found.pop(name, None)
            links.pop(name, None)
            if member.isreg() or member.issparse():
                pieces = tuple(cast(Any, member.sparse)) if member.issparse() else None
                found[name] = Place(path, start + member.offset_data, member.size, pieces)
            elif member.isdir():
                found[name] = None
            elif member.islnk() or member.issym():
                outside = member.issym() and member.linkname.startswith("/")
                folder = posixpath.dirname(name) if member.issym() else "/"
                links[name] = "" if outside else _plain(f"{folder}/{member.linkname}")
                found[name] = "a second name of what is no file" if member.islnk() else ""
            else:
                found[name] = "neither a file nor a folder"
    leads_to = _ends(links, found)
    for name, target in leads_to.items():
        if target is None:
            found[name] = "a link to nothing in the archive"
        elif found[name] and isinstance(found[target], Place):
            found[name] = found[target]  # a hard link: two names of one file, as in a folder
    return [Member(name[1:], of) for name, of in found.items()]


def _ends(links: dict[str, str], names: Container[str]) -> dict[str, str | None]:
    """By each link's name, that of what it leads to at last; None: nothing, or itself."""
    ends: dict[str, str | None] = {}
    for link in links:
        on_the_way: list[str] = []
        at: str | None = link
        while at in links and at not in ends:
            ends[at] = None
            on_the_way.append(at)
            at = links[at] if links[at] in names else None
        end = ends[at] if at in links else at
        ends.update(dict.fromkeys(on_the_way, end))
    return ends


def _plain(name: str) -> str:
    return posixpath.normpath(f"/{name.lstrip('/')}")


def _headers(file: BinaryIO, start: int, size: int | None) -> Iterator[tarfile.TarInfo]:
    last, part = -1, _Part(file, start, size)
    with tarfile.open(fileobj=cast(Any, part), mode="r:") as archive:
        for member in archive:
            if member.offset <= last or member.offset_data <= last or member.size < 0:  # there would be no end of it
                raise tarfile.ReadError(f"a damaged header at byte {member.offset}")
            last = member.offset_data - 1
            yield member


class _Part:
    """A part of a file as a file; however much a header says that it holds, no more than there is is asked for."""

    def __init__(self, file: BinaryIO, start: int, size: int | None):
        self._file, self._start = file, start
        self._size = file.seek(0, 2) - start if size is None else size
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, size: int) -> bytes:
        self._file.seek(self._start + self._at)
        content = self._file.read(max(0, min(size, self._size - self._at)))
        self._at += len(content)
        return content


def uncompressed(path: Path, scratch: Path) -> Path:
    """The tar itself, or where it is compressed the tar in it, written into `scratch`."""
    with path.open("rb") as file:
        start = file.read(6)
    for magic, opener in COMPRESSED.items():
        if start.startswith(magic):
            plain = scratch / f"{len(list(scratch.iterdir()))}.tar"
            with opener(path) as packed, plain.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 2**20)
            return plain
    return path
