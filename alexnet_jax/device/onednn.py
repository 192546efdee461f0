"""oneDNN's convolution, which jaxlib's CPU library holds: in float32 faster than XLA's own for every layer.

XLA leaves it unused here, so it is called by its name, in those jaxlibs for which this has been tried.
"""

import functools
import json

import jax
import jaxlib
import numpy as np
from jaxtyping import Array, Float

_TRIED = ("0.10.0", "0.10.1", "0.10.2")


def missing() -> str:
    """Why `convolution` cannot be called here; nothing where it can."""
    if jax.config.values["jax_compilation_cache_dir"]:
        return "a compilation cache cannot keep programs that call it"
    if jaxlib.__version__ not in _TRIED:
        return f"it has not been tried with jaxlib {jaxlib.__version__}"
    return "" if _works() else "this jaxlib was built without it"


@functools.cache
def _works() -> bool:
    x, kernel = np.arange(3, dtype=np.float32).reshape(1, 1, 3, 1), np.full((1, 1, 1, 1), 2, np.float32)
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            out = jax.jit(convolution).lower(x, kernel).compile()(x, kernel)
    except jax.errors.JaxRuntimeError:  # built without it: not all systems' jaxlibs are alike
        return False
    return np.array_equal(out, 2 * x)


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
