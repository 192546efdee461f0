"""§6: exact top-1 and top-5 errors."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, UInt8

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


def all_class_names(class_names: Sequence[str], outputs: int) -> tuple[str, ...]:
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
    center_mean: as in `augment.training_views`; it makes a difference to ten views only.
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
    *,
    axis_name: str | None = None,
    metrics: Mapping[str, Callable[[Array, Array], Array]] | None = None,
) -> Callable[[PyTree, tuple], dict[str, Array]]:
    """The step (params, (images, labels)) → sums over the rows whose label is not -1, to be compiled.

    Args:
      logits: from `make_logits`.
      axis_name: as in `make_train_step`; the sums are then those over all devices.
      metrics: more numbers, (logits, labels) → one an image, of which `evaluate` gives the mean.
    """

    def evaluation_step(params: PyTree, batch: tuple) -> dict[str, Array]:
        images, labels = map(jnp.asarray, batch)
        answers = logits(params, images)
        sums = count_errors(answers, labels)
        for name, metric in (metrics or {}).items():
            of_images = metric(answers, jnp.maximum(labels, 0))
            if of_images.shape != labels.shape:
                raise ValueError(f"the metric {name} is of shape {of_images.shape}; it must be one number an image")
            sums[name] = jnp.sum(of_images, where=labels >= 0)
        return sums if axis_name is None else lax.psum(sums, axis_name)

    return evaluation_step


def evaluate(
    step: Callable, params: PyTree, batches: Iterable[tuple], examples: int
) -> tuple[Errors, dict[str, float]]:
    """Errors over `batches`, which must hold just `examples` real rows: none is left out, none counted twice. And the
    means of the step's other metrics.

    step: a `make_evaluation_step`, compiled; it takes batches as they come from `batches`.
    """
    sums: dict[str, float] = {}
    for batch in batches:
        for name, value in jax.device_get(step(params, batch)).items():
            sums[name] = sums.get(name, 0) + value.item()
    found = sums.pop("examples", 0)
    if found != examples:
        raise AssertionError(f"evaluated {found} images of {examples}")
    top1, top5, nll = (sums.pop(name) / examples for name in ("top1", "top5", "nll"))
    return Errors(top1, top5, nll, examples), {name: total / examples for name, total in sums.items()}
