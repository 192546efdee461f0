"""The one door to the network: files that others publish, fetched once into a cache, and checked before each use."""

import contextlib
import fcntl
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from alexnet_jax import __version__
from alexnet_jax.files import digest
from alexnet_jax.options import InputError
from alexnet_jax.shown import progress, reason, say

TRIES, PAUSE, TIMEOUT = 5, 1.0, 30.0  # in a row without a byte; seconds between two; seconds without a byte
LARGEST = 2**30  # bytes
BLOCK = 2**18  # bytes read at once, at most


class Published(NamedTuple):
    """A file at its owner's address. digest: of what it holds, in hexadecimal, by `algorithm`: "sha256" or "sha1"."""

    name: str
    address: str
    algorithm: str
    digest: str


class _Refused(Exception):
    """An answer that another try would not change."""


def cache_folder() -> Path:
    """ALEXNET_JAX_CACHE; else `alexnet_jax` in XDG_CACHE_HOME, or in ~/.cache."""
    own, shared = os.environ.get("ALEXNET_JAX_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(shared or "~/.cache").expanduser() / "alexnet_jax"


def fetched(file: Published) -> Path:
    """Where it lies in the cache; fetched where it is not there yet. What arrived before a fetch broke off is kept,
    and the next one goes on from there. Of several processes one fetches, and the others wait.

    A proxy is taken from the environment, as urllib does. Raises InputError where the file cannot be fetched, with all
    that it takes to put it there by hand; where the cache takes no file; and where what is there is another one.
    """
    folder = cache_folder()
    place = folder / file.name
    try:
        if not place.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{file.name}.lock"):
                if not place.exists():
                    _fetch(file, place)
                    return place
        found = digest(place, file.algorithm)
    except OSError as error:
        raise InputError(
            f"{folder}: {file.name} cannot be fetched into it ({error.strerror or error}); "
            "ALEXNET_JAX_CACHE=DIR names another folder"
        ) from error
    if found != file.digest:
        raise InputError(
            f"{place}: is not what {file.address} is, by its {file.algorithm.upper()} ({found}, not {file.digest}); "
            "without it, it is fetched again"
        )
    return place


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{lock.with_suffix('')}: another process fetches it", error=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _fetch(file: Published, place: Path) -> None:
    partial = place.with_name(f"{file.name}.partial")
    by_hand = f"to put it there by hand: {file.address} as {place}, {file.algorithm.upper()} {file.digest}"
    try:
        while True:
            resumed = partial.exists() and partial.stat().st_size > 0
            _receive(file, partial)
            if (found := digest(partial, file.algorithm)) == file.digest:
                partial.replace(place)
                return
            partial.unlink()
            if not resumed:  # else it may be of two files, of before and after a change
                raise _Refused(f"what came is another file, by its {file.algorithm.upper()} ({found})")
    except _Refused as error:
        raise InputError(f"{file.address}: cannot be fetched ({error}); {by_hand}") from error


def _receive(file: Published, partial: Path) -> None:
    """Appends what is missing to what is there. Raises _Refused; OSError where it cannot be written."""
    failed = 0
    say(f"{file.address}: fetched into {partial.parent}", error=True)
    bar: Any = None
    with contextlib.ExitStack() as held:
        written = held.enter_context(partial.open("ab"))

        def advance(there: int, end: int | None) -> None:
            nonlocal bar
            if bar is None:  # not before its length is known
                bar = held.enter_context(progress(end or 0, desc=file.name, unit="B", unit_scale=True))
            bar.total = end
            bar.update(there - bar.n)

        while True:
            before = written.tell()
            try:
                if _ask(file.address, written, advance):
                    written.flush()
                    os.fsync(written.fileno())
                    return
                problem = "it broke off"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 and error.code not in (408, 429):
                    raise _Refused(f"HTTP {error.code} {error.reason}") from error
                problem = f"HTTP {error.code} {error.reason}"
            except (http.client.HTTPException, ConnectionError, ValueError) as error:
                problem = reason(error)
            failed = 0 if written.tell() > before else failed + 1
            if failed == TRIES:
                raise _Refused(problem)
            time.sleep(PAUSE)


def _ask(address: str, written: BinaryIO, advance: Any) -> bool:
    """One request for the rest; whether all of it came."""
    start = written.tell()
    headers = {"User-Agent": f"alexnet_jax/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        opener = urllib.request.build_opener()  # by the proxies of now
        with _connection():
            answer = opener.open(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        error.close()
        if error.headers.get("Content-Range") != f"bytes */{start}":  # else all of it is here
            _empty(written, advance)
            return False
        return True
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT and start:  # a server that has no ranges
            _empty(written, advance)
            start = 0
        elif start and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            _empty(written, advance)
            return False
        length = answer.headers.get("Content-Length")
        end = None if length is None else start + int(length)
        advance(start, end)
        while block := _received(answer):
            written.write(block)
            if written.tell() > LARGEST:
                _empty(written, advance)
                raise _Refused(f"it is larger than {LARGEST:,} bytes")
            advance(written.tell(), end)
    return end is None or written.tell() >= end


def _received(answer: Any) -> bytes:
    with _connection():
        return answer.read1(BLOCK)  # what has come, so that none of it is lost


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Within it whatever fails is a ConnectionError: others, such as no route or a timeout, are OSErrors as those of
    a disk are.
    """
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        raise ConnectionError(str(getattr(error, "reason", "") or error)) from error


def _empty(written: BinaryIO, advance: Any) -> None:
    written.truncate(0)
    written.seek(0)
    advance(0, None)
