"""§6: exact top-1 and top-5 errors."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from alexnet_jax.data.input_pipeline import Batch
from alexnet_jax.device import parallel
from alexnet_jax.paper.augment import center_view, subtract_mean, ten_views


class Errors(NamedTuple):
    """top1_error, top5_error: fractions. nll: mean negative log-likelihood, nats. examples: how many they are of."""

    top1_error: float
    top5_error: float
    nll: float
    examples: int


def label_ranks(logits: Float[Array, "n classes"], labels: Int[Array, "n"]) -> Int[Array, "n"]:
    """How many classes are ranked before the label: 0 where it is the network's first answer.

    Of equal logits the first counts as ranked higher, as in argmax. Not-a-number ranks before everything.
    """
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1])[None] < labels[:, None]
    before = ~(logits <= of_label) | ((logits == of_label) & earlier)
    return before.sum(axis=1)


def likeliest(
    probabilities: Float[np.ndarray, "outputs"], class_names: Sequence[str], top: int = 5
) -> list[tuple[str, float]]:
    """(class, probability) of the likeliest classes, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(class_names[index], float(probabilities[index])) for index in order]


def output_names(class_names: Sequence[str], outputs: int) -> tuple[str, ...]:
    """The names of the classes, and numbers for outputs beyond them."""
    return (*class_names, *(f"output {number}" for number in range(len(class_names), outputs)))


def count_errors(logits: Float[Array, "n classes"], labels: Int[Array, "n"]) -> dict[str, Array]:
    """Sums over the rows whose label is not -1: wrong at top-1 and top-5, nll, and their number."""
    real = labels >= 0
    labels = jnp.maximum(labels, 0)
    ranks = label_ranks(logits, labels)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return {
        "top1": jnp.sum(real & (ranks >= 1)),
        "top5": jnp.sum(real & (ranks >= 5)),
        "nll": jnp.sum(jnp.where(real, nll, 0)),
        "examples": jnp.sum(real),
    }


def make_logits(
    apply: Callable,
    mean_image: Float[Array, "size size 3"],
    crop_size: int,
    *,
    views: int = 1,
    center_mean: bool = False,
) -> Callable[[PyTree, UInt8[Array, "n size size 3"]], Float[Array, "n classes"]]:
    """The function (params, images) → logits; of ten views the logarithm of their averaged softmax outputs.

    views: 1, the centre of each image, or 10, §4.1's ten. Raises ValueError for another number.
    center_mean: as in `augment.training_views`; the centre is the same with and without.
    """
    if views not in (1, 10):
        raise ValueError(f"{views} views: there are 1 and 10")

    def of_view(params: PyTree, view: Array) -> Array:
        return jnp.asarray(apply({"params": params}, view, train=False))

    def logits(params: PyTree, images: Array) -> Array:
        if views == 1:
            return of_view(params, center_view(subtract_mean(images, mean_image), crop_size))
        means = ten_views(mean_image[None], crop_size)[:, 0]
        if center_mean:
            means = jnp.broadcast_to(center_view(mean_image[None], crop_size), means.shape)
        answers = lax.map(
            lambda view_and_mean: jax.nn.log_softmax(of_view(params, subtract_mean(*view_and_mean))),
            (ten_views(images, crop_size), means),
        )
        return jax.nn.logsumexp(answers, axis=0) - math.log(views)

    return logits


def make_evaluation_step(
    logits: Callable[[PyTree, UInt8[Array, "n size size 3"]], Float[Array, "n classes"]],
) -> Callable[[PyTree, Batch], dict[str, Array]]:
    """The step (params, batch) → sums of `count_errors` over all devices. logits: from `make_logits`."""

    def evaluation_step(params: PyTree, batch: Batch) -> dict[str, Array]:
        return parallel.total(count_errors(logits(params, jnp.asarray(batch.images)), jnp.asarray(batch.labels)))

    return evaluation_step


def evaluate(step: Callable, params: PyTree, batches: Iterable[Batch], examples: int) -> Errors:
    """Errors over `batches`, which must hold just `examples` real rows: none is left out, none counted twice.

    step: a `make_evaluation_step`, mapped over the devices; it takes batches as they come from `batches`.
    """
    sums = {"top1": 0, "top5": 0, "nll": 0.0, "examples": 0}
    for batch in batches:
        for name, value in jax.device_get(step(params, batch)).items():
            sums[name] += value.item()
    if sums["examples"] != examples:
        raise AssertionError(f"evaluated {sums['examples']} images of {examples}")
    return Errors(sums["top1"] / examples, sums["top5"] / examples, sums["nll"] / examples, examples)
