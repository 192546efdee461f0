"""TIFF: what Pillow and libtiff do not check of one, or only print."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from alexnet_jax.shown import one_speaks

MOST_SAID = 2**24  # bytes, of one picture, by libtiff


def check(file: Any) -> None:
    """Raises ValueError where Pillow and libtiff would read what is no part of the picture, or nothing."""
    if any(max(of.extents[side + 2] for of in file.tile if of.extents) < file.size[side] for side in (0, 1)):
        raise ValueError("not all of it is there")
    tags = file.tag_v2
    if tags.get(259, 1) != 1 and not tags.get(279, tags.get(325)):
        raise ValueError("it does not say how long its strips are")
    if min(np.ravel(tags.get(273, tags.get(324, 0)))) < 8:
        raise ValueError("a strip lies in its header")


@contextlib.contextmanager
def libtiff() -> Iterator[None]:
    """Reads what libtiff prints on stderr, where it names no picture. Raises ValueError where that is of a code that
    cannot be decoded: it says so nowhere else, and leaves the rest of a fax white, or black.
    """
    with one_speaks:
        try:
            stderr = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        told = _kept_in_memory() if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
        try:
            try:
                os.dup2(told, 2)
                yield
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
            length = os.lseek(told, 0, os.SEEK_CUR)
            for line in os.pread(told, length, 0).splitlines():
                if bad := re.match(rb"\w*Decode\w*: (?!Warning)(.*)", line):
                    raise ValueError(bad[1].decode(errors="replace"))
            if length > MOST_SAID - 4096:
                raise ValueError(f"libtiff has more than {MOST_SAID:,} bytes to say of it")
        finally:
            os.close(told)


def _kept_in_memory() -> int:
    """A file that takes `MOST_SAID` bytes, and no more."""
    told = os.memfd_create("libtiff", os.MFD_ALLOW_SEALING)
    os.ftruncate(told, MOST_SAID)
    fcntl.fcntl(told, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return told
