"""Where images come from: a folder, or a tar file, of class folders.

Nothing is decoded here, and nothing unpacked but a compressed tar: an image in a tar is a place in it, which any
process can read.
"""

import functools
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.config import InputError
from alexnet_jax.data.shards import Item
from alexnet_jax.shown import say

SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
# What operating systems leave in folders.
IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}


class File(NamedTuple):
    """One file or folder of a source. parts: its path below the source's root; read: None for a folder."""

    path: str
    parts: tuple[str, ...]
    read: Callable[[], bytes] | None


def list_files(source: str, scratch: Path) -> list[File]:
    """The files and folders in a folder or a tar file; a compressed tar is first unpacked into one in `scratch`.

    Raises InputError where it cannot be read.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            files = list(_walk_folder(path))
        elif path.exists():
            files = list(_walk_tar(path, scratch))
        else:
            raise InputError(f"--source={source}: there is no such file or folder")
    except (OSError, tarfile.TarError, EOFError, zlib.error, LZMAError) as error:
        raise InputError(f"--source={source}: cannot be read as a folder or tar file ({reason(error)})") from error
    files = [f for f in files if f.parts and not any(p.startswith(".") or p.lower() in IGNORED for p in f.parts)]
    if not any(file.read for file in files):
        raise InputError(f"--source={source}: is empty")
    return _unwrapped(files)


def reason(error: Exception) -> str:
    """The first line of an error."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":")


def _walk_folder(root: Path) -> Iterator[File]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            yield File(_text(file), tuple(map(_text, file.relative_to(root).parts)), file.read_bytes)
        yield File(_text(folder), tuple(map(_text, Path(folder).relative_to(root).parts)), None)


def _walk_tar(path: Path, scratch: Path) -> Iterator[File]:
    plain = uncompressed(path, scratch)
    with tarfile.open(plain, "r:") as archive:
        for member in archive:
            # Nothing of a member's name reaches a file system: ".." and a leading "/" are dropped as names of folders.
            parts = tuple(_text(part) for part in PurePosixPath(member.name).parts if part not in ("/", ".", ".."))
            if member.isdir():
                read = None
            elif member.isreg() and not member.issparse():
                read = functools.partial(read_range, plain, member.offset_data, member.size)
            else:
                read = functools.partial(_read_member, plain, member.name)
            yield File(f"{path}:{_text(member.name)}", parts, read)


def uncompressed(path: Path, scratch: Path) -> Path:
    """The tar itself, or where it is compressed the tar in it, written into `scratch`."""
    try:
        tarfile.open(path, "r:").close()
        return path
    except tarfile.ReadError:
        plain = scratch / f"{len(list(scratch.iterdir()))}.tar"
        with tarfile.open(path) as archive, plain.open("wb") as unpacked:
            compressed: Any = archive.fileobj
            compressed.seek(0)
            shutil.copyfileobj(compressed, unpacked, 2**20)
        return plain


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Of a file, `size` bytes from `offset` on."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _read_member(path: Path, name: str) -> bytes:
    """Of what is not simply a range of the tar: a link to another member, a sparse file."""
    try:
        file = _opened(path).extractfile(name)
    except KeyError as error:
        raise OSError("a link to nothing in the archive") from error
    if file is None:
        raise OSError("neither a file nor a folder")
    return file.read()


@functools.lru_cache(maxsize=4)
def _opened(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, "r:")


def _text(name: str | Path) -> str:
    """A file's name, which may be any bytes, as text that can be stored and printed."""
    return str(name).encode(errors="replace").decode()


def _unwrapped(files: list[File]) -> list[File]:
    """Without the folders around it all, as archives have them: one folder that holds classes or train/ is no class."""
    while True:
        first = {file.parts[0] for file in files if len(file.parts) > 1}
        second = {file.parts[1] for file in files if len(file.parts) > 2}
        inner = len(second) > 1 or {name.lower() for name in second} & set(SPLIT_NAMES)
        if len(first) != 1 or {name.lower() for name in first} & set(SPLIT_NAMES) or not inner:
            return files
        files = [file._replace(parts=file.parts[1:]) for file in files if len(file.parts) > 1]


class Source(NamedTuple):
    """What is to be prepared. kind: as what it was recognised. size, encoding: where nothing else is asked for."""

    kind: str
    class_names: tuple[str, ...]
    splits: dict[str, list[Item]]
    size: int = 256
    encoding: str = "jpeg"


def sort_files(files: list[File], *, validation_fraction: float, seed: int) -> Source:
    """Which image goes into which split, under which label; classes in alphabetical order.

    Without a validation part, `validation_fraction` of each class (at least one image) is drawn from the training
    part; the draw depends on the seed and the files' names only. Raises InputError naming a class that is amiss.
    """
    folders = {file.parts[0] for file in files if len(file.parts) > 1}
    has_splits = any(name.lower() in SPLIT_NAMES for name in folders)
    by_split: dict[str, dict[str, list[File]]] = {}
    outside = []
    for file in files:
        split, *below = file.parts if has_splits else ("train", *file.parts)
        if split.lower() not in SPLIT_NAMES and file.read and below:
            raise InputError(f"{file.path}: beside train/ there may only be val/, valid/, validation/ or test/")
        if split.lower() not in SPLIT_NAMES or len(below) < (2 if file.read else 1):
            outside.append(file)
            continue
        of_class = by_split.setdefault(SPLIT_NAMES[split.lower()], {}).setdefault(below[0], [])
        if file.read:
            of_class.append(file)
    ignored = [file.path for file in outside if file.read]
    if ignored:
        say(f"ignored {len(ignored)} files that are in no class folder, such as {ignored[0]}")
    if "train" not in by_split:
        raise InputError(f"no class folders of training images beside {files[0].path}")
    if "validation" not in by_split and "test" in by_split:
        by_split["validation"] = by_split.pop("test")

    class_names = tuple(sorted(by_split["train"]))
    if len(class_names) < 2:
        raise InputError(f"one class only, '{class_names[0]}': each class needs a folder of its own")
    for split, classes in by_split.items():
        for name, of_class in classes.items():
            if name != name.strip() or "\n" in name:  # TFDS keeps a name a line, stripped
                raise InputError(f"class folder {name!r}: its name must not begin or end with a space, or break a line")
            if name not in class_names:
                raise InputError(f"class '{name}' is in the {split} part and not in the training part")
            if not of_class:
                raise InputError(f"class folder '{name}' of the {split} part has no images")
    if "validation" not in by_split:
        by_split["validation"] = _draw_validation(by_split["train"], validation_fraction, seed)
    label_of = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split in ("train", "validation", "test"):
        labels = {file: label_of[name] for name, of in by_split.get(split, {}).items() for file in of}
        # In the source's own order: so a tar is read forward.
        splits[split] = [
            Item(file.path, "/".join(file.parts), labels[file], file.read)
            for file in files
            if file.read and file in labels
        ]
    return Source("class folders", class_names, {split: items for split, items in splits.items() if items})


def _draw_validation(train: dict[str, list[File]], fraction: float, seed: int) -> dict[str, list[File]]:
    """Takes its share out of each class of `train`."""
    validation = {}
    for number, name in enumerate(sorted(train)):
        files = train[name]
        count = max(1, round(fraction * len(files)))
        if count >= len(files):
            raise InputError(f"class '{name}' has {len(files)} images: too few to split off {count} for validation")
        by_name = sorted(range(len(files)), key=lambda index: files[index].parts)
        chosen = set(np.random.default_rng((seed, number)).permutation(by_name)[:count].tolist())
        validation[name] = [file for index, file in enumerate(files) if index in chosen]
        train[name] = [file for index, file in enumerate(files) if index not in chosen]
    return validation
