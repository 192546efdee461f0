"""oneDNN's convolution and product, which jaxlib's CPU library holds: in float32 faster than XLA's own for every layer.

XLA leaves them unused here, so they are called by their names, where they give what XLA's give.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
import numpy as np
from jaxtyping import Array, Float

from alexnet_jax.paper.layers import conv2d, dense


def missing() -> str:
    """Why `convolution` and `product` cannot be called here; nothing where they can."""
    if jax.config.values["jax_compilation_cache_dir"]:
        return "a compilation cache cannot keep programs that call them"
    return _fault()


@functools.cache
def _fault() -> str:
    """What is wrong with a convolution in which each option counts, or with a product; also asked while a function is
    traced.
    """
    random = np.random.default_rng(0)
    x, kernel = (random.standard_normal(shape, np.float32) for shape in ((2, 9, 8, 6), (3, 3, 3, 4)))
    rows, matrix = (random.standard_normal(shape, np.float32) for shape in ((5, 7), (6, 7)))
    options: dict[str, Any] = {"stride": 2, "padding": (1, 2), "groups": 2}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):  # of several hosts, this one's
            agree = [
                _agree(functools.partial(convolution, **options), functools.partial(conv2d, **options), x, kernel),
                _agree(product_with_transposed, lambda x, kernel: x @ kernel.T, rows, matrix),
                _agree(product, dense, rows, matrix.T),
            ]
    except jax.errors.JaxRuntimeError:  # not all systems' jaxlibs are alike
        return f"jaxlib {jaxlib.__version__} was built without them"
    return "" if all(agree) else f"those of jaxlib {jaxlib.__version__} compute something else"


def _agree(ours: Callable, formula: Callable, *arguments: np.ndarray) -> bool:
    found, expected = (jax.jit(of).lower(*arguments).compile()(*arguments) for of in (ours, formula))
    return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4, atol=1e-4)


def convolution(
    x: Float[Array, "n height width channels"],
    kernel: Float[Array, "window window channels_per_group features"],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Float[Array, "n out_height out_width features"]:
    """As `layers.conv2d`, for float32 on a CPU, without gradients."""
    window, features = kernel.shape[0], kernel.shape[-1]
    places = [(length + sum(padding) - window) // stride + 1 for length in x.shape[1:3]]
    images = {"dims": 4, "data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    config = {
        "dims": 4,
        "feature_groups": groups,
        "input": images,
        "output": images,
        "kernel": {
            "dims": 4,
            "filter": {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]},
        },
        "window": {
            "pad_left": [padding[0]] * 2,
            "pad_right": [padding[1]] * 2,
            "strides": [stride] * 2,
            "window_dilations": [1, 1],
        },
    }
    out = jax.ShapeDtypeStruct((len(x), *places, features), x.dtype)
    return _called("convolution", out, {"onednn_conv_config": config}, x, kernel)


def product(x: Float[Array, "n inputs"], kernel: Float[Array, "inputs features"]) -> Float[Array, "n features"]:
    """As `layers.dense`, for float32 on a CPU, without gradients."""
    out = jax.ShapeDtypeStruct((len(x), kernel.shape[1]), x.dtype)
    return _called("matmul", out, {"onednn_matmul_config": {}}, x, kernel)


def product_with_transposed(
    x: Float[Array, "n inputs"], kernel: Float[Array, "features inputs"]
) -> Float[Array, "n features"]:
    """x · kernelᵀ, as `product`."""
    out = jax.ShapeDtypeStruct((len(x), len(kernel)), x.dtype)
    return _called("matmul", out, {"onednn_matmul_config": {"transpose_b": True}}, x, kernel)


def _called(name: str, out: jax.ShapeDtypeStruct, config: dict[str, Any], *arguments: Array) -> Array:
    call = jax.ffi.ffi_call(
        f"__onednn${name}", out, vmap_method="sequential", custom_call_api_version=1,
        legacy_backend_config=json.dumps(config),
    )  # fmt: skip
    return call(*arguments)
