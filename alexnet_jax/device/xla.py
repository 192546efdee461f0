"""What XLA's CPU backend must be told to be fast. Other backends are left alone."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

# Without YNNPACK, which jaxlib 0.10 prefers on CPU: Eigen's convolutions are faster on AlexNet's shapes.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def compiler_options(devices: Sequence[jax.Device] | None = None) -> dict[str, str]:
    """For `jax.jit(…, compiler_options=…)`: what makes the network fast on these devices (by default, all)."""
    platform = (devices or jax.devices())[0].platform
    return dict(_CPU_OPTIONS) if platform == "cpu" and _are_known() else {}


@functools.cache
def _are_known() -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # another jaxlib
        return False
    return True


def on_its_own(function: Callable, *arguments: Array) -> Any:
    """`function(*arguments)`, computed once, apart from all that uses it. For CPUs.

    XLA's CPU backend fuses what is cheap into each of its users, where it is computed again, in the order that suits
    the user; and it drops `lax.optimization_barrier` before that. It leaves alone what is in a branch. Both branches
    are equal.
    """
    if jax.config.values["jax_disable_jit"]:  # operation by operation, nothing is fused
        return function(*arguments)

    def other(*arguments: Array) -> Any:
        return lax.optimization_barrier(function(*arguments))

    return lax.cond(jnp.ravel(arguments[0])[:1].sum() == 0, function, other, *arguments)


def kept(augment: Callable, devices: Sequence[jax.Device]) -> Callable:
    """The same augmentation; on CPUs computed once: else the gradient of the first kernel would do it again."""
    if devices[0].platform != "cpu":
        return augment
    return lambda draws, images: on_its_own(lambda images: augment(draws, images), images)
