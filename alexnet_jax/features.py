"""Writes what layers of a trained network say of pictures, as features: one row a picture.

  python -m alexnet_jax.features --workdir=DIR --output=f.npz photo.jpg more/*.png folder
  python -m alexnet_jax.features --workdir=DIR --output=f.npz --layers=conv1:relu,conv5:pool,fc7 folder
  python -m alexnet_jax.features --workdir=DIR --output=f.npy --dataset=PREPARED --split=train
  python -m alexnet_jax.features --workdir=DIR --layers=help

DIR: of a run of alexnet_jax.main, or a .safetensors, torchvision or caffe. The rows are in the order of the files, or
of the split; f.csv says what each is of. An .npz holds an array for each layer. As .npy each layer has a file of its
own, f-conv1-relu.npy where there are several; numpy.load(file, mmap_mode="r") reads from such a one without loading it.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alexnet_jax import command
from alexnet_jax.data.pictures import MAX_PIXELS
from alexnet_jax.files import write_whole
from alexnet_jax.options import InputError, check_bounds, option
from alexnet_jax.shown import csv_line, progress, say

if TYPE_CHECKING:
    import numpy as np

    from alexnet_jax.data.datasets import Dataset
    from alexnet_jax.networks.network import Trained


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags."""

    workdir: str = option("", "folder of the run that trained the network; or a .safetensors, torchvision, caffe")
    checkpoint: str = option("latest", "which of its checkpoints: latest, best, or the number of a step")
    layers: tuple[str, ...] = option(
        (), "names of outputs, comma-separated, as conv1:pool,fc7; help: lists them; none: the last before the classes"
    )
    dataset: str = option("", "a prepared data set, in place of files")
    split: str = option("train", "of the data set")
    max_pixels: int = option(MAX_PIXELS, "of a picture; a larger one cannot be read (JPEGs: four times)", minimum=1)
    output: str = option("", "the .npz or .npy to write")

    def __post_init__(self):
        check_bounds(self)
        if not self.workdir:
            raise InputError("--workdir=DIR is needed: the folder of a run")
        if self.layers != ("help",) and Path(self.output).suffix not in (".npz", ".npy"):
            raise InputError(f"--output={self.output}: must end in .npz or .npy")
        if len({*self.layers}) < len(self.layers):
            raise InputError(f"--layers={','.join(self.layers)}: names one twice")


class Some(NamedTuple):
    """Some rows. features: by output. of: what each is of, a file or a class. errors: of pictures that are none."""

    features: "dict[str, np.ndarray]"
    of: list[str]
    errors: Sequence[InputError] = ()


def main() -> None:
    """The command `python -m alexnet_jax.features`."""
    command.define_flags(Options)
    command.run(_write, __doc__, takes_files=True)


def _write(arguments: Sequence[str]) -> None:
    options = Options(**command.given_flags(Options))
    if options.layers == ("help",):
        return _list_outputs(options)
    if bool(arguments) == bool(options.dataset):
        raise InputError("give pictures, or --dataset=PREPARED: python -m alexnet_jax.features --workdir=DIR photo.jpg")
    # Here, so that --help and bad flags do not wait for it.
    from alexnet_jax.data.datasets import open_dataset
    from alexnet_jax.networks.layer_outputs import last_hidden
    from alexnet_jax.networks.loading import load
    from alexnet_jax.predict import files_of, say_if_small

    network, output = load(options.workdir, options.checkpoint), Path(options.output).expanduser()
    names = options.layers or (last_hidden(network),)
    network.make_outputs(names)  # known before the pictures are read
    if options.dataset:
        dataset = open_dataset(options.dataset)
        kind, rows = "class", _of_split(network, dataset, options.split, names)
        total = len(dataset.splits.get(options.split, ()))
    else:
        files = files_of(arguments)
        kind, rows, total = "file", _of_files(network, files, names, options.max_pixels), len(files)
        say_if_small(network, files)
    failed = write(rows, names, kind, total, output)
    if failed:
        raise InputError(f"{failed} of {total} pictures cannot be read")
    return None


def _list_outputs(options: Options) -> None:
    from alexnet_jax.networks.layer_outputs import shapes  # here, as above
    from alexnet_jax.networks.loading import load

    found = shapes(load(options.workdir, options.checkpoint))
    width = max(map(len, found))
    say(*(f"{name:{width}}  {_by(shape)}" for name, shape in found.items()))


def _of_files(network: "Trained", files: Sequence[str], names: Sequence[str], max_pixels: int) -> Iterator[Some]:
    left = iter(files)
    for features, pixels in network.features_in_batches(files, names, max_pixels=max_pixels):
        errors = [of for of in pixels if isinstance(of, InputError)]
        read = [file for of, file in zip(pixels, left, strict=False) if not isinstance(of, InputError)]
        yield Some(features, read, errors)


def _of_split(network: "Trained", dataset: "Dataset", split: str, names: Sequence[str]) -> Iterator[Some]:
    from alexnet_jax.networks.layer_outputs import split_in_batches  # here, as above

    for features, labels in split_in_batches(network, dataset, split, names):
        yield Some(features, [dataset.class_names[label] for label in labels])


def write(rows: Iterable[Some], names: Sequence[str], kind: str, total: int, output: Path) -> int:
    """Writes them as they come: the arrays, and a .csv with a column `kind`. Returns of how many there are none."""
    from alexnet_jax.networks.layer_outputs import Rows, write_archive  # here, as above

    is_archive = output.suffix == ".npz"
    parts = {name: output.with_name(f"{output.stem}-{name.replace(':', '-')}.npy") for name in names}
    if is_archive:
        parts = {name: part.with_suffix(".part") for name, part in parts.items()}
    elif len(names) == 1:
        parts = {names[0]: output}
    of_rows: list[str] = []
    failed = 0
    written: dict[str, Rows] = {}
    try:
        with contextlib.ExitStack() as files, progress(total, unit=" pictures", delay=1) as bar:
            for name, part in parts.items():
                written[name] = files.enter_context(Rows(part))
            for some in rows:
                for error in some.errors:
                    say(f"error: {error}", error=True)
                for name, file in written.items():
                    file.append(some.features[name])
                of_rows += some.of
                failed += len(some.errors)
                bar.update(len(some.of) + len(some.errors))
        if not of_rows:
            return failed
        if is_archive:
            write_archive(parts, output)
    finally:
        for name in written if is_archive else ():  # the others are another process's
            parts[name].unlink(missing_ok=True)
    write_whole(output.with_suffix(".csv"), "".join(f"{csv_line([of])}\n" for of in [kind, *of_rows]))
    for name, file in written.items():
        count = f"{len(of_rows):,} picture{'s' * (len(of_rows) != 1)}"
        say(f"{output if is_archive else file.file}: {name} of {count}, {_by(file.shape)} each")
    return failed


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


if __name__ == "__main__":
    main()
