"""§3.2: the network as 2012 ran it, in halves on two devices, against the grouped network on one.

  python experiments/two_gpus.py        2 minutes and 5 GB on two cores

Each device holds half of the kernels of every layer and sees the whole batch (`device.model_parallel`): what
`main --columns_parallel` trains. A layer that reads the maps of both (conv3, and the dense ones) gathers them first;
the others read their own device's only.

Expected: loss, gradients and one update equal those of `groups=2` on one device, to 1e-5 of their norm in float32. In
larger batches a pooling window may turn up whose two largest values are nearer than float32 can tell; the gradient then
goes to the one or the other, and differs by some 1e-3; in float64 it does not. The two devices exchange an eighth of
what data parallelism would: maps of the batch, rather than gradients of 61 million parameters. Bytes are counted in
the program that XLA compiled.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exchange import exchanged
from record import save

from alexnet_jax import ARCHITECTURES, AlexNet, Config, papers_rule
from alexnet_jax.device.spread import spread_over
from alexnet_jax.device.xla import compiler_options
from alexnet_jax.paper.table import Layers


def differences(
    layers: Layers, size: int, batch: int, devices: Sequence[jax.Device], *, seed: int = 0, dtype: Any = jnp.float32
) -> dict[str, float]:
    """The largest ‖two - one‖ / ‖one‖ of the loss, and of each parameter's gradient and update."""
    keys = jax.random.split(jax.random.key(seed), 4)
    images = 60 * jax.random.normal(keys[0], (batch, size, size, 3), jnp.float32)
    labels = jax.random.randint(keys[1], (batch,), 0, layers[-1].features, jnp.int32)
    params = jax.jit(lambda key: AlexNet(layers).init(key, images[:1], train=False))(keys[2])["params"]
    images, params = jax.tree.map(lambda x: x.astype(dtype), (images, params))
    optimizer = papers_rule(0.01)

    def step_of(net: AlexNet) -> Any:
        def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            logits = net.apply({"params": params}, images, train=True, key=keys[3])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(params: Any, batch: tuple) -> tuple:
            value, gradients = jax.value_and_grad(loss)(params, *batch)
            return value, gradients, optimizer.update(gradients, optimizer.init(params), params)[0]

        return step

    two = spread_over(devices, layers, Config(columns_parallel=True))
    on_one = jax.jit(step_of(AlexNet(layers, dtype)), compiler_options=compiler_options(devices))  # as it is on two
    of_one = jax.device_get(on_one(params, (images, labels)))
    (sent,) = two.sent([(images, labels)])
    on_two = two.step(step_of(AlexNet(two.layers(layers), dtype)))
    of_two = jax.device_get(on_two(two.put(params), sent))

    def error(two: Any, one: Any) -> float:
        return float(np.linalg.norm(np.asarray(two, np.float64) - one) / np.linalg.norm(np.asarray(one, np.float64)))

    of_each = [jax.tree.map(error, *pair) for pair in zip(of_two, of_one, strict=True)]
    return {
        "loss": of_each[0],
        "gradients": max(jax.tree.leaves(of_each[1])),
        "updates": max(jax.tree.leaves(of_each[2])),
    }


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
    ways = {"model parallel": Config(columns_parallel=True), "data parallel": Config()}
    sent = {name: exchanged(layers, devices, 128, config) for name, config in ways.items()}
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
