"""Networks of which each device holds columns only, as Krizhevsky divided his: in two (2012, §3.2), and the dense
layers alone ("One weird trick for parallelizing convolutional neural networks", 2014, arXiv:1404.5997).

From outside the arrays are whole, and lie in parts. A table's operations are exchanged, as `tuned` does: with shapes,
initial values and written form alone; for steps compiled by `jax.jit` over the mesh. What is not written down here of
an exchange, XLA finds by itself: so any step, optimizer or metric sees whole arrays, and has the numbers of one device.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from alexnet_jax.device.parallel import AXIS
from alexnet_jax.options import InputError
from alexnet_jax.paper import layers as formulas
from alexnet_jax.paper.normalization import local_response_norm, spatial_response_norm
from alexnet_jax.paper.table import Conv, Dense, Layers, Local, named

WHOLE, BY_IMAGES = PartitionSpec(), PartitionSpec(AXIS)
# The steps that make each feature of the same feature alone.
_BY_FEATURE = {of for name, of in formulas.STEPS.items() if name not in ("lrn", "dropout")}
assert spatial_response_norm in _BY_FEATURE


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """The devices in a row."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def by_features(rank: int) -> PartitionSpec:
    """Of an array with so many axes: the last one is divided."""
    return PartitionSpec(*[None] * (rank - 1), AXIS)


def divided_layers(layers: Layers, devices: int, *, columns: bool) -> dict[str, int]:
    """The layers of which each device holds some features, with the number of all: with `columns` all layers, else the
    dense ones. The last stays whole where the devices do not divide its classes.

    Raises InputError where they do not divide those of another, or the table is none for two columns.
    """
    flag, table = ("--columns_parallel", "--dense_parallel")[not columns], named(layers)
    last = [*table][-1]
    found = {}
    for name, layer in table.items():
        groups = layer.groups if isinstance(layer, Conv) else 1
        if columns and (isinstance(layer, Local) or groups > 2):
            what = "is locally connected" if isinstance(layer, Local) else f"has {groups} groups"
            raise InputError(f"{flag}: {name} {what}; convolutions of 1 or 2 groups can be in two columns")
        if not columns and not isinstance(layer, Dense):
            continue
        if layer.features % devices == 0:
            found[name] = layer.features
        elif name != last:
            raise InputError(f"{flag}: the {devices} devices do not divide the {layer.features} features of {name}")
    return found


def sharding_of(divided: dict[str, int], mesh: Mesh) -> Callable[[Sequence[Any], Any], NamedSharding]:
    """(path, array) → how it lies: a parameter of a divided layer, and whatever an optimizer keeps under that name, by
    features; all else whole on each device.
    """

    def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
        keys: list[Any] = [getattr(key, "key", None) for key in path[-2:]]
        features, shape = divided.get(keys[0]) if len(keys) == 2 else None, np.shape(leaf)
        is_divided = features is not None and keys[1] in ("kernel", "bias") and shape[-1:] == (features,)
        return NamedSharding(mesh, by_features(len(shape)) if is_divided else WHOLE)

    return sharding


def dense_parallel(layers: Layers, mesh: Mesh) -> Layers:
    """The table as 2014 ran it: each device has its images up to the first dense layer, and from there on its columns
    of all images; logits go back to their images.

    This is scheme (a) of the paper's three: all activations are gathered at once. (b) and (c) gather those of one
    device, or a part of each, at a time, to hide the exchange behind the products, and to save memory. The numbers are
    the same. Today a batch of 1,024 takes 38 MB, a gathering ring uses all links at once, and what can be hidden is
    left to XLA.
    """
    divided = divided_layers(layers, mesh.size, columns=False)
    exchange = _Exchange(mesh)
    found, gathered = [], 0  # the axis along which a dense layer finds its input divided
    for name, layer in named(layers).items():
        if name not in divided:  # XLA brings features back to their images, where they are not there
            found.append(exchange.by_images(layer))
            gathered = 0
        else:
            found.append(exchange.by_columns(layer, exchange.dense(layer.operation, gathered)))
            gathered = 1
    return (*found[:-1], _ending(found[-1], lambda x: exchange.lies(x, BY_IMAGES)))


def columns_parallel(layers: Layers, mesh: Mesh) -> Layers:
    """§3.2: the table as two GPUs ran it in 2012. Both see the whole batch; each has half of the kernels of each layer.

    A layer that reads the maps of both gathers them first: the dense ones, and convolutions without groups.
    """
    divided = divided_layers(layers, mesh.size, columns=True)
    exchange = _Exchange(mesh)
    found: list[Any] = []
    before: int | None = None  # features of the layer before
    for name, layer in named(layers).items():
        if name not in divided:
            found.append(exchange.whole(layer))
        elif isinstance(layer, Conv):
            found.append(exchange.by_columns(layer, exchange.convolution(layer, gathered=before is not None)))
        else:
            found.append(exchange.by_columns(layer, exchange.dense_of_maps(layer.operation, before)))
        before = layer.features
    return (*found[:-1], _ending(found[-1], lambda x: exchange.lies(x, WHOLE)))


class _Exchange:
    """Operations over a mesh: what lies where, and what each device does with its part."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh

    def lies(self, x: Array, spec: PartitionSpec) -> Array:
        """The same array, lying so; the exchange that this takes is XLA's to choose."""
        return lax.with_sharding_constraint(x, NamedSharding(self._mesh, spec))

    def on_each(self, function: Callable, specs: Sequence[PartitionSpec], to: PartitionSpec) -> Callable:
        """On each device, of its parts. Gradients of what is whole on each are summed over all."""
        return jax.shard_map(function, mesh=self._mesh, in_specs=tuple(specs), out_specs=to, check_vma=False)

    def by_images(self, layer: Conv | Local | Dense) -> Conv | Local | Dense:
        """Each device has its images, and the whole layer."""

        def of(function: Callable, spec: PartitionSpec) -> Callable:
            @_as(function)
            def mapped(x: Array, *others: Any, **keywords: Any) -> Array:
                given = [other for other in others if other is not None]  # at test there are no keys

                def own(x: Array, *given: Array) -> Array:
                    return function(x, *(given or others), **keywords)

                return self.on_each(own, [BY_IMAGES, *[spec] * len(given)], BY_IMAGES)(x, *given)

            return mapped

        keys = BY_IMAGES  # one an image
        return _exchanged(layer, of(layer.operation, WHOLE), of(layer.add_bias, WHOLE), lambda step: of(step, keys))

    def by_columns(self, layer: Conv | Local | Dense, operation: Callable) -> Conv | Local | Dense:
        """Each device has its features of all images. operation: the layer's own, so divided."""

        @_as(layer.add_bias)
        def add_bias(x: Array, bias: Array) -> Array:
            parts = by_features(x.ndim)
            return self.on_each(layer.add_bias, (parts, by_features(1)), parts)(x, bias)

        return _exchanged(layer, operation, add_bias, self._step)

    def _step(self, function: Callable) -> Callable:
        formula, devices = _formula(function), self._mesh.size

        @_as(function)
        def mapped(x: Array, *keys: Any, **keywords: Any) -> Array:
            parts = by_features(x.ndim)
            of_groups = formula is local_response_norm and keywords["groups"] % devices == 0
            if of_groups:
                keywords["groups"] //= devices
            if of_groups or formula in _BY_FEATURE:
                return self.on_each(functools.partial(function, **keywords), [parts], parts)(x)
            # Of any other step XLA computes its part. All keys are on each device, which draws for its own features.
            keys = tuple(key if key is None else self.lies(key, WHOLE) for key in keys)
            return self.lies(formula(self.lies(x, parts), *keys, **keywords), parts)

        return mapped

    def whole(self, layer: Conv | Local | Dense) -> Conv | Local | Dense:
        """Each device does the same."""

        @_as(layer.operation)
        def operation(x: Array, kernel: Array) -> Array:
            return formulas.dense(self.lies(x, WHOLE), kernel)

        return _exchanged(layer, operation, formulas.add_bias, _formula)

    def dense(self, product: Callable, gathered: int) -> Callable:
        """Of inputs that lie divided along the axis `gathered`: 0, images, or 1, features."""

        @_as(product)
        def operation(x: Array, kernel: Array) -> Array:
            def own(x: Array, kernel: Array) -> Array:
                return product(lax.all_gather(x, AXIS, axis=gathered, tiled=True), kernel)

            specs = (BY_IMAGES, by_features(2))[gathered], by_features(2)
            return self.on_each(own, specs, by_features(2))(x, kernel)

        return operation

    def dense_of_maps(self, product: Callable, channels: int | None) -> Callable:
        """Of maps, flattened, whose channels lie divided; or of images, whole, where there are no maps before."""

        @_as(product)
        def operation(x: Array, kernel: Array) -> Array:
            def own(x: Array, kernel: Array) -> Array:
                maps = lax.all_gather(x, AXIS, axis=2, tiled=True) if channels else x
                return product(maps.reshape(len(maps), -1), kernel)

            places = x.reshape(len(x), -1, channels or 1)
            specs = by_features(3) if channels else WHOLE, by_features(2)
            return self.on_each(own, specs, by_features(2))(places, kernel)

        return operation

    def convolution(self, layer: Conv, gathered: bool) -> Callable:
        """gathered: whether the channels of the input lie divided, where the layer reads all."""

        @_as(layer.operation)
        def operation(x: Array, kernel: Array, *, groups: int, **keywords: Any) -> Array:
            def own(x: Array, kernel: Array) -> Array:
                if groups == 1 and gathered:
                    x = lax.all_gather(x, AXIS, axis=3, tiled=True)
                return layer.operation(x, kernel, groups=1, **keywords)

            specs = by_features(4) if groups == 2 or gathered else WHOLE, by_features(4)
            return self.on_each(own, specs, by_features(4))(x, kernel)

        return operation


def _formula(function: Callable) -> Callable:
    return getattr(function, "formula", function)


def _as(function: Callable) -> Callable:
    """Marks another way to compute it: written down, it has the formula's name."""

    def mark(form: Callable) -> Callable:
        form = functools.wraps(function)(form)
        form.formula = _formula(function)  # type: ignore[attr-defined]
        return form

    return mark


def _exchanged(layer: Any, operation: Callable, add_bias: Callable, step: Callable) -> Any:
    then = tuple(dataclasses.replace(of, function=step(of.function)) for of in layer.then)
    return dataclasses.replace(layer, operation=operation, add_bias=add_bias, then=then)


def _ending(layer: Any, end: Callable) -> Any:
    """The layer with `end` after its last function."""

    def ended(function: Callable) -> Callable:
        return _as(function)(lambda *arguments, **keywords: end(function(*arguments, **keywords)))

    if not layer.then:
        return dataclasses.replace(layer, add_bias=ended(layer.add_bias))
    *others, last = layer.then
    return dataclasses.replace(layer, then=(*others, dataclasses.replace(last, function=ended(last.function))))
