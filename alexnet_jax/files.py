"""Reading plain files only; writing a file whole or not at all; one process at a time; and which software this is."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from alexnet_jax.options import InputError

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
    """Writes a file so that a kill or a power cut leaves the old one or the new one, never half of it.

    Raises InputError where another process writes it.
    """
    with partial_of(file) as (partial, written):
        written.write(content if isinstance(content, bytes) else content.encode())
        written.flush()
        os.fsync(written.fileno())
        partial.replace(file)


@contextlib.contextmanager
def named_in_errors(file: Path) -> Iterator[None]:
    """Within it an OSError, as of a full disk, names the file, if it names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


@contextlib.contextmanager
def partial_of(file: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """The path, and open to be written, of what is renamed to `file` once it is whole; else nothing of it is left.

    Raises InputError where another process writes the same file.
    """
    partial = file.with_name(f"{file.name}.partial")
    with named_in_errors(file), open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "wb") as written:

        def is_own() -> bool:
            try:
                return os.path.samestat(partial.stat(), os.fstat(written.fileno()))
            except FileNotFoundError:
                return False

        is_free = True
        try:
            fcntl.flock(written, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:  # the file system has no locks
            pass
        if not (is_free and is_own()):  # else another process has renamed it just now
            raise InputError(f"{file}: is being written by another process")
        try:
            if os.fstat(written.fileno()).st_size:  # of a process that was killed
                written.truncate()
            yield partial, written
        finally:
            if is_own():
                partial.unlink()


def place(path: str | Path) -> Path:
    """A path, in which ~ is one's home folder; but not where there is a file of that very name, as ~$photo.jpg."""
    return Path(path) if os.path.lexists(path) else Path(path).expanduser()


def whole_paths(texts: Sequence[str]) -> list[str]:
    """Of a list of paths that was taken apart at its commas: those that have a comma in their name are one again."""
    found: list[str] = []
    left = list(texts)
    while left:
        there = [n for n in range(2, len(left) + 1) if os.path.exists(os.path.expanduser(",".join(left[:n])))]
        count = max(there, default=1)
        found.append(",".join(left[:count]))
        del left[:count]
    return found


def check_text(path: str | Path, what: str) -> None:
    """Raises InputError, which begins with `what`, for a path that is no text, which array_record and orbax need."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{what}: must be text in UTF-8") from None


def check_plain(file: Path) -> None:
    """Raises InputError where a file is not there; or is a folder, a pipe, on which one would wait, or a device."""
    if not file.is_file():
        raise InputError(f"{file}: is {'no plain file' if os.path.lexists(file) else 'not there'}")


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
        except OSError as error:
            raise InputError(f"{folder}: cannot be locked ({error.strerror or error})") from error
        yield


def _lock(place: Path, flags: int, open_files: contextlib.ExitStack) -> None:
    handle = os.open(place, flags, 0o666)
    open_files.callback(os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
