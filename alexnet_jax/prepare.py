"""Turns your images into a data set that alexnet_jax.main trains on (§2): upright RGB, 256 × 256, with statistics.

  python -m alexnet_jax.prepare --source=PATH --output=DIR

PATH: a folder with a folder of images for each class; or with train/ and val/ (or validation/, test/) that hold
such folders; or a tar file of either, or several, comma-separated.
"""

import contextlib
import dataclasses
import functools
import io
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

SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
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
    """One file of a source. parts: its path below the source's root; read: None for an empty folder."""

    path: str
    parts: tuple[str, ...]
    read: Callable[[], bytes] | None


def list_files(source: str, open_archives: contextlib.ExitStack) -> list[File]:
    """The files (and empty folders) of a folder or a tar file, which stays open to be read.

    Raises InputError where it cannot be read.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            files = [_of_folder(path, file) for file in sorted(path.rglob("*")) if file.is_file() or _is_empty(file)]
        elif path.exists():
            archive = open_archives.enter_context(tarfile.open(path))
            files = [_of_tar(path, archive, member) for member in archive if member.isfile() or member.isdir()]
        else:
            raise InputError(f"--source={source}: there is no such file or folder")
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise InputError(f"--source={source}: cannot be read as a folder or tar file ({reason})") from error
    files = [file for file in files if not any(p.startswith(".") or p.lower() in IGNORED for p in file.parts)]
    if not any(file.read for file in files):
        raise InputError(f"--source={source}: is empty")
    # A folder around it all, as archives have it, is no class.
    while _shared(files) and _shared(files) not in SPLIT_NAMES and min(len(f.parts) for f in files if f.read) > 2:
        files = [file._replace(parts=file.parts[1:]) for file in files if len(file.parts) > 1]
    return files


def _of_folder(root: Path, file: Path) -> File:
    return File(str(file), file.relative_to(root).parts, file.read_bytes if file.is_file() else None)


def _of_tar(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> File:
    parts = tuple(part for part in PurePosixPath(member.name).parts if part not in ("/", ".", ".."))
    read = functools.partial(_read_member, archive, member) if member.isfile() else None
    return File(f"{path}:{member.name}", parts, read)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "only regular files are listed"
    return file.read()


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _shared(files: list[File]) -> str | None:
    """The folder that everything lies in."""
    first = {file.parts[0] for file in files if file.parts}
    return first.pop() if len(first) == 1 else None


class Source(NamedTuple):
    """What is to be prepared: (file, label) by split."""

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[File, int]]]


def sort_files(files: list[File], *, validation_fraction: float, seed: int) -> Source:
    """Which image goes into which split, under which label; classes in alphabetical order.

    Without a validation part, `validation_fraction` of each class (at least one image) is drawn from the training
    part; the draw depends on the seed and the files' names only. Raises InputError naming a class that is amiss.
    """
    split_folders = {file.parts[0] for file in files} & set(SPLIT_NAMES)
    by_split: dict[str, dict[str, list[File]]] = {}
    outside = []
    for file in files:
        split, *below = file.parts if split_folders else ("train", *file.parts)
        if split not in SPLIT_NAMES or len(below) < (2 if file.read else 1):
            outside.append(file)
            continue
        of_class = by_split.setdefault(SPLIT_NAMES[split], {}).setdefault(below[0], [])
        if file.read:
            of_class.append(file)
    if any(file.read for file in outside):
        names = [file.path for file in outside if file.read]
        print(f"ignored {len(names)} files that are in no class folder, such as {names[0]}")
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
    return Source(
        class_names,
        {
            split: [(file, label) for label, name in enumerate(class_names) for file in by_split[split].get(name, [])]
            for split in ("train", "validation", "test")
            if split in by_split
        },
    )


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
    with contextlib.ExitStack() as open_archives:
        _prepare(options, [file for source in options.source for file in list_files(source, open_archives)])


def _prepare(options: Options, files: list[File]) -> None:
    source = sort_files(files, validation_fraction=options.validation_fraction, seed=options.seed)
    skipped: list[str] = []

    def read(items: list[tuple[File, int]]) -> Iterator[tuple[File, int, bytes | Exception]]:
        # In the order of the archive and in one thread: a compressed tar cannot be read otherwise.
        for file, label in items:
            assert file.read is not None
            try:
                yield file, label, file.read()
            except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
                yield file, label, error

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

        def counted(items: list[tuple[File, int]]) -> Iterator[tuple[File, int, bytes | Exception]]:
            for item in read(items):
                yield item
                bar.update()

        counts = datasets.write(
            Path(options.output).expanduser(),
            source.class_names,
            {split: counted(items) for split, items in source.splits.items()},
            load,
            size=options.size,
        )
    print(
        f"{options.output}: {len(source.class_names)} classes, "
        + ", ".join(f"{count:,} {split} images" for split, count in counts.items())
    )
    if skipped:
        print(f"skipped {len(skipped)} files:", *sorted(skipped), sep="\n  ")
    print(f"train with: python -m alexnet_jax.main --workdir=DIR --dataset={options.output}")


def main() -> None:
    command.define_flags(Options)
    command.run(lambda: prepare(Options(**command.given_flags(Options))))


if __name__ == "__main__":
    main()
