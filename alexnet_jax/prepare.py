"""Turns your images into a data set that alexnet_jax.main trains on (§2): upright RGB, 256 × 256, with statistics.

  python -m alexnet_jax.prepare --source=PATH --output=DIR
  python -m alexnet_jax.prepare --verify=DIR

PATH: a folder with a folder of images for each class; or with train/ and val/ (or training_set/, Testing/, …) that hold
such folders; or a tar file of either, or several, comma-separated. Or images as their owners publish them:

  a folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar      ImageNet, read without unpacking
  imagenette2.tgz, imagenette2-320.tgz, imagenette2-160.tgz              Imagenette, with its classes' names
  cifar-10-python.tar.gz, cifar-10-binary.tar.gz, or a folder of either  CIFAR-10, at its own 32 × 32
  tfds:NAME                                                              a TFDS data set in array_record format

Where it was interrupted, the same command continues.
"""

import contextlib
import dataclasses
import glob
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alexnet_jax import command
from alexnet_jax.data.images import ENCODINGS
from alexnet_jax.data.pictures import MAX_PIXELS, usual_side
from alexnet_jax.files import check_text, only_process, whole_paths
from alexnet_jax.options import InputError, check_bounds, check_choice, one_of, option
from alexnet_jax.shown import progress, say


@dataclasses.dataclass(frozen=True)
class Options:
    """What to prepare. Raises InputError for an impossible value."""

    source: tuple[str, ...] = option((), "folders or tar files, comma-separated; or one of the sources above")
    data_dir: str = option("", "where TFDS data sets lie; none: TFDS's own default")
    output: str = option("", "folder to write; must not exist")
    size: int = option(0, "side of the square images, in pixels (§2); 0: 256 (CIFAR-10: 32)", minimum=0, maximum=4096)
    validation_fraction: float = option(
        0.1, "of each class, for validation, where the source has no validation part", above=0, below=1
    )
    seed: int = option(0, "of the choice of these validation images", minimum=0, maximum=2**63 - 1)
    encoding: str = option(
        "", f"how images are stored: {one_of(ENCODINGS)} (raw: several times larger); none: jpeg (CIFAR-10: raw)"
    )
    on_error: str = option("stop", "what to do about an image that cannot be read: stop, or skip and list it")
    max_pixels: int = option(
        MAX_PIXELS, "of an image; a larger one cannot be read (JPEGs: four times as large); it takes memory", minimum=1
    )
    workers: int = option(0, "processes; 0: one for each core", minimum=0, maximum=1024)
    verify: str = option("", "a prepared data set to check against its manifest, instead of preparing one")

    def __post_init__(self):
        check_bounds(self)
        if 0 < self.size < 8:
            raise InputError(f"--size={self.size}: must be at least 8, or 0")
        if not self.verify and not (self.source and self.output):
            raise InputError("--source=PATH and --output=DIR are needed")
        check_choice("on_error", self.on_error, ("stop", "skip"))
        check_choice("encoding", self.encoding or "jpeg", ENCODINGS)


def prepare(options: Options) -> None:
    """Writes the data set. Raises InputError; then there is nothing at the output."""
    output = Path(options.output).expanduser().absolute()
    check_text(output, f"--output={options.output}")
    if os.path.lexists(output):  # known before the source is listed
        raise InputError(f"--output={options.output}: already exists; choose another output or delete it")
    sources = _whole_paths(options.source)
    for source in sources:
        if Path(source).expanduser().is_dir() and output.resolve().is_relative_to(Path(source).expanduser().resolve()):
            raise InputError(f"--output={options.output}: lies in --source={source}; choose a folder outside of it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(output) as scratch:
            _prepare(dataclasses.replace(options, source=sources), output, scratch)
    except OSError as error:
        raise InputError(f"--output={options.output}: cannot be written ({error.strerror or error})") from error


def _whole_paths(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The sources, where a path with a comma in it was taken apart. Raises InputError for one that is given twice."""
    found = whole_paths(texts)
    real = [Path(text).expanduser().resolve() for text in found]
    for number, path in enumerate(real):
        for other in (*real[:number], *real[number + 1 :]):
            if path.is_relative_to(other):
                raise InputError(f"--source={found[number]}: is given twice, or lies in another source")
    return tuple(found)


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder beside the output for what is unpacked. Those that dead runs have left are removed."""
    name = f"{output.name}.unpacked-"
    for left in output.parent.glob(f"{glob.escape(name)}*"):
        with contextlib.suppress(OSError, InputError), only_process(left, ""):
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=name, dir=output.parent) as folder, only_process(Path(folder), ""):
        yield Path(folder)


def _prepare(options: Options, output: Path, scratch: Path) -> None:
    from alexnet_jax.data import archives, shards, writing  # here, so that --help and bad flags do not wait for it
    from alexnet_jax.data.layouts import sort_files
    from alexnet_jax.data.sources import list_all

    source = archives.recognised(options.source[0], options.data_dir, scratch) if len(options.source) == 1 else None
    if source is None:
        source = sort_files(
            list_all(options.source, scratch),
            validation_fraction=options.validation_fraction,
            seed=options.seed,
            on_error=options.on_error,
        )
    size, encoding = options.size or source.size, options.encoding or source.encoding
    say(f"{','.join(options.source)}: {source.kind}, {len(source.class_names):,} classes")
    total = sum(map(len, source.splits.values()))
    train = source.splits["train"]
    side = 0 if options.size else usual_side(archives.Made(lambda number: train[number].read, range(len(train))))
    if 8 <= side < size:
        say(
            f"hint: most of the images have about {side} pixels a side, and are enlarged to {size} × {size}; "
            f"--size={side} keeps them as they are, for networks of a smaller --crop_size",
            error=True,
        )
    with progress(total, unit=" images") as bar:
        counts, skipped = writing.write(
            output, source.class_names, source.splits, size=size, encoding=encoding,
            on_error=options.on_error, max_pixels=options.max_pixels,
            workers=options.workers or shards.cores(), progress=bar.update,
        )  # fmt: skip
    say(
        f"{options.output}: {len(source.class_names)} classes, "
        + ", ".join(f"{count:,} {split} images" for split, count in counts.items())
    )
    if skipped:
        say(f"skipped {len(skipped)} files:", *(f"  {file}" for file in sorted(skipped)))
    say(f"train with: python -m alexnet_jax.main --workdir=DIR --dataset={shlex.quote(str(output))}")


def verify(path: str) -> None:
    """Checks a prepared data set, file by file. Raises InputError naming the first that is amiss."""
    from alexnet_jax.data import manifest  # here, as above

    found = manifest.verify(Path(path).expanduser())
    images = {split: sum(of_class.values()) for split, of_class in found.images.items()}
    others = f" and {len(found.files)} other files" if found.files else ""
    say(
        f"{path}: {len(found.shards)} shards{others} are as they were written; "
        + ", ".join(f"{count:,} {split} images" for split, count in images.items())
    )
    if not others:
        say("its manifest, of an earlier version, lists the shards only")


def main() -> None:
    """The command `python -m alexnet_jax.prepare`."""
    command.define_flags(Options)
    command.run(_run, __doc__)


def _run() -> None:
    options = Options(**command.given_flags(Options))
    if options.verify:
        verify(options.verify)
    else:
        prepare(options)


if __name__ == "__main__":
    main()
