"""§3.2: the network as 2012 ran it, in halves on two devices, against the grouped network on one.

  python experiments/two_gpus.py        2 minutes and 5 GB on two cores

Each device holds half of the kernels of every layer and sees the whole batch. A layer that reads the maps of both
(conv3, and the dense ones) gathers them first; the others read their own device's only. The softmax needs the other
half of the outputs as well (in 2012 one GPU had the whole last layer).

Expected: loss, gradients and one update equal those of `groups=2` on one device, to 1e-5 of their norm in float32. In
larger batches a pooling window may turn up whose two largest values are nearer than float32 can tell; the gradient then
goes to the one or the other, and differs by some 1e-3; in float64 it does not. The two devices exchange an eighth of
what data parallelism would: maps of the batch, rather than gradients of 61 million parameters. Bytes are counted in
the program that XLA compiled.
"""

import argparse
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from record import save

from alexnet_jax import ARCHITECTURES, AlexNet, dropout, image_keys, papers_rule
from alexnet_jax.device import parallel
from alexnet_jax.paper.architectures import one_column
from alexnet_jax.paper.table import Layers, named

AXIS = "gpu"


def half(layers: Layers) -> Layers:
    """What one device computes: half of the features of each layer, and no groups."""
    return tuple(dataclasses.replace(layer, features=layer.features // 2) for layer in one_column(layers))


def split(params: Any) -> Any:
    """The parameters of both devices, stacked: each has half of a layer's features, all of what these read."""
    return jax.tree.map(lambda w: jnp.stack(jnp.split(w, 2, axis=-1)), params)


def join(params: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(lambda w: jnp.concatenate(list(w), axis=-1), params)


def gather(x: jax.Array) -> jax.Array:
    """The maps of both devices."""
    return lax.all_gather(x, AXIS, axis=x.ndim - 1, tiled=True)


def own_half(x: jax.Array) -> jax.Array:
    """Of the last axis, this device's half."""
    width = x.shape[-1] // 2
    return lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * width, width, axis=-1)


def logits_on_two(layers: Layers, params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
    """Inside a pmap over two devices: the logits, where `params` are this device's half."""
    x, keys = images, image_keys(key, len(images))
    for number, ((name, whole), layer) in enumerate(zip(named(layers).items(), half(layers), strict=True)):
        reads_both = number > 0 and getattr(whole, "groups", 1) == 1
        x = layer(gather(x) if reads_both else x, params[name]["kernel"])
        x = x + params[name]["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
        for place, step in enumerate(layer.then):
            if step.function is dropout:  # the mask of the whole layer, as one device draws it, and of it the own half
                of_step = fold_in(fold_in(keys, number), place)
                x = x * own_half(dropout(jnp.ones((len(x), whole.features), x.dtype), of_step))
            else:
                x = step(x)
    return gather(x)


def fold_in(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def make_steps(layers: Layers, devices: Sequence[jax.Device], dtype: Any = jnp.float32) -> dict[str, Callable]:
    """(params, images, labels, key) → loss, gradients, update: on one device, and on two in the two ways."""
    net, optimizer = AlexNet(layers, dtype), papers_rule(0.01)

    def on_one(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        return cross_entropy(net.apply({"params": params}, images, train=True, key=key), labels)

    def on_two(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        # Both devices compute the whole loss. Their sum is what is differentiated: each has a share of one half.
        return cross_entropy(logits_on_two(layers, params, images, key), labels) / 2

    def mean(tree: Any) -> Any:
        return lax.pmean(tree, parallel.AXIS)

    def step(loss: Callable, combine: Callable, params: Any, *batch: jax.Array) -> tuple:
        value, gradients = combine(jax.value_and_grad(loss)(params, *batch))
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return value, gradients, updates

    return {
        "one device": jax.jit(functools.partial(step, on_one, lambda tree: tree)),
        "model parallel": jax.pmap(
            functools.partial(step, on_two, lambda tree: tree), AXIS, in_axes=(0, None, None, None), devices=devices
        ),
        "data parallel": jax.pmap(
            functools.partial(step, on_one, mean), parallel.AXIS, in_axes=(None, 0, 0, None), devices=devices
        ),
    }


def differences(
    layers: Layers, size: int, batch: int, devices: Sequence[jax.Device], *, seed: int = 0, dtype: Any = jnp.float32
) -> dict[str, float]:
    """The largest ‖two - one‖ / ‖one‖ of the loss, and of each parameter's gradient and update."""
    keys = jax.random.split(jax.random.key(seed), 4)
    images = 60 * jax.random.normal(keys[0], (batch, size, size, 3), jnp.float32)
    labels = jax.random.randint(keys[1], (batch,), 0, layers[-1].features, jnp.int32)
    params = jax.jit(lambda key: AlexNet(layers).init(key, images[:1], train=False))(keys[2])["params"]
    images, params = jax.tree.map(lambda x: x.astype(dtype), (images, params))
    steps = make_steps(layers, devices, dtype)
    one = jax.device_get(steps["one device"](params, images, labels, keys[3]))
    value, gradients, updates = jax.device_get(steps["model parallel"](split(params), images, labels, keys[3]))
    two = value.sum(), join(gradients), join(updates)

    def error(two: Any, one: Any) -> float:
        return float(np.linalg.norm(np.asarray(two, np.float64) - one) / np.linalg.norm(np.asarray(one, np.float64)))

    of_each = [jax.tree.map(error, *pair) for pair in zip(two, one, strict=True)]
    return {
        "loss": of_each[0],
        "gradients": max(jax.tree.leaves(of_each[1])),
        "updates": max(jax.tree.leaves(of_each[2])),
    }


# What one of two devices sends, as multiples of the bytes of the result.
SENT = {"all-gather": 1 / 2, "reduce-scatter": 1, "all-reduce": 1, "all-to-all": 1 / 2, "collective-permute": 1}


def bytes_sent(compiled: str) -> dict[str, int]:
    """By each of two devices, by kind of exchange, in a program as XLA compiled it (HLO text, 32-bit numbers)."""
    found: dict[str, int] = {}
    for result, kind in re.findall(rf"= (.*?) ({'|'.join(SENT)})\(", compiled):
        shapes = re.findall(r"[fsu]32\[([\d,]*)\]", result)
        numbers = sum(math.prod(int(length) for length in shape.split(",") if length) for shape in shapes)
        found[kind] = found.get(kind, 0) + round(4 * numbers * SENT[kind])
    return found


def exchanged(layers: Layers, size: int, batch: int, devices: Sequence[jax.Device]) -> dict[str, dict[str, int]]:
    """`bytes_sent` in a training step, model parallel and data parallel. Compiles; computes nothing."""
    steps = make_steps(layers, devices)
    params = jax.eval_shape(
        lambda: AlexNet(layers).init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    )["params"]
    key = jax.eval_shape(lambda: jax.random.key(0))

    def batch_of(*shape: int) -> tuple:
        return jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32)

    of = {
        "model parallel": (jax.eval_shape(split, params), *batch_of(batch), key),
        "data parallel": (params, *batch_of(2, batch // 2), key),
    }
    return {name: bytes_sent(steps[name].lower(*shapes).compile().as_text()) for name, shapes in of.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="paper", choices=("paper", "original"))
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    devices = jax.devices("cpu")[:2]
    layers, size = ARCHITECTURES[arguments.architecture], 224

    comparisons = []
    for dtype, batch, seeds in ((jnp.float32, 8, range(5)), (jnp.float32, 16, [0]), (jnp.float64, 16, [0])):
        for seed in seeds:
            with jax.enable_x64(dtype == jnp.float64):
                errors = differences(layers, size, batch, devices, seed=seed, dtype=dtype)
            comparisons.append({"type": dtype.__name__, "batch_size": batch, "seed": seed, **errors})
            print(comparisons[-1], flush=True)
    sent = exchanged(layers, size, 128, devices)
    for name, kinds in sent.items():
        print(f"{name}, batch 128: each device sends {sum(kinds.values()) / 1e6:.1f} MB a step; {kinds}")
    save(
        f"two_gpus_{arguments.architecture}",
        devices=f"2 × {devices[0].device_kind}, virtual",
        relative_differences=comparisons,
        bytes_sent_per_device_and_step_at_batch_128=sent,
    )


if __name__ == "__main__":
    main()
