"""Turns your images into a data set that alexnet_jax.main trains on (§2): upright RGB, 256 × 256, with statistics.

  python -m alexnet_jax.prepare --source=PATH --output=DIR

PATH: a folder with a folder of images for each class; or with train/ and val/ (or validation/, test/) that hold
such folders; or a tar file of either, or several, comma-separated.
"""

import contextlib
import dataclasses
import functools
import io
import lzma
import os
import shlex
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from alexnet_jax import command, datasets
from alexnet_jax.config import InputError, check_bounds, option

SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
# What operating systems leave in folders.
IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to prepare. Raises InputError for an impossible value."""

    source: tuple[str, ...] = option((), "folders or tar files, comma-separated")
    output: str = option("", "folder to write; must not exist")
    size: int = option(256, "side of the square images, in pixels (§2)", minimum=8)
    validation_fraction: float = option(
        0.1, "of each class, for validation, where the source has no validation part", above=0, below=1
    )
    seed: int = option(0, "of the choice of these validation images", minimum=0)
    on_error: str = option("stop", "what to do about an image that cannot be read: stop, or skip and list it")

    def __post_init__(self):
        check_bounds(self)
        if not self.source or not self.output:
            raise InputError("--source=PATH and --output=DIR are needed")
        if self.on_error not in ("stop", "skip"):
            raise InputError(f"--on_error={self.on_error}: must be stop or skip")


class File(NamedTuple):
    """One file or folder of a source. parts: its path below the source's root; read: None for a folder."""

    path: str
    parts: tuple[str, ...]
    read: Callable[[], bytes] | None


def list_files(source: str, open_archives: contextlib.ExitStack) -> list[File]:
    """The files and folders in a folder or a tar file, which stays open to be read.

    Raises InputError where it cannot be read.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            files = list(_walk_folder(path))
        elif path.exists():
            archive = open_archives.enter_context(tarfile.open(path))  # noqa: SIM115
            files = [_of_tar(path, archive, member) for member in archive]
        else:
            raise InputError(f"--source={source}: there is no such file or folder")
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise InputError(f"--source={source}: cannot be read as a folder or tar file ({reason})") from error
    files = [f for f in files if f.parts and not any(p.startswith(".") or p.lower() in IGNORED for p in f.parts)]
    if not any(file.read for file in files):
        raise InputError(f"--source={source}: is empty")
    return _unwrapped(files)


def _walk_folder(root: Path) -> Iterator[File]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            yield File(_text(file), tuple(map(_text, file.relative_to(root).parts)), file.read_bytes)
        yield File(_text(folder), tuple(map(_text, Path(folder).relative_to(root).parts)), None)


def _of_tar(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> File:
    parts = tuple(_text(part) for part in PurePosixPath(member.name).parts if part not in ("/", ".", ".."))
    read = None if member.isdir() else functools.partial(_read_member, archive, member)
    return File(f"{path}:{_text(member.name)}", parts, read)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = archive.extractfile(member)
    except KeyError as error:
        raise OSError("a link to nothing in the archive") from error
    if file is None:
        raise OSError("neither a file nor a folder")
    return file.read()


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
    """What is to be prepared: (file, label) by split."""

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[File, int]]]


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
        print(f"ignored {len(ignored)} files that are in no class folder, such as {ignored[0]}")
    if "train" not in by_split:
        raise InputError(f"no class folders of training images beside {files[0].path}")
    if "validation" not in by_split and "test" in by_split:
        by_split["validation"] = by_split.pop("test")

    class_names = tuple(sorted(by_split["train"]))
    if len(class_names) < 2:
        raise InputError(f"one class only, '{class_names[0]}': each class needs a folder of its own")
    for split, classes in by_split.items():
        for name, of_class in classes.items():
            if name not in class_names:
                raise InputError(f"class '{name}' is in the {split} part and not in the training part")
            if not of_class:
                raise InputError(f"class folder '{name}' of the {split} part has no images")
    if "validation" not in by_split:
        by_split["validation"] = _draw_validation(by_split["train"], validation_fraction, seed)
    splits = {}
    for split in ("train", "validation", "test"):
        labels = {file: class_names.index(name) for name, of in by_split.get(split, {}).items() for file in of}
        # In the source's own order: a compressed tar can only be read forward.
        splits[split] = [(file, labels[file]) for file in files if file in labels]
    return Source(class_names, {split: items for split, items in splits.items() if items})


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


def upright_rgb(data: bytes, size: int) -> datasets.Pixels:
    """§2: the shorter side scaled to `size` (bicubic, antialiased), the central square; upright by EXIF, RGB.

    Greyscale is spread over RGB (16 bits scaled to 8), CMYK converted, transparency laid on white. Raises ValueError
    where `data` is no image, or a damaged one.
    """
    if not data:
        raise ValueError("is empty")
    try:
        with Image.open(io.BytesIO(data)) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow's conversion would clip
                image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError("is not an image of a known format") from None
    except Exception as error:  # each of Pillow's formats raises its own types for damaged data
        raise ValueError(f"is damaged ({error})") from error


def prepare(options: Options) -> None:
    """Writes the data set. Raises InputError; then nothing is left at the output."""
    if Path(options.output).expanduser().exists():  # known before the source is listed
        raise InputError(f"--output={options.output}: already exists; choose another output or delete it")
    with contextlib.ExitStack() as open_archives:
        _prepare(options, [file for source in options.source for file in list_files(source, open_archives)])


def _prepare(options: Options, files: list[File]) -> None:
    source = sort_files(files, validation_fraction=options.validation_fraction, seed=options.seed)
    skipped: list[str] = []

    def read(items: list[tuple[File, int]]) -> Iterator[tuple[File, int, bytes | Exception]]:
        # In one thread: an open tar file has one place that it reads at.
        for file, label in items:
            assert file.read is not None
            try:
                yield file, label, file.read()
            except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
                yield file, label, error
            bar.update()

    def load(item: tuple[File, int, bytes | Exception]) -> datasets.Example | None:
        file, label, data = item
        try:
            if isinstance(data, Exception):
                raise ValueError(f"cannot be read ({data})")
            return datasets.Example(upright_rgb(data, options.size), label, "/".join(file.parts))
        except ValueError as error:
            if options.on_error == "stop":
                raise InputError(f"{file.path}: {error}; --on_error=skip leaves such files out") from error
            skipped.append(f"{file.path}: {error}")
            return None

    total = sum(map(len, source.splits.values()))
    with tqdm(total=total, unit=" images", mininterval=0.1 if sys.stderr.isatty() else 15) as bar:
        counts = datasets.write(
            Path(options.output).expanduser(),
            source.class_names,
            {split: read(items) for split, items in source.splits.items()},
            load,
            size=options.size,
        )
    print(
        f"{options.output}: {len(source.class_names)} classes, "
        + ", ".join(f"{count:,} {split} images" for split, count in counts.items())
    )
    if skipped:
        print(f"skipped {len(skipped)} files:", *sorted(skipped), sep="\n  ")
    output = shlex.quote(str(Path(options.output).expanduser().absolute()))
    print(f"train with: python -m alexnet_jax.main --workdir=DIR --dataset={output}")


def main() -> None:
    command.define_flags(Options)
    command.run(lambda: prepare(Options(**command.given_flags(Options))), __doc__)


if __name__ == "__main__":
    main()
