"""Where images come from: a folder, or a tar file, of class folders.

Nothing is decoded here, and nothing unpacked but a compressed tar: an image in a tar is a place in it, which any
process can read.
"""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from alexnet_jax.data import folders, tars
from alexnet_jax.data.folders import File
from alexnet_jax.data.layouts import split_of
from alexnet_jax.options import InputError
from alexnet_jax.shown import reason, say


def list_files(source: str, scratch: Path) -> list[File]:
    """The files and folders in a folder or a tar file; a compressed tar is first unpacked into one in `scratch`.

    Raises InputError where it cannot be read.
    """
    path = Path(source).expanduser()
    left_out: list[str] = []
    try:
        if path.is_dir():
            files = list(folders.walk(path, left_out.append))
        elif path.is_file():
            files = list(_in_tar(path, scratch, left_out))
        else:
            what = (
                "is neither a folder nor a plain file" if os.path.lexists(path) else "there is no such file or folder"
            )
            raise InputError(f"--source={source}: {what}")
    except InputError:
        raise
    except Exception as error:  # tarfile, gzip, lzma raise any type for damage
        raise InputError(f"--source={source}: cannot be read as a folder or tar file ({reason(error)})") from error
    if left_out:
        say(f"left out {len(left_out)} links to what is in {source} already, such as {left_out[0]}")
    files = [file for file in files if file.parts]
    if not any(file.read for file in files):
        raise InputError(f"--source={source}: is empty")
    return _unwrapped(files)


def list_all(sources: Sequence[str], scratch: Path) -> list[File]:
    """Those of several sources. One that is named as a split is, as data/train or val.tar, stands for that split."""
    found: list[File] = []
    for source in sources:
        files = list_files(source, scratch)
        name = re.sub(r"\.(tar|tgz|tbz2?|txz)(\.\w+)?$", "", Path(source).name, flags=re.IGNORECASE)
        if len(sources) > 1 and split_of(name) and not any(split_of(file.parts[0]) for file in files):
            files = [file._replace(parts=(name, *file.parts)) for file in files]
        found += files
    return found


def _in_tar(path: Path, scratch: Path, left_out: list[str]) -> Iterator[File]:
    for name, found in tars.members(tars.uncompressed(path, scratch)):
        parts = PurePosixPath(name).parts
        if any(map(folders.is_ignored, parts)):
            continue
        if found == "":
            left_out.append(f"{path}:{name}")
        elif found is None:
            yield File(f"{path}:{name}", parts, None)
        else:
            read = found.read if isinstance(found, tars.Place) else functools.partial(_fail, found)
            yield File(f"{path}:{name}", parts, read)


def _fail(problem: str) -> bytes:
    raise OSError(problem)


def _unwrapped(files: list[File]) -> list[File]:
    """Without the folders around it all, as archives have them: one folder that holds folders is no class."""
    while True:
        first = {file.parts[0] for file in files if len(file.parts) > 1}
        inner = any(len(file.parts) > 2 for file in files)
        if len(first) != 1 or any(map(split_of, first)) or not inner:
            return files
        files = [file._replace(parts=file.parts[1:]) for file in files if len(file.parts) > 1]
