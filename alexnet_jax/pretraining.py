"""§6: a network that begins with the parameters of another, trained on other images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from alexnet_jax import parallel, runlog, trained
from alexnet_jax.architectures import named
from alexnet_jax.config import Config, InputError
from alexnet_jax.datasets import Dataset
from alexnet_jax.model import AlexNet
from alexnet_jax.state import init_params


class TakenOver(NamedTuple):
    """Parameters of another network. taken: their names, as "conv1/kernel". values: by name."""

    taken: list[str]
    values: Mapping[str, np.ndarray]

    def into(self, params: PyTree) -> PyTree:
        """The parameters with these in their places."""
        return jax.tree_util.tree_map_with_path(lambda path, of: self.values.get(_name(path), of), params)


def take_over(config: Config, workdir: Path, net: AlexNet, dataset: Dataset, *, continues: bool) -> TakenOver:
    """What the config says is to be taken over (`init_from`): every parameter whose name and shape agree; but the last
    layer only where its classes are the same. Which they are stays in the workdir.

    continues: whether there is a checkpoint of the run's own: then only the names are needed.

    Raises InputError where none agrees, or a layer that is to be frozen is not among them.
    """
    if not config.init_from:
        if config.frozen_layers:
            raise InputError(f"--frozen_layers={','.join(config.frozen_layers)}: needs --init_from")
        return TakenOver([], {})
    if continues:
        return TakenOver(runlog.taken_over(workdir), {})
    origin = trained.load(config.init_from)
    own = _by_name(jax.eval_shape(lambda: init_params(net, jax.random.key(0), config.crop_size)))
    theirs = _by_name(origin.params)
    last = f"{[*named(origin.net.layers)][-1]}/"
    if origin.class_names[: len(dataset.class_names)] != dataset.class_names:
        theirs = {name: value for name, value in theirs.items() if not name.startswith(last)}
    agreeing = [name for name in own if name in theirs and theirs[name].shape == own[name].shape]
    values = {name: np.asarray(theirs[name]) for name in agreeing}
    if not values:
        raise InputError(f"--init_from={config.init_from}: none of its parameters has the name and shape of one here")
    new = [name for name in own if name not in values]
    for layer in config.frozen_layers:
        if not {f"{layer}/kernel", f"{layer}/bias"} <= set(values):
            raise InputError(f"--frozen_layers={layer}: is not taken over from {config.init_from}")
    if parallel.is_first_host():
        facts = {"from": str(origin.workdir), "step": origin.step, "taken": list(values), "new": new}
        runlog.write_whole(workdir / runlog.ORIGIN, json.dumps(facts, indent=1) + "\n")
        print(f"{origin.workdir}, step {origin.step}: {', '.join(values)}; new: {', '.join(new) or 'none'}", flush=True)
    return TakenOver(list(values), values)


def _by_name(params: PyTree) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _name(path: tuple) -> str:
    return "/".join(key.key for key in path)
