"""Turns your images into a data set that alexnet_jax.main trains on (§2): upright RGB, 256 × 256, with statistics.

  python -m alexnet_jax.prepare --source=PATH --output=DIR
  python -m alexnet_jax.prepare --verify=DIR

PATH: a folder with a folder of images for each class; or with train/ and val/ (or validation/, test/) that hold
such folders; or a tar file of either, or several, comma-separated. Or images as their owners publish them:

  a folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar      ImageNet, read without unpacking
  cifar-10-python.tar.gz, cifar-10-binary.tar.gz, or a folder of either  CIFAR-10, at its own 32 × 32
  tfds:NAME                                                              a TFDS data set in array_record format

Where it was interrupted, the same command continues.
"""

import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from alexnet_jax import command
from alexnet_jax.config import InputError, check_bounds, check_choice, one_of, option
from alexnet_jax.data.images import ENCODINGS
from alexnet_jax.shown import say


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
    if output.exists():  # known before the source is listed
        raise InputError(f"--output={options.output}: already exists; choose another output or delete it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{output.name}.unpacked-", dir=output.parent) as scratch:
            _prepare(options, output, Path(scratch))
    except OSError as error:
        raise InputError(f"--output={options.output}: cannot be written ({error.strerror or error})") from error


def _prepare(options: Options, output: Path, scratch: Path) -> None:
    from alexnet_jax.data import archives, datasets, shards  # here, so that --help and bad flags do not wait for it
    from alexnet_jax.data.sources import list_files, sort_files

    source = archives.recognised(options.source[0], options.data_dir, scratch) if len(options.source) == 1 else None
    if source is None:
        files = [file for path in options.source for file in list_files(path, scratch)]
        source = sort_files(files, validation_fraction=options.validation_fraction, seed=options.seed)
    size, encoding = options.size or source.size, options.encoding or source.encoding
    say(f"{','.join(options.source)}: {source.kind}, {len(source.class_names):,} classes")
    total = sum(map(len, source.splits.values()))
    with tqdm(total=total, unit=" images", mininterval=0.1 if sys.stderr.isatty() else 15) as bar:
        counts, skipped = datasets.write(
            output, source.class_names, source.splits, size=size, encoding=encoding,
            on_error=options.on_error, workers=options.workers or shards.cores(), progress=bar.update,
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
    from alexnet_jax.data import datasets  # here, as above

    manifest = datasets.verify(Path(path).expanduser())
    images = {split: sum(of_class.values()) for split, of_class in manifest["images"].items()}
    say(
        f"{path}: {len(manifest['shards'])} shards are as they were written; "
        + ", ".join(f"{count:,} {split} images" for split, count in images.items())
    )


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
