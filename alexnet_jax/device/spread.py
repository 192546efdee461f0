"""How a run is spread over its devices: what each computes, and where state and batches lie."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from alexnet_jax.config import Config
from alexnet_jax.device import hosts, model_parallel, parallel
from alexnet_jax.device.model_parallel import BY_IMAGES, WHOLE
from alexnet_jax.device.xla import compiler_options
from alexnet_jax.options import InputError
from alexnet_jax.paper.table import Layers
from alexnet_jax.paper.train_step import Augment, Draws


@dataclasses.dataclass(frozen=True)
class Spread:
    """Data parallel: the state whole on each device, and of every batch its images."""

    devices: Sequence[jax.Device]
    exchange_precision: str = "float32"

    @property
    def axis(self) -> str | None:
        """For `make_train_step` and `make_evaluation_step`."""
        return parallel.axis_of(self.devices)

    @property
    def mean_gradients(self) -> Callable[[PyTree, str], PyTree]:
        """For `make_train_step`."""
        return lax.pmean if self.exchange_precision == "float32" else mean_in_bfloat16

    def rows(self, batch_size: int) -> range:
        """Of each batch, those that this host reads."""
        return parallel.own_rows(batch_size, self.devices)

    def layers(self, layers: Layers) -> Layers:
        """The table whose operations exchange what is needed."""
        return layers

    def augmentation(self, augment: Augment) -> Augment:
        """Each device has its images done."""
        return augment

    def put(self, tree: PyTree) -> PyTree:
        """A state, parameters, or anything else that is not divided by images."""
        return parallel.replicate(tree, self.devices)

    def step(self, step: Callable, *, donate_state: bool = False, shared: int = 0) -> Callable:
        """`step(state, batch, …)`, compiled for all devices; the arguments as in `parallel.pmap_step`."""
        return parallel.pmap_step(step, self.devices, donate_state=donate_state, shared=shared)

    def sent(self, batches: Iterable[PyTree]) -> Iterator[PyTree]:
        """Each batch on the devices, sent before the one ahead of it is used."""
        return parallel.shard_ahead(batches, self.devices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelParallel(Spread):
    """Each device holds columns of some layers (`model_parallel`). One program for all, by `jax.jit` over their mesh:
    its arrays are whole, and lie in parts.

    divided: features by layer. columns: of all layers, with the whole batch on each device; else of the dense ones.
    """

    divided: Mapping[str, int]
    columns: bool

    @property
    def axis(self) -> None:
        """None: the step sees the whole batch."""
        return None

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices in a row."""
        return model_parallel.mesh_of(self.devices)

    @property
    def of_batch(self) -> PartitionSpec:
        """How a batch lies, and what is made of its images."""
        return WHOLE if self.columns else BY_IMAGES

    def rows(self, batch_size: int) -> range:
        """In columns, all: each host reads the whole batch."""
        return range(batch_size) if self.columns else super().rows(batch_size)

    def layers(self, layers: Layers) -> Layers:
        """With the exchange in the operations."""
        of = model_parallel.columns_parallel if self.columns else model_parallel.dense_parallel
        return of(layers, self.mesh)

    def augmentation(self, augment: Augment) -> Augment:
        """In columns, each device does it for all."""
        whole: Any = WHOLE
        images: Any = self.of_batch
        specs = Draws(whole, images, whole), images
        return jax.shard_map(augment, mesh=self.mesh, in_specs=specs, out_specs=images, check_vma=False)

    def put(self, tree: PyTree) -> PyTree:
        """From whole arrays on each host."""
        lying = self.lying(tree)
        if not hosts.several_hosts():
            return jax.device_put(tree, lying)

        def of_this_host(leaf: Any, sharding: NamedSharding) -> jax.Array:
            whole = np.asarray(leaf)
            return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

        return jax.tree.map(of_this_host, tree, lying)

    def step(self, step: Callable, *, donate_state: bool = False, shared: int = 0) -> Callable:
        """As for any spread; what comes out lies as it came in."""

        def on_all(*arguments: Any) -> Any:
            found = step(*arguments)
            return lax.with_sharding_constraint(found, self.lying(found))

        donated = (0,) if donate_state else ()
        return jax.jit(on_all, donate_argnums=donated, compiler_options=compiler_options(self.devices))

    def sent(self, batches: Iterable[PyTree]) -> Iterator[PyTree]:
        """As for any spread."""
        lying = NamedSharding(self.mesh, self.of_batch)

        def send(rows: Any) -> jax.Array:
            return jax.make_array_from_process_local_data(lying, np.asarray(rows))

        return parallel.ahead(jax.tree.map(send, batch) for batch in batches)

    def lying(self, tree: PyTree) -> PyTree:
        """How each array of a state lies."""
        return jax.tree_util.tree_map_with_path(model_parallel.sharding_of(dict(self.divided), self.mesh), tree)


def spread_over(devices: Sequence[jax.Device], layers: Layers, config: Config) -> Spread:
    """What the config says. Raises InputError where these devices cannot do it."""
    if config.columns_parallel and len(devices) != 2:
        raise InputError(f"--columns_parallel: is of 2 devices, and there are {len(devices)}")
    is_plain = not (config.dense_parallel or config.columns_parallel)
    if is_plain or len(devices) == 1 or jax.config.values["jax_debug_nans"]:
        return Spread(devices, config.exchange_precision)
    divided = model_parallel.divided_layers(layers, len(devices), columns=config.columns_parallel)
    return ModelParallel(devices=devices, divided=divided, columns=config.columns_parallel)


def mean_in_bfloat16(gradients: PyTree, axis_name: str) -> PyTree:
    """Their mean over the devices of an axis, rounded to bfloat16 twice: as they are sent, and as their mean is.

    Each device gets one piece of all, adds it up in float32, and sends the mean on: as many numbers as `lax.pmean`
    sends of float32. That of XLA in bfloat16 would be added in bfloat16, and on CPUs sent as float32.
    """
    devices = lax.axis_size(axis_name)

    def mean(gradient: Array) -> Array:
        pieces = jnp.pad(gradient.reshape(-1), (0, -gradient.size % devices)).reshape(devices, -1)
        of_all = lax.all_to_all(_to_send(pieces), axis_name, 0, 0, tiled=True)
        own = _received(of_all).mean(0)
        means = lax.all_gather(_to_send(own), axis_name, tiled=True)
        return _received(means)[: gradient.size].reshape(gradient.shape).astype(gradient.dtype)

    return jax.tree.map(mean, gradients)


def _to_send(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)  # which XLA makes no float32 of


def _received(bits: Array) -> Array:
    return lax.bitcast_convert_type(bits, jnp.bfloat16).astype(jnp.float32)
