"""§6: exact top-1 and top-5 errors."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from alexnet_jax import parallel
from alexnet_jax.augment import center_view, subtract_mean, ten_views
from alexnet_jax.input_pipeline import Batch


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


def make_evaluation_step(
    apply: Callable,
    mean_image: Float[Array, "size size 3"],
    crop_size: int,
    *,
    views: int = 1,
    center_mean: bool = False,
) -> Callable[[PyTree, Batch], dict[str, Array]]:
    """The step (params, batch) → sums of `count_errors` over all devices.

    views: 1, the centre of each image, or 10, §4.1's ten, over which the softmax outputs are averaged. Raises
    ValueError for another number.
    center_mean: as in `augment.training_views`; the centre is the same with and without.
    """
    if views not in (1, 10):
        raise ValueError(f"{views} views: there are 1 and 10")

    def views_of(images: Array) -> Sequence[Array]:
        if views == 1:
            return [center_view(subtract_mean(images, mean_image), crop_size)]
        if center_mean:
            center = center_view(mean_image[None], crop_size)[0]
            return [subtract_mean(view, center) for view in ten_views(images, crop_size)]
        return list(ten_views(subtract_mean(images, mean_image), crop_size))

    def evaluation_step(params: PyTree, batch: Batch) -> dict[str, Array]:
        answers = [apply({"params": params}, view, train=False) for view in views_of(jnp.asarray(batch.images))]
        logits = answers[0]
        if len(answers) > 1:  # the logarithm of the mean of the softmax outputs
            logits = jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(of_view) for of_view in answers]), axis=0)
            logits = logits - math.log(len(answers))
        return parallel.total(count_errors(logits, jnp.asarray(batch.labels)))

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
