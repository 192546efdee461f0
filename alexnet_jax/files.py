"""Reading plain files only; writing a file whole or not at all; one process at a time; and which software this is."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alexnet_jax.config import InputError

MAX_BYTES = 2**30  # of one picture: files that are longer are none, or have no end


def versions() -> dict[str, Any]:
    """Which software this is: versions, and the commit where the package runs from a git checkout."""
    packages = ("alexnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets")
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "not installed"
    return {"versions": found, "commit": _commit()}


def _commit() -> str | None:
    """The package's commit, with "-dirty" where files were changed since; None where it is no checkout of its own."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes a file so that a kill or a power cut leaves the old one or the new one, never half of it."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as written:
        written.write(content if isinstance(content, bytes) else content.encode())
        written.flush()
        os.fsync(written.fileno())
    partial.replace(file)


def read_plain(path: str | Path) -> bytes:
    """What a file holds. Raises OSError for a pipe, on which one would wait, a device, and more than `MAX_BYTES`."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        of = os.fstat(file.fileno())
        if not stat.S_ISREG(of.st_mode):
            raise OSError("no plain file")
        check_length(of.st_size)
        return file.read(of.st_size)


def check_length(length: int) -> None:
    """Raises OSError where a picture's file is longer than `MAX_BYTES`."""
    if length > MAX_BYTES:
        raise OSError(f"holds {length:,} bytes, more than {MAX_BYTES:,}")


def digest(file: Path, algorithm: str) -> str:
    """Of what a file holds, in hexadecimal, by an algorithm of hashlib."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def sha256(file: Path) -> str:
    """Of what a file holds, in hexadecimal."""
    return digest(file, "sha256")


@contextlib.contextmanager
def only_process(folder: Path, refusal: str) -> Iterator[None]:
    """Within it no other process can hold the same folder. A process that dies holds it no longer.

    Raises InputError, with the refusal as its text, where another one does.
    """
    with contextlib.ExitStack() as open_files:
        try:
            try:
                _lock(folder, os.O_RDONLY, open_files)
            except BlockingIOError:
                raise
            except OSError:  # NFS locks files only, those that one may write
                _lock(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, open_files)
        except BlockingIOError as error:
            raise InputError(refusal) from error
        yield


def _lock(place: Path, flags: int, open_files: contextlib.ExitStack) -> None:
    handle = os.open(place, flags, 0o666)
    open_files.callback(os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
