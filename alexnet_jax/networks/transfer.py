"""§6: a network that begins with the parameters of another, trained on other images."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from alexnet_jax.config import Config
from alexnet_jax.data import imagenet
from alexnet_jax.data.datasets import Dataset
from alexnet_jax.files import write_whole
from alexnet_jax.networks.loading import load, table
from alexnet_jax.options import InputError
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.table import Layers, named
from alexnet_jax.paper.train_state import shapes_of_params
from alexnet_jax.paper.written import own_steps
from alexnet_jax.runs import workdir as folder
from alexnet_jax.runs.workdir import ORIGIN, taken_over
from alexnet_jax.shown import say


class Origin(NamedTuple):
    """Another network, whose parameters are taken over. taken, new: names, as "conv1/kernel". values: of the taken;
    none where the run has a checkpoint of its own.
    """

    name: str
    taken: list[str]
    new: list[str]
    values: Mapping[str, np.ndarray]

    def into(self, params: PyTree) -> PyTree:
        """The parameters with these in their places."""
        return unflatten_dict({**flatten_dict(params, sep="/"), **self.values}, sep="/")

    def keep(self, workdir: Path) -> None:
        """Says what is taken over, and keeps it in the workdir, for when the run is continued."""
        if self.values:
            facts = {"from": self.name, "taken": self.taken, "new": self.new}
            write_whole(workdir / ORIGIN, json.dumps(facts, indent=1) + "\n")
            say(f"{self.name}: {', '.join(self.taken)}; new: {', '.join(self.new) or 'none'}")


def common_layers(own: Layers, theirs: Layers) -> set[str]:
    """The names that two tables share, from the first layer to where one has a layer that the other has not."""
    pairs = zip(named(own), named(theirs), strict=False)
    return {name for name, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)}


def _layer(parameter: str) -> str:
    return parameter.rpartition("/")[0]


def find_origin(config: Config, workdir: Path, net: AlexNet, dataset: Dataset) -> Origin:
    """What the config says is to be taken over (`init_from`): each layer whose name and shapes agree, with kernel and
    bias; but the last layer only where its classes are the same. Where one of the two networks has a layer more, names
    stand for other layers from there on: nothing after it is taken, as in 2012 (five convolutions to six).

    Raises InputError where none agrees, or a layer that is to be frozen is not among them.
    """
    if not config.init_from:
        if config.frozen_layers:
            raise InputError(f"--frozen_layers={','.join(config.frozen_layers)}: needs --init_from")
        return Origin("", [], [], {})
    own = flatten_dict(shapes_of_params(net, config.crop_size), sep="/")
    taken = taken_over(workdir, own)
    if taken and any((workdir / "checkpoints").glob("[0-9]*")):
        return Origin(config.init_from, taken, [], {})
    with _named(config.init_from):
        origin = load(config.init_from, steps=own_steps(net.layers))
    theirs = flatten_dict(origin.params, sep="/")
    same = common_layers(net.layers, origin.net.layers)
    classes = imagenet.named(dataset.class_names)
    if origin.class_names[: len(classes)] not in (classes, dataset.class_names):
        same.discard([*named(origin.net.layers)][-1])
    same -= {_layer(name) for name in own if name not in theirs or theirs[name].shape != own[name].shape}
    taken = [name for name in own if _layer(name) in same]
    if not taken:
        raise InputError(
            f"--init_from={config.init_from}: none of its layers has the name and shapes of one here "
            f"({_differing(theirs, own)}); without --architecture and --preset, its own network is trained"
        )
    for layer in config.frozen_layers:
        if not {f"{layer}/kernel", f"{layer}/bias"} <= set(taken):
            raise InputError(f"--frozen_layers={layer}: is not taken over from {config.init_from}")
    values = {name: np.asarray(theirs[name]) for name in taken}
    return Origin(f"{origin.source}, step {origin.step}", taken, [name for name in own if name not in values], values)


def table_of_origin(init_from: str, workdir: Path) -> tuple[Layers, int]:
    """The layers of the network that a run is to begin with, and the size of its crops; of a run that has begun, its
    own. Raises InputError.
    """
    if (workdir / folder.CONFIG).exists():  # its origin may have gone
        return table(workdir)
    with _named(init_from):
        return table(init_from)


@contextlib.contextmanager
def _named(init_from: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"--init_from={init_from}: {error}") from error


def _differing(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    for name in own:
        if name in theirs and len(own[name].shape) > 1:
            return f"{name} is {theirs[name].shape} there, {own[name].shape} here"
    return f"there are {', '.join([*theirs][:3])} there, {', '.join([*own][:3])} here"
