"""Devices: who computes what, and where arrays lie.

Each host (`hosts`) holds whole state and its part of every batch on its own devices; a step of `pmap_step` runs on
those of all.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from alexnet_jax.device.hosts import several_hosts
from alexnet_jax.device.xla import compiler_options

AXIS = "batch"


def all_devices() -> list[jax.Device]:
    """Of all hosts, those of a host next to each other."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def own_rows(batch_size: int, devices: Sequence[jax.Device]) -> range:
    """The rows of each batch that this host reads: those of its devices."""
    own, of_device = _own(devices), batch_size // len(devices)
    first = devices.index(own[0])
    assert list(devices[first : first + len(own)]) == own
    return range(first * of_device, (first + len(own)) * of_device)


def axis_of(devices: Sequence[jax.Device]) -> str | None:
    """The axis name inside of a `pmap_step` on these devices; None where the step sees the whole batch."""
    return AXIS if len(devices) > 1 and not jax.config.values["jax_debug_nans"] else None


def pmap_step(
    step: Callable, devices: Sequence[jax.Device], *, donate_state: bool = False, shared: int = 0
) -> Callable:
    """`step(state, batch)` on all devices at once: the state whole on each, the batch as `shard` cut it.

    `step` is one that was made with `axis_name=axis_of(devices)`. It may take some `shared` arguments more, whole on
    each device (`replicate`). What it returns must be equal on every device, and comes back without a device axis.
    With `donate_state` the memory of the old state is used for the new one.
    """
    in_axes, donated = (None, 0, *[None] * shared), (0,) if donate_state else ()
    if jax.config.values["jax_debug_nans"]:  # which JAX heeds in compiled steps at their first call only

        def operation_by_operation(state: PyTree, batch: PyTree, *others: Any) -> Any:
            whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
            with jax.disable_jit():
                return step(*jax.device_get((state, whole, *others)))

        return operation_by_operation
    options = compiler_options(devices)
    if options and several_hosts():
        return _over_hosts(step, devices, shared, donated, options)
    mapped = jax.pmap(step, AXIS, in_axes=in_axes, out_axes=None, devices=devices, donate_argnums=donated)
    if not options:
        return mapped
    return jax.jit(lambda *arguments: mapped(*arguments), donate_argnums=donated, compiler_options=options)


def _over_hosts(
    step: Callable, devices: Sequence[jax.Device], shared: int, donated: tuple[int, ...], options: dict[str, str]
) -> Callable:
    """What `pmap` does over several hosts, with compiler options: it takes none, and `jit` not its arrays."""
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    whole, pieces = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS)
    specs = (whole, pieces, *[whole] * shared)

    def on_one(state: PyTree, batch: PyTree, *others: PyTree) -> PyTree:
        return step(state, jax.tree.map(lambda x: x[0], batch), *others)

    on_each = jax.shard_map(on_one, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
    compiled = jax.jit(on_each, donate_argnums=donated, compiler_options=options)

    def of_all_hosts(arguments: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        return multihost_utils.host_local_array_to_global_array(arguments, mesh, specs)

    def on_all(*arguments: PyTree) -> PyTree:
        found = compiled(*of_all_hosts(arguments))
        return multihost_utils.global_array_to_host_local_array(found, mesh, whole)

    on_all.lower = lambda *arguments: compiled.lower(*of_all_hosts(arguments))  # type: ignore[attr-defined]
    return on_all


def shard(batch: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Arrays (n, …) on this host → (devices, n / devices, …), one piece on each of its devices."""
    own = _own(devices)
    return jax.device_put(
        jax.tree.map(lambda x: x.reshape(len(own), -1, *x.shape[1:]), batch),
        _sharding(own, AXIS),
    )


def shard_ahead(batches: Iterable[PyTree], devices: Sequence[jax.Device]) -> Iterator[PyTree]:
    """Each batch as `shard` gives it, sent before the one ahead of it is used: so the devices do not wait for it."""
    return ahead(shard(batch, devices) for batch in batches)


def ahead(sent: Iterable[PyTree]) -> Iterator[PyTree]:
    """The same, each made before the one ahead of it is used."""
    for batch, _ in itertools.pairwise(itertools.chain(sent, [None])):
        yield batch


def replicate(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """The same arrays whole on every device of this host."""
    return jax.device_put(tree, _sharding(_own(devices)))


def on_host(tree: PyTree) -> PyTree:
    """Whole, as numpy has it. Where parts are on other hosts, all must call this."""

    def whole(leaf: Any) -> Any:
        is_here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        return leaf if is_here else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def free_memory(devices: Sequence[jax.Device]) -> float:
    """Free bytes on the fullest of the devices; infinite where they do not tell (CPUs)."""
    told = [device.memory_stats() or {} for device in _own(devices)]
    return min(stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0) for stats in told)


def _own(devices: Sequence[jax.Device]) -> list[jax.Device]:
    return [device for device in devices if device.process_index == jax.process_index()]


def _sharding(devices: Sequence[jax.Device], *axes: Any) -> jax.sharding.Sharding:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
