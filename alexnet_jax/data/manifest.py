"""manifest.json: what a prepared data set says of itself. All files of it stand there, with their digests.

{"version", "encoding", "images": {split: {class: how many}}, "shards": {name: {"sha256", "images"}},
"files": {name of another one: sha256}, "sha256": of the manifest itself without this}
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec

from alexnet_jax.data.folders import is_ignored
from alexnet_jax.data.images import ENCODINGS
from alexnet_jax.data.layouts import SPLITS
from alexnet_jax.data.shards import VERSION
from alexnet_jax.files import sha256
from alexnet_jax.options import InputError
from alexnet_jax.reading import Count, fitted, read_json
from alexnet_jax.shown import short

NAME = "manifest.json"
SHARD = re.compile(r"images-(train|validation|test)\.array_record-\d{5}")


class Shard(msgspec.Struct):
    """What it says of a shard."""

    sha256: str
    images: Count


class Manifest(msgspec.Struct):
    """Its form. files: {} where it was written by version 0.1, which lists the shards only."""

    version: Annotated[int, msgspec.Meta(ge=1, le=VERSION)]
    encoding: str
    images: dict[str, dict[str, Count]]
    shards: dict[str, Shard]
    files: dict[str, str] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their labels."""
        return tuple(self.images["train"])

    def of_split(self, split: str) -> dict[str, int]:
        """{name of a shard: how many images it holds}, in their order."""
        return {name: of.images for name, of in sorted(self.shards.items()) if name.split("-")[1].startswith(split)}


def text(values: dict[str, Any]) -> str:
    """What the file holds: `values`, and their digest."""
    return json.dumps({**values, "sha256": _digest(values)}, indent=1, ensure_ascii=False) + "\n"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()


def read(folder: Path) -> Manifest:
    """That of a prepared data set. Raises InputError where it is missing, damaged or contradicts itself."""
    file = folder / NAME
    try:
        values = read_json(file, dict[str, Any])
        digest = values.pop("sha256", None)
        found = fitted(values, Manifest, f"{file}:")
        _check(found)
        if digest != _digest(values) and (digest is not None or "files" in values):
            raise ValueError("sha256: it is not as it was written")
        return found
    except FileNotFoundError:
        raise InputError(f"{file}: cannot be read (it is missing)") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file}: cannot be read ({error})") from error


def _check(manifest: Manifest) -> None:
    """Raises ValueError where something is not possible, or does not add up."""
    for name in manifest.shards:
        if not SHARD.fullmatch(name):
            raise ValueError(f"shards: {short(repr(name))} is none")
    if manifest.encoding not in ENCODINGS:
        raise ValueError(f"encoding: its images are stored as '{short(manifest.encoding)}', which is not known here")
    missing = {"train", "validation"} - set(manifest.images)
    if missing:
        raise ValueError(f"images: it has no split '{missing.pop()}'")
    for split, of_class in manifest.images.items():
        if split not in SPLITS:
            raise ValueError(f"images: {short(repr(split))} is no split")
        if tuple(of_class) != manifest.class_names:
            raise ValueError(f"images of {split}: other classes than those of train")
        if sum(of_class.values()) != sum(manifest.of_split(split).values()):
            raise ValueError(f"images of {split}: are not as many as those of its shards")
        if not any(of_class.values()):
            raise ValueError(f"images of {split}: there are none")
    for name in manifest.files:
        if "/" in name:
            raise ValueError(f"files: {short(repr(name))} is none")


def verify(folder: Path) -> Manifest:
    """Checks every file of a prepared data set against its manifest, which is returned.

    Raises InputError naming the first file that is missing, is not as it was written, or is none of the data set's.
    """
    manifest = read(folder)
    for name, digest in ({name: of.sha256 for name, of in manifest.shards.items()} | manifest.files).items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: is missing")
        if sha256(file) != digest:
            raise InputError(f"{file}: is not as it was written")
    if manifest.files:
        for file in sorted(folder.iterdir()):
            if file.name not in {NAME, *manifest.shards, *manifest.files} and not is_ignored(file.name):
                raise InputError(f"{file}: is no file of this data set")
    return manifest
