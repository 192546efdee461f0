"""What a training step changes."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from alexnet_jax.paper.model import AlexNet


@flax.struct.dataclass
class TrainState:
    """step: how many have been done. params, opt_state: as they are after them."""

    step: PyTree  # one int32; not annotated as such, since JAX also builds trees of this form out of other leaves
    params: PyTree
    opt_state: PyTree


def init_state(
    net: AlexNet, optimizer: optax.GradientTransformation, *, image_size: int = 224, seed: int = 0
) -> TrainState:
    """The state before the first step."""
    key = jax.random.split(jax.random.key(seed))[0]  # the other half is of `make_train_step`
    params = jax.jit(lambda key: init_params(net, key, image_size))(key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def init_params(net: AlexNet, key: Array, image_size: int) -> PyTree:
    """Parameters as the table has them at first."""
    return net.init(key, jnp.zeros((1, image_size, image_size, 3)), train=False)["params"]


def shapes_of_params(net: AlexNet, image_size: int) -> PyTree:
    """Their shapes and types. Nothing is computed. Raises ValueError, naming the layer, where images are too small."""
    return jax.eval_shape(lambda: init_params(net, jax.random.key(0), image_size))
