"""What a training step changes, and a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from alexnet_jax.paper import model, optim


@flax.struct.dataclass
class TrainState:
    """All that a run changes. step: how many have been done. plateau: optim.Plateau. sums: of the metrics of the
    steps since the last line of the log, and their number.
    """

    step: PyTree  # one int32; not annotated as such, since JAX also builds trees of this form out of other leaves
    params: PyTree
    opt_state: PyTree
    plateau: PyTree
    sums: PyTree


def init_state(net: model.AlexNet, optimizer: optax.GradientTransformation, *, crop_size: int, seed: int) -> TrainState:
    """The state before the first step."""
    params = jax.jit(lambda key: init_params(net, key, crop_size))(jax.random.split(jax.random.key(seed))[0])
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), optim.plateau_start(), no_sums())


def init_params(net: model.AlexNet, key: jax.Array, crop_size: int) -> PyTree:
    """Parameters as the table has them at first."""
    return net.init(key, jnp.zeros((1, crop_size, crop_size, 3)), train=False)["params"]


def no_sums() -> dict[str, Any]:
    """The `sums` of no step."""
    return {"loss": np.float32(0), "top1_error": np.float32(0), "steps": np.float32(0)}
