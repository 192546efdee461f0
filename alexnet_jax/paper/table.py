"""§3: a network as a table: the kinds of layers, the steps after them, and what may be changed in a table."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from alexnet_jax.paper.layers import STEPS, add_bias, conv2d, dense, locally_connected


@dataclasses.dataclass(frozen=True)
class Step:
    """What follows a layer: a function of its output with all its keywords. Two are equal where both agree."""

    function: Callable
    keywords: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, step: "Callable | Step") -> "Step":
        """From a function, or `functools.partial` of one. Raises ValueError where it is not told apart by keywords, one
        is missing, or there is none of that name.
        """
        if isinstance(step, Step):
            return step
        function, given = step, {}
        if isinstance(step, functools.partial):
            function, given = step.func, step.keywords
            if step.args:
                raise ValueError(f"{step}: arguments of a step are given by name")
        known, takes_any = _keywords_of(function)
        others = {name: given[name] for name in sorted(set(given) - set(known))}
        keywords = {name: given.get(name, default) for name, default in known.items()} | others
        step = cls(function, tuple(keywords.items()))
        if others and not takes_any:
            raise ValueError(f"the step {step.short_name} has no {next(iter(others))}")
        for name, value in keywords.items():
            if value is inspect.Parameter.empty:
                raise ValueError(f"the step {step.short_name} needs {name}=…")
        return step

    @property
    def name(self) -> str:
        """Its public name, or the import path of a function that has none. A tuned form has that of its formula."""
        function = getattr(self.function, "formula", self.function)
        for name, public in STEPS.items():
            if public is function:
                return name
        # An object that is called has no name; "<" marks that, as in "<lambda>".
        return f"{function.__module__}.{getattr(function, '__qualname__', f'<{type(function).__name__}>')}"

    @property
    def short_name(self) -> str:
        """The last part of `name`, as in "conv1:relu"."""
        return self.name.rpartition(".")[2]

    def replaced(self, **keywords: Any) -> "Step":
        """With other values of these keywords."""
        return Step.of(functools.partial(self.function, **{**dict(self.keywords), **keywords}))

    @property
    def is_random(self) -> bool:
        """Whether it takes keys."""
        return hasattr(self.function, "takes_key")

    def __call__(self, x: Array, keys: Array | None = None) -> Array:
        """Of a layer's output. keys: one an image, for what is random in training; else None."""
        if self.is_random:
            return self.function(x, keys, **dict(self.keywords))
        return self.function(x, **dict(self.keywords))


def _keywords_of(function: Callable) -> tuple[dict[str, Any], bool]:
    """Of a step: its keywords with their defaults, and whether it takes any others as well."""
    try:
        _, *parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a function in C
        return {}, True
    if hasattr(function, "takes_key"):
        parameters = parameters[1:]
    elif any(of.name == "key" for of in parameters):
        raise ValueError(f"{function}: has a parameter 'key'; mark it with layers.takes_key")
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    kinds = {of.kind for of in parameters}
    return {of.name: of.default for of in parameters if of.kind not in various}, various[1] in kinds


@dataclasses.dataclass(frozen=True)
class Layer:
    """What the kinds of layers have in common. std: of the initial weights, N(0, std²). bias: initial value of each.

    Given functions, or `functools.partial` of them, `then` holds `Step`s. `operation` and `add_bias` compute the layer;
    they are not written down, and `device.tuned` puts faster ones in their places. The first number of an
    `input_shape`, that of the images, may be a symbol of `jax.export`.
    """

    features: int

    def __post_init__(self):
        object.__setattr__(self, "then", tuple(map(Step.of, getattr(self, "then"))))  # noqa: B009


@dataclasses.dataclass(frozen=True)
class Conv(Layer):
    """A convolutional layer: `features` kernels of `window` × `window`, then the steps of `then` in order.

    padding: zeros on both sides, or (top and left, bottom and right). groups: as in `layers.conv2d`.
    """

    window: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    groups: int = 1
    std: float = 0.01
    bias: float = 0.0
    then: tuple[Any, ...] = ()
    operation: Callable = dataclasses.field(default=conv2d, repr=False)
    add_bias: Callable = dataclasses.field(default=add_bias, repr=False)

    def kernel_shape(self, input_shape: tuple[Any, ...]) -> tuple[int, ...]:
        """(window, window, input channels / groups, features), for an input (batch, height, width, channels)."""
        return (self.window, self.window, input_shape[-1] // self.groups, self.features)

    def bias_shape(self, input_shape: tuple[Any, ...]) -> tuple[int, ...]:
        """(features,)."""
        return (self.features,)

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The layer without its biases and the steps of `then`."""
        padding = (self.padding, self.padding) if isinstance(self.padding, int) else self.padding
        return self.operation(x, kernel, stride=self.stride, padding=padding, groups=self.groups)


@dataclasses.dataclass(frozen=True)
class Local(Layer):
    """A locally connected layer: as `Conv`, but each place has weights and biases of its own. Not in the paper's
    network; in those of 2012 for CIFAR-10.
    """

    window: int
    padding: int = 0
    std: float = 0.01
    bias: float = 0.0
    then: tuple[Any, ...] = ()
    operation: Callable = dataclasses.field(default=locally_connected, repr=False)
    add_bias: Callable = dataclasses.field(default=add_bias, repr=False)

    def kernel_shape(self, input_shape: tuple[Any, ...]) -> tuple[int, ...]:
        """(height, width, window, window, input channels, features), for an input (batch, height, width, channels).

        Raises ValueError where the window does not fit.
        """
        places = [length + 2 * self.padding - self.window + 1 for length in input_shape[1:3]]
        if min(places) < 1:
            raise ValueError(f"its window of {self.window} does not fit")
        return (*places, self.window, self.window, input_shape[-1], self.features)

    def bias_shape(self, input_shape: tuple[Any, ...]) -> tuple[int, ...]:
        """(height, width, features)."""
        return (*self.kernel_shape(input_shape)[:2], self.features)

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The layer without its biases and the steps of `then`."""
        return self.operation(x, kernel, padding=self.padding)


@dataclasses.dataclass(frozen=True)
class Dense(Layer):
    """A fully connected layer on the flattened input (height, width, channel order), then the steps of `then`."""

    std: float = 0.01
    bias: float = 0.0
    then: tuple[Any, ...] = ()
    operation: Callable = dataclasses.field(default=dense, repr=False)
    add_bias: Callable = dataclasses.field(default=add_bias, repr=False)

    def kernel_shape(self, input_shape: tuple[Any, ...]) -> tuple[int, ...]:
        """(height × width × channels, features), for an input (batch, height, width, channels) or (batch, channels)."""
        return (math.prod(input_shape[1:]), self.features)

    def bias_shape(self, input_shape: tuple[Any, ...]) -> tuple[int, ...]:
        """(features,)."""
        return (self.features,)

    def __call__(self, x: Array, kernel: Array) -> Array:
        """The layer without its biases and the steps of `then`."""
        return self.operation(x.reshape(x.shape[0], -1), kernel)  # not len: the number of images may be a symbol


Layers = tuple[Conv | Local | Dense, ...]
NAMES = {Conv: "conv", Local: "local", Dense: "fc"}


def named(layers: Layers) -> dict[str, Conv | Local | Dense]:
    """The layers under the field's names: conv1 … conv5, fc6, fc7, fc8; and local3, where one is locally connected."""
    return {f"{NAMES[type(layer)]}{number}": layer for number, layer in enumerate(layers, start=1)}


def step_names(name: str, layer: Conv | Local | Dense) -> list[str]:
    """Of the outputs of a layer's steps: "conv1:relu", "conv1:lrn", "conv1:pool"; a second one is "conv1:relu2"."""
    short_names = [Step.of(step).short_name for step in layer.then]
    before = [short_names[:number].count(of) for number, of in enumerate(short_names)]
    return [f"{name}:{of}{same + 1 if same else ''}" for of, same in zip(short_names, before, strict=True)]


def output_names(layers: Layers) -> list[str]:
    """Of all outputs, in order: a layer's own, with its biases, and then those of its steps."""
    return [output for name, layer in named(layers).items() for output in (name, *step_names(name, layer))]


def check(layers: Layers) -> None:
    """Raises ValueError, naming the layer, where a table cannot be that of a network, whatever the image."""
    channels: int | None = 3  # None once a dense layer has flattened them
    for name, layer in named(layers).items():
        for field in ("features", "window", "stride", "groups"):
            if getattr(layer, field, 1) < 1:
                raise ValueError(f"{name}: {field} is {getattr(layer, field)}; it must be at least 1")
        if not isinstance(layer, Dense) and channels is None:
            raise ValueError(f"{name}: it cannot follow a dense layer, which has no places")
        if isinstance(layer, Conv) and channels is not None:
            for what, number in (("input channels", channels), ("features", layer.features)):
                if number % layer.groups:
                    raise ValueError(f"{name}: {layer.groups} groups do not divide its {number} {what}")
        channels = None if isinstance(layer, Dense) else layer.features


def with_layers(layers: Layers, **changes: Mapping[str, Any]) -> Layers:
    """The table with other fields in the named layers: `with_layers(PAPER, conv3={"std": 0.03})`."""
    table = named(layers)
    for name, fields in changes.items():
        if name not in table:
            raise ValueError(f"{name}: no layer of this table; there are {', '.join(table)}")
        table[name] = dataclasses.replace(table[name], **fields)
    return tuple(table.values())


def with_column(layers: Layers, **columns: Sequence[Any]) -> Layers:
    """The table with other values of a field, one a layer: `with_column(PAPER, std=(0.01, 0.02, …))`."""
    for field, values in columns.items():
        layers = tuple(
            dataclasses.replace(layer, **{field: value}) for layer, value in zip(layers, values, strict=True)
        )
    return layers


def with_steps(layers: Layers, steps: Mapping[Callable, Callable | None]) -> Layers:
    """The table with other steps after its layers, or (None) without: `with_steps(PAPER, {relu: jnp.tanh})`.

    Raises ValueError for a step that no layer has.
    """
    exchanged = {Step.of(before): after for before, after in steps.items()}
    missing = set(exchanged) - {step for layer in layers for step in layer.then}
    if missing:
        raise ValueError(f"no layer of this table is followed by {missing.pop()}")
    thens = [tuple(exchanged.get(step, step) for step in layer.then) for layer in layers]
    return with_column(layers, then=[tuple(step for step in then if step) for then in thens])


def with_classes(layers: Layers, classes: int) -> Layers:
    """The table with `classes` outputs in its last layer."""
    return (*layers[:-1], dataclasses.replace(layers[-1], features=classes))
