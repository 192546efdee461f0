"""What a trained network looks at: maps of an image, and images that a unit likes best, after four papers.

Each function of images takes them as `Trained.probabilities` does, and a class for each, by default the likeliest. It
gives a map for each: the larger the number at a place, the more this place speaks for the class. A map covers what the
network sees of an image, its centre (`seen`), in places that may be coarser than pixels.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from alexnet_jax.networks.network import Trained
from alexnet_jax.options import InputError
from alexnet_jax.paper.augment import center_view, subtract_mean
from alexnet_jax.paper.model import AlexNet, outputs
from alexnet_jax.paper.table import Conv, named, output_names, step_names, with_layers

Images = UInt8[np.ndarray | Array, "n size size 3"]
Classes = Int[np.ndarray | Array, "n"] | Sequence[int] | None


def seen(network: Trained, images: Images) -> UInt8[np.ndarray, "n crop crop 3"]:
    """The centre of each image, which is what the network sees."""
    return np.asarray(center_view(jnp.asarray(images), network.config.crop_size))


def saliency(network: Trained, images: Images, classes: Classes = None) -> Float[np.ndarray, "n crop crop"]:
    """The gradient of the class's logit with respect to each pixel: the largest magnitude among its three colours.

    Simonyan, Vedaldi, Zisserman 2013, "Deep inside convolutional networks", §3.1.
    """
    views, chosen = _views(network, images), _chosen(network, images, classes)
    return np.asarray(jnp.abs(_gradient_of_views(network.net, network.params, views, chosen)).max(-1))


def occlusion(
    network: Trained, images: Images, classes: Classes = None, *, window: int = 0, stride: int = 0
) -> Float[np.ndarray, "n rows columns"]:
    """How much of the class's probability is lost where a grey square, of the mean image, lies over the view.

    Zeiler, Fergus 2013, "Visualizing and understanding convolutional networks", §4.2.

    Args:
      window: side of the square, in pixels; 0 is a seventh of the view. It lies inside the view everywhere.
      stride: how far its places are apart; 0 is half of it.

    Raises InputError where the square is larger than the view.
    """
    views, chosen = _views(network, images), _chosen(network, images, classes)
    crop = network.config.crop_size
    window = window or max(crop // 7, 1)
    firsts = jnp.arange(0, crop - window + 1, stride or max(window // 2, 1))
    if not len(firsts):
        raise InputError(f"a square of {window} pixels is larger than the view of {crop}")
    whole = _probability(network.net, network.params, views, chosen)
    lost = whole[None] - _covered_probability(network.net, window, network.params, views, chosen, firsts)
    return np.asarray(lost).T.reshape(len(views), len(firsts), len(firsts))


def gradcam(
    network: Trained, images: Images, classes: Classes = None, *, output: str = ""
) -> Float[np.ndarray, "n height width"]:
    """Grad-CAM: the sum of a layer's maps, each weighted by the mean gradient of the class's logit with respect to it;
    what speaks against the class is zero.

    Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization", eq. 1, 2.

    output: whose maps, as "conv5:relu"; by default of the last convolution, before it is pooled. Raises InputError for
    an output that there is not, or that has no places.
    """
    output = output or _last_maps(network)
    views, chosen = _views(network, images), _chosen(network, images, classes)
    maps = network.make_outputs([output])(network.params, jnp.asarray(images))[output]
    if maps.ndim != 4:
        raise InputError(f"{output}: is of a dense layer, which has no maps")
    gradient = _gradient_of_maps(network.net, output, network.params, jnp.zeros_like(maps), views, chosen)
    weights = gradient.mean((1, 2), keepdims=True)
    return np.asarray(jax.nn.relu((weights * maps).sum(-1)))


def activation_maximization(
    network: Trained, output: str, unit: int, *, contrast: float = 32.0, steps: int = 100, seed: int = 0
) -> UInt8[np.ndarray, "crop crop 3"]:
    """The image that a unit likes best, among those that differ from the mean image by so much: ascent along the
    gradient of its activation, on a sphere, from noise on.

    Erhan, Bengio, Courville, Vincent 2009, "Visualizing higher-layer features of a deep network", §3.1. Of a class it
    is a class model of Simonyan et al. 2013, §2.

    Args:
      output, unit: as "fc8" and a class's number; of a convolution, a map's number, whose central place is taken. A
        layer's own output, before its ReLU, has a gradient from everywhere.
      contrast: grey levels by which the pixels that reach the unit differ from the mean (root mean square).

    Raises InputError for an output or a unit that there is not, or that noise does not reach.
    """
    known = output_names(network.net.layers)
    if output not in known:
        raise InputError(f"{network.source}: its network has no output {output}; there are {', '.join(known)}")

    crop = network.config.crop_size
    noise = jax.random.normal(jax.random.key(seed), (crop, crop, 3), jnp.float32)
    units = jax.eval_shape(functools.partial(_activations, network.net, output), network.params, noise).shape[0]
    if not 0 <= unit < units:
        raise InputError(f"{output}: has no unit {unit}; there are {units}, from 0 on")
    view, reached = _ascent(network.net, output, network.params, noise, unit, contrast, steps)
    if not reached:
        raise InputError(f"{output}: noise does not reach its unit {unit}; take an output before a ReLU")
    mean = center_view(jnp.asarray(network.mean_image, jnp.float32)[None], crop)[0]
    return np.asarray(jnp.clip(jnp.round(mean + view), 0, 255), np.uint8)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ascent(
    net: AlexNet, output: str, params: PyTree, noise: Array, unit: Any, contrast: Any, steps: Any
) -> tuple[Array, Array]:
    """The view at the end, and how many numbers of the noise reach the unit."""
    gradient = jax.grad(lambda view: _activations(net, output, params, view)[unit])
    reached = jnp.sum(gradient(noise) != 0)
    radius = contrast * jnp.sqrt(reached.astype(noise.dtype))

    def step(_: Array, view: Array) -> Array:
        return radius * _unit(_unit(view) + 0.2 * _unit(gradient(view)))

    return jax.lax.fori_loop(0, steps, step, noise), reached


def _activations(net: AlexNet, output: str, params: PyTree, view: Array) -> Float[Array, "units"]:
    """Of an output's units, or of those at the central place of its maps."""
    answer = outputs(net, {"params": params}, view[None], [output])[output][0]
    return answer[tuple(length // 2 for length in answer.shape[:-1])]


METHODS: dict[str, Callable[..., Float[np.ndarray, "n height width"]]] = {
    "saliency": saliency,
    "occlusion": occlusion,
    "gradcam": gradcam,
}


def _views(network: Trained, images: Images) -> Float[Array, "n crop crop 3"]:
    mean_image = jnp.asarray(network.mean_image, jnp.float32)
    return center_view(subtract_mean(jnp.asarray(images), mean_image), network.config.crop_size)


def _chosen(network: Trained, images: Images, classes: Classes) -> Int[Array, "n"]:
    return network.probabilities(images).argmax(-1) if classes is None else jnp.asarray(classes, jnp.int32)


def _score(net: AlexNet, params: PyTree, views: Array, chosen: Array) -> Float[Array, ""]:
    """The sum of the images' logits of their classes; an image's gradient is then its own."""
    logits = jnp.asarray(net.apply({"params": params}, views, train=False))
    return jnp.take_along_axis(logits, chosen[:, None], 1).sum()


@functools.partial(jax.jit, static_argnums=0)
def _probability(net: AlexNet, params: PyTree, views: Array, chosen: Array) -> Float[Array, "n"]:
    probabilities = jax.nn.softmax(jnp.asarray(net.apply({"params": params}, views, train=False)))
    return jnp.take_along_axis(probabilities, chosen[:, None], 1)[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _covered_probability(
    net: AlexNet, window: int, params: PyTree, views: Array, chosen: Array, firsts: Array
) -> Float[Array, "places n"]:
    """With a square over each place, row by row. firsts: the first pixels of the places of a row, and of a column."""
    square = jnp.zeros((len(views), window, window, 3), views.dtype)

    def of_place(corner: Array) -> Array:
        return _probability(net, params, jax.lax.dynamic_update_slice(views, square, (0, *corner, 0)), chosen)

    return jax.lax.map(of_place, jnp.stack(jnp.meshgrid(firsts, firsts, indexing="ij"), -1).reshape(-1, 2))


@functools.partial(jax.jit, static_argnums=0)
def _gradient_of_views(net: AlexNet, params: PyTree, views: Array, chosen: Array) -> Float[Array, "n crop crop 3"]:
    return jax.grad(_score, argnums=2)(net, params, views, chosen)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradient_of_maps(
    net: AlexNet, output: str, params: PyTree, added: Array, views: Array, chosen: Array
) -> Float[Array, "n height width channels"]:
    return jax.grad(lambda of: _score(_adding(net, output, of), params, views, chosen))(added)


def _last_maps(network: Trained) -> str:
    """Of the last convolution, what is not yet pooled: conv5:relu in the paper's network."""
    convolutions = [(name, layer) for name, layer in named(network.net.layers).items() if isinstance(layer, Conv)]
    if not convolutions:
        raise InputError(f"{network.source}: its network has no convolution, and so no maps")
    name, layer = convolutions[-1]
    return [name, *itertools.takewhile(lambda of: "pool" not in of, step_names(name, layer))][-1]


def _adding(net: AlexNet, output: str, added: Array) -> AlexNet:
    """The network with something added to one of its outputs: the gradient with respect to it is the output's."""
    name = output.partition(":")[0]
    layer = named(net.layers)[name]
    place = [name, *step_names(name, layer)].index(output)
    then = (*layer.then[:place], lambda x: x + added, *layer.then[place:])
    return net.clone(layers=with_layers(net.layers, **{name: {"then": then}}))


def _unit(x: Array) -> Array:
    """Of length 1, or zero."""
    return x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)
