"""A trained network as an ONNX model, for the runtimes of other languages and devices.

The graph is written from the table: for each layer and step an operator (Conv, Relu, LRN, MaxPool, Gemm), named as the
output that it computes. It begins with what `Trained.probabilities` does with images, and so takes the same ones.
Between them it is NCHW, since ONNX normalises across axis 1.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.files import versions
from alexnet_jax.networks.network import Trained
from alexnet_jax.options import InputError
from alexnet_jax.paper.layers import overhang
from alexnet_jax.paper.model import outputs
from alexnet_jax.paper.table import Conv, Dense, Local, Step, named, output_names, step_names
from alexnet_jax.paper.written import to_json

OPSET = 20  # of December 2023, the first one with Gelu


class Node(NamedTuple):
    """An operator of the graph. It is named as its output, or, where it has several, as these have in common."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


class Graph:
    """Nodes, in their order, and constants, by name."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, operator: str, name: str, *inputs: str, into: tuple[str, ...] = (), **attributes: Any) -> str:
        """Adds a node, and returns its name. into: the names of its outputs, where it has several."""
        self.nodes.append(Node(operator, name, inputs, into or (name,), attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        """Adds a constant, in float32 where it is none of integers, and returns its name."""
        values = np.asarray(values)
        self.constants[name] = np.ascontiguousarray(values, np.float32 if values.dtype.kind == "f" else np.int64)
        return name


def to_onnx(network: Trained) -> bytes:
    """The content of an .onnx file: the network with all its parameters, in float32, of opset 20.

    Its input is "images", uint8 (n, size, size, 3) for any n, as `Trained.probabilities` takes them. Its outputs are
    "probabilities" (n, classes), and the logits, which are named as in `features` ("fc8"). Dropout is as at test. The
    metadata are class_names and layers (the table), as JSON, preprocessing (of files), versions and commit.

    Raises InputError where the package `onnx` is missing, and, naming layer and step, for what has no operator.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("an .onnx is written by the package onnx: pip install 'alexnet_jax[onnx]'") from None
    from onnx import TensorProto, helper, numpy_helper

    graph, logits = graph_of(network)
    rule, software = network.described_images(), versions()
    images: list[Any] = ["n", network.size, network.size, 3]
    opset = [helper.make_opsetid("", OPSET)]
    answers: list[Any] = ["n", len(network.class_names)]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(of.operator, of.inputs, of.outputs, of.name, **of.attributes) for of in graph.nodes],
            "alexnet",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, images, rule)],
            [helper.make_tensor_value_info(of, TensorProto.FLOAT, answers) for of in ("probabilities", logits)],
            [numpy_helper.from_array(values, name) for name, values in graph.constants.items()],
        ),
        producer_name="alexnet_jax",
        producer_version=software["versions"]["alexnet_jax"],
        opset_imports=opset,
        ir_version=helper.find_min_ir_version_for(opset),  # the latest one is refused by older runtimes
    )
    about = {"class_names": network.class_names, "layers": to_json(network.net.layers), **software}
    texts = {name: json.dumps(of, ensure_ascii=False) for name, of in about.items()}
    helper.set_model_props(model, {**texts, "preprocessing": rule})
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).SerializeToString()


def graph_of(network: Trained) -> tuple[Graph, str]:
    """The graph from "images" to "probabilities", and the name of its logits. Raises InputError, as `to_onnx`."""
    graph, shapes = Graph(), _shapes(network)
    x = _preprocessing(graph, network)
    shape: tuple[int, ...] = (1, network.config.crop_size, network.config.crop_size, 3)  # of x, channels last
    for layer_name, layer in named(network.net.layers).items():
        if isinstance(layer, Local):
            raise InputError(f"{network.source}: {layer_name}: ONNX has no operator for a locally connected layer")
        kernel, bias = (np.asarray(network.params[layer_name][part]) for part in ("kernel", "bias"))
        x = _layer(graph, layer_name, x, shape, layer, kernel, bias)
        shape = shapes[layer_name]
        for name, step in zip(step_names(layer_name, layer), map(Step.of, layer.then), strict=True):
            if step.name not in STEPS or (step.name == "lrn" and len(shape) == 2):
                raise InputError(f"{network.source}: {name}: ONNX has no operator for the step {step.name} there")
            x = STEPS[step.name](graph, name, x, shape, **dict(step.keywords))
            shape = shapes[name]
    graph.add("Softmax", "probabilities", x, axis=1)
    return graph, x


def _preprocessing(graph: Graph, network: Trained) -> str:
    """The centre of the images, in float32, channels first, minus the mean image's."""
    first = (network.size - network.config.crop_size) // 2
    last = first + network.config.crop_size
    mean = network.mean_image[first:last, first:last].transpose(2, 0, 1)
    x = graph.add(
        "Slice", "images:center", "images",
        graph.constant("images:center/first", [first, first]),
        graph.constant("images:center/last", [last, last]),
        graph.constant("images:center/axes", [1, 2]),
    )  # fmt: skip
    x = graph.add("Cast", "images:float", x, to=1)  # float32, in ONNX's numbers of types
    x = graph.add("Transpose", "images:channels first", x, perm=(0, 3, 1, 2))
    return graph.add("Sub", "images:mean subtracted", x, graph.constant("mean_image", mean[None]))


def _layer(
    graph: Graph, name: str, x: str, shape: tuple[int, ...], layer: Conv | Dense, kernel: np.ndarray, bias: np.ndarray
) -> str:
    """A layer with its biases."""
    attributes: dict[str, Any] = {}
    if isinstance(layer, Conv):
        before, after = (layer.padding, layer.padding) if isinstance(layer.padding, int) else layer.padding
        attributes |= {"kernel_shape": (layer.window,) * 2, "strides": (layer.stride,) * 2, "group": layer.groups}
        attributes |= {"pads": (before, before, after, after)}  # top, left, bottom, right
        kernel = kernel.transpose(3, 2, 0, 1)
    elif len(shape) == 4:  # what is flattened has its channels first there, and last here
        x = graph.add("Flatten", f"{name}:flat", x)
        kernel = kernel.reshape(*shape[1:], -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    parameters = [graph.constant(f"{name}/{part}", of) for part, of in (("kernel", kernel), ("bias", bias))]
    return graph.add("Conv" if isinstance(layer, Conv) else "Gemm", name, x, *parameters, **attributes)


def _shapes(network: Trained) -> dict[str, tuple[int, ...]]:
    """Of each output, for one image."""
    image = jax.ShapeDtypeStruct((1, network.config.crop_size, network.config.crop_size, 3), jnp.float32)
    names = output_names(network.net.layers)
    found = jax.eval_shape(lambda params, x: outputs(network.net, {"params": params}, x, names), network.params, image)
    return {name: of.shape for name, of in found.items()}


def _operator(operator: str, **attributes: str) -> Callable:
    """A step that is one operator. attributes: its names for the step's keywords."""

    def add(graph: Graph, name: str, x: str, shape: tuple[int, ...], **keywords: Any) -> str:
        return graph.add(operator, name, x, **{attributes[of]: value for of, value in keywords.items()})

    return add


def _lrn(graph: Graph, name: str, x: str, shape: tuple[int, ...], *, size, k, alpha, beta, groups) -> str:
    """ONNX divides α by the size, and has no groups: here each is normalised by itself."""
    constants = {"size": size, "bias": k, "alpha": alpha * size, "beta": beta}
    if groups == 1:
        return graph.add("LRN", name, x, **constants)
    parts = tuple(f"{name}/group {number}" for number in range(1, groups + 1))
    graph.add("Split", f"{name}/groups", x, into=parts, axis=1, num_outputs=groups)
    normalized = [graph.add("LRN", f"{part}, normalized", part, **constants) for part in parts]
    return graph.add("Concat", name, *normalized, axis=1)


def _srn(graph: Graph, name: str, x: str, shape: tuple[int, ...], *, size, alpha, beta) -> str:
    """x / (1 + α Σ x²)^β. The sum is size² times the mean of a window, with the zeros around the edges."""
    pads = ((size - 1) // 2,) * 2 + (size // 2,) * 2
    y = graph.add("Mul", f"{name}/squares", x, x)
    y = graph.add("AveragePool", f"{name}/means", y, kernel_shape=(size, size), pads=pads, count_include_pad=1)
    y = graph.add("Mul", f"{name}/scaled", y, graph.constant(f"{name}/scale", alpha * size**2))
    y = graph.add("Add", f"{name}/plus 1", y, graph.constant(f"{name}/1", 1.0))
    y = graph.add("Pow", f"{name}/divisor", y, graph.constant(f"{name}/beta", beta))
    return graph.add("Div", name, x, y)


def _pool(operator: str) -> Callable:
    """A last window that hangs over the edge is padded, which ONNX leaves out of maximum and mean."""

    def add(graph: Graph, name: str, x: str, shape: tuple[int, ...], *, window, stride, ceil_mode=True) -> str:
        _, (_, bottom), (_, right), _ = overhang(jnp.zeros(shape), window, stride, ceil_mode)
        pads = (0, 0, bottom, right)
        return graph.add(operator, name, x, kernel_shape=(window, window), strides=(stride, stride), pads=pads)

    return add


def _dropout(graph: Graph, name: str, x: str, shape: tuple[int, ...], *, rate, inverted) -> str:
    """As at test: nothing, or as in 2012 the multiplication by 1 - rate."""
    return x if inverted else graph.add("Mul", name, x, graph.constant(f"{name}/kept", 1.0 - rate))


def _gelu(graph: Graph, name: str, x: str, shape: tuple[int, ...], *, approximate) -> str:
    return graph.add("Gelu", name, x, approximate="tanh" if approximate else "none")


def _silu(graph: Graph, name: str, x: str, shape: tuple[int, ...]) -> str:
    return graph.add("Mul", name, x, graph.add("Sigmoid", f"{name}/sigmoid", x))


# By a step's public name: what adds its operators, (graph, output's name, input, its shape, keywords) → output's name.
STEPS: dict[str, Callable[..., str]] = {
    "relu": _operator("Relu"),
    "lrn": _lrn,
    "srn": _srn,
    "pool": _pool("MaxPool"),
    "average_pool": _pool("AveragePool"),
    "dropout": _dropout,
    "tanh": _operator("Tanh"),
    "sigmoid": _operator("Sigmoid"),
    "gelu": _gelu,
    "silu": _silu,
    "elu": _operator("Elu", alpha="alpha"),
    "leaky_relu": _operator("LeakyRelu", negative_slope="alpha"),
    "softplus": _operator("Softplus"),
}
