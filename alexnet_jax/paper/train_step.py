"""§5: the training step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from alexnet_jax.config import Config
from alexnet_jax.data.images import Statistics
from alexnet_jax.options import LARGEST
from alexnet_jax.paper.augment import image_keys, patches, split_each, training_views
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.train_state import TrainState


class Draws(NamedTuple):
    """What is random in a step's images. key: of the step. places: of this device's images in the whole batch."""

    key: Key[Array, ""]
    places: Int[Array, "n"]
    step: Int[Array, ""]

    def keys(self, *, chunk: int = 1) -> Key[Array, "n"]:
        """One key an image, the same on any number of devices. chunk: as in `augment.image_keys`."""
        return self._split(chunk)[0]

    def dropout_keys(self) -> Key[Array, "n"]:
        """Others, for the network."""
        return self._split(1)[1]

    def _split(self, chunk: int) -> Key[Array, "2 n"]:
        return split_each(image_keys(self.key, self.places, chunk=chunk), 2)


# Images as they are stored → what the network sees.
Augment = Callable[[Draws, UInt8[Array, "n size size 3"]], Float[Array, "n crop crop 3"]]


class Seen(NamedTuple):
    """What a metric of a step may look at. params: before the update. gradients: their mean over the whole batch."""

    params: PyTree
    gradients: PyTree
    logits: Float[Array, "n classes"]
    labels: Int[Array, "n"]


def papers_augmentation(
    config: Config, statistics: Statistics, steps_per_epoch: float, *, cut: Callable = patches
) -> Augment:
    """§2 and §4.1, as the config has them, with what the code of 2012 did otherwise. See `augment.training_views`.

    statistics: of the training images, as `open_dataset(…).statistics`. cut: what computes `augment.patches`.
    """
    mean_image, pca = (jnp.asarray(of, jnp.float32) for of in (statistics.mean_image, statistics.color_pca))
    off_from = min(round(config.color_off_from * steps_per_epoch), LARGEST)

    def augment(draws: Draws, images: Array) -> Array:
        scale = jnp.where(draws.step < off_from, config.color_scale, 0.0) if off_from else config.color_scale
        return training_views(
            draws.keys(), images, mean_image, pca, size=config.crop_size, color_scale=scale,
            chunk_key=draws.keys(chunk=config.crop_chunk) if config.crop_chunk > 1 else None, reflect=config.reflect,
            crop_to_edge=config.crop_to_edge, center_mean=config.center_mean, color_rescale=config.color_rescale,
            cut=cut,
        )  # fmt: skip

    return augment


def make_train_step(
    net: AlexNet,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    *,
    seed: int = 0,
    axis_name: str | None = None,
    mean_gradients: Callable[[PyTree, str], PyTree] = lax.pmean,
    metrics: Mapping[str, Callable[[Seen], Array]] | None = None,
) -> Callable[[TrainState, tuple], tuple[TrainState, dict[str, Array]]]:
    """The step (state, (images, labels)) → (state, {"loss", "top1_error", …}), to be compiled.

    Augmentation, network, cross-entropy (nats, mean over the batch), gradients, update. What is random is a
    function of (seed, step, place in the whole batch). The metrics are those of the augmented images, with dropout.

    Args:
      axis_name: of the devices over which a `pmap` or `shard_map` around it divides the batch, in order; None where
        there is none, as under `jit`, whatever the mesh.
      mean_gradients: of them, over the devices of that axis.
      metrics: more numbers, of what the step has seen, averaged over the devices.

    The step raises ValueError for a metric that is not one number.
    """
    random_key = jax.random.split(jax.random.key(seed))[1]
    update = optax.with_extra_args_support(optimizer).update

    def mean(tree: PyTree) -> PyTree:
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def train_step(state: TrainState, batch: tuple) -> tuple[TrainState, dict[str, Array]]:
        images, labels = map(jnp.asarray, batch)
        first = 0 if axis_name is None else lax.axis_index(axis_name) * len(images)
        places = first + jnp.arange(len(images), dtype=jnp.int32)
        places += 0 * labels.astype(jnp.int32)  # so that, on an explicit mesh, they are divided as the labels are
        draws = Draws(jax.random.fold_in(random_key, state.step), places, state.step)
        views, dropout_keys = augment(draws, images), draws.dropout_keys()

        def loss(params: PyTree) -> tuple[Array, Array]:
            logits = jnp.asarray(net.apply({"params": params}, views, train=True, key=dropout_keys))
            of_labels = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
            return -jnp.mean(of_labels), logits

        params = state.params
        if axis_name is not None:  # so that the gradients are this device's own, for `mean`
            params = jax.tree.map(functools.partial(lax.pcast, axis_name=axis_name, to="varying"), params)
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        gradients = gradients if axis_name is None else mean_gradients(gradients, axis_name)
        seen = Seen(state.params, gradients, logits, labels)
        more = {name: _number(name, metric(seen)) for name, metric in (metrics or {}).items()}
        wrong = logits.argmax(-1).astype(labels.dtype) != labels
        found = mean({"loss": value, "top1_error": jnp.mean(wrong), **more})
        updates, opt_state = update(gradients, state.opt_state, state.params, value=found["loss"])
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), found

    return train_step


def _number(name: str, value: Array) -> Array:
    if jnp.shape(value):
        raise ValueError(f"the metric {name} is of shape {jnp.shape(value)}; it must be one number")
    return value
