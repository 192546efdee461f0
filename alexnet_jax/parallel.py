"""Devices: who computes what, and where arrays lie. The only file that knows them."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Key, PyTree

AXIS = "batch"


def pmap_step(
    step: Callable, devices: Sequence[jax.Device], *, donate_state: bool = False, shared: int = 0
) -> Callable:
    """`step(state, batch)` on all devices at once: the state whole on each, the batch as `shard` cut it.

    `step` may take some `shared` arguments more, whole on each device (`replicate`). What it returns must be equal on
    every device (`mean`, `total`), and comes back without a device axis.
    With `donate_state` the memory of the old state is used for the new one.
    """
    return jax.pmap(
        step, AXIS, in_axes=(None, 0, *[None] * shared), out_axes=None, devices=devices,
        donate_argnums=(0,) if donate_state else (),
    )  # fmt: skip


def mean(tree: PyTree) -> PyTree:
    """Inside a step: the mean over the devices."""
    return lax.pmean(tree, AXIS)


def total(tree: PyTree) -> PyTree:
    """Inside a step: the sum over the devices."""
    return lax.psum(tree, AXIS)


def image_keys(key: Key[Array, ""], images: int, *, chunk: int = 1) -> Key[Array, "{images}"]:
    """Inside a step: one key for each of this device's images, the same for an image on any number of devices.

    `chunk` images in a row of the whole batch get that of the first of them.
    """
    index = lax.axis_index(AXIS) * images + np.arange(images)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(index // chunk * chunk)


def shard(batch: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Arrays (n, …) on the host → (devices, n / devices, …), one piece on each device."""
    return jax.device_put(
        jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch),
        _sharding(devices, AXIS),
    )


def shard_ahead(batches: Iterable[PyTree], devices: Sequence[jax.Device]) -> Iterator[PyTree]:
    """Each batch as `shard` gives it, sent before the one ahead of it is used: so the devices do not wait for it."""
    ahead: deque[PyTree] = deque()
    for batch in batches:
        ahead.append(shard(batch, devices))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def replicate(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """The same arrays whole on every device."""
    return jax.device_put(tree, _sharding(devices))


def free_memory(devices: Sequence[jax.Device]) -> float:
    """Free bytes on the fullest of the devices; infinite where they do not tell (CPUs)."""
    told = [device.memory_stats() or {} for device in devices]
    return min(stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0) for stats in told)


def _sharding(devices: Sequence[jax.Device], *axes: Any) -> jax.sharding.Sharding:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
