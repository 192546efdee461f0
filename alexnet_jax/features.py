"""Writes what a layer of a trained network says of pictures, as features: one row a picture.

  python -m alexnet_jax.features --workdir=DIR --output=fc7.npy photo.jpg more/*.png folder
  python -m alexnet_jax.features --workdir=DIR --output=fc7.npy --dataset=PREPARED --split=train

DIR: of a run of alexnet_jax.main, or a .safetensors, torchvision or caffe. The rows are in the order of the files, or
of the split.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax import command
from alexnet_jax.config import InputError, check_bounds, option
from alexnet_jax.data.pictures import MAX_PIXELS
from alexnet_jax.shown import say


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags."""

    workdir: str = option("", "folder of the run that trained the network, or a .safetensors")
    checkpoint: str = option("latest", "which of its checkpoints: latest, best, or the number of a step")
    layer: str = option("", "name of the output, as conv1:pool or fc7:relu; none: the last before the classes")
    dataset: str = option("", "a prepared data set, in place of files")
    split: str = option("train", "of the data set")
    max_pixels: int = option(MAX_PIXELS, "of a picture; a larger one cannot be read (JPEGs: four times)", minimum=1)
    output: str = option("", "the .npy to write")

    def __post_init__(self):
        check_bounds(self)
        if not self.workdir:
            raise InputError("--workdir=DIR is needed: the folder of a run")
        if Path(self.output).suffix != ".npy":
            raise InputError(f"--output={self.output}: must end in .npy")


def main() -> None:
    """The command `python -m alexnet_jax.features`."""
    command.define_flags(Options)
    command.run(_write, __doc__, takes_files=True)


def _write(arguments: Sequence[str]) -> None:
    options = Options(**command.given_flags(Options))
    if bool(arguments) == bool(options.dataset):
        raise InputError("give pictures, or --dataset=PREPARED: python -m alexnet_jax.features --workdir=DIR photo.jpg")
    # Here, so that --help and bad flags do not wait for it.
    import numpy as np

    from alexnet_jax.data.datasets import open_dataset
    from alexnet_jax.networks.layer_outputs import features_of_split, last_hidden
    from alexnet_jax.networks.loading import load
    from alexnet_jax.predict import files_of

    network, output = load(options.workdir, options.checkpoint), Path(options.output).expanduser()
    layer = options.layer or last_hidden(network)
    if options.dataset:
        dataset = open_dataset(options.dataset)
        rows = features_of_split(network, dataset, options.split, output=layer, file=output)
    else:
        rows = network.features(files_of(arguments), [layer], max_pixels=options.max_pixels)[layer]
        np.save(output, rows)
    say(f"{output}: {layer} of {len(rows):,} pictures, {' × '.join(map(str, rows.shape[1:]))} each")


if __name__ == "__main__":
    main()
