"""oneDNN's convolution, which jaxlib's CPU library holds: in float32 faster than XLA's own for every layer.

XLA leaves it unused here, so it is called by its name, where it gives what XLA's gives.
"""

import functools
import json

import jax
import jaxlib
import numpy as np
from jaxtyping import Array, Float

from alexnet_jax.paper.layers import conv2d


def missing() -> str:
    """Why `convolution` cannot be called here; nothing where it can."""
    if jax.config.values["jax_compilation_cache_dir"]:
        return "a compilation cache cannot keep programs that call it"
    return _fault()


@functools.cache
def _fault() -> str:
    """What is wrong with a convolution in which each option counts; also asked while a function is traced."""
    random = np.random.default_rng(0)
    x, kernel = (random.standard_normal(shape, np.float32) for shape in ((2, 9, 8, 6), (3, 3, 3, 4)))
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            ours, expected = (
                jax.jit(functools.partial(of, stride=2, padding=(1, 2), groups=2)).lower(x, kernel).compile()(x, kernel)
                for of in (convolution, conv2d)
            )
    except jax.errors.JaxRuntimeError:  # not all systems' jaxlibs are alike
        return f"jaxlib {jaxlib.__version__} was built without it"
    close = ours.shape == expected.shape and np.allclose(ours, expected, rtol=1e-4, atol=1e-4)
    return "" if close else f"that of jaxlib {jaxlib.__version__} computes something else"


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
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct((len(x), *places, features), x.dtype),
        vmap_method="sequential",
        custom_call_api_version=1,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(x, kernel)
