"""Where the time of a training step goes: by layer, and by what is done there.

  python experiments/breakdown.py      two minutes on two cores

Each part of the step is compiled and timed alone, with the inputs it has in the step: medians. Alone nothing overlaps
and nothing is fused with its neighbours, so the sum differs from the whole step, which is timed as well.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from contenders import Case, build
from record import save
from throughput import ceiling

from alexnet_jax import PAPER, Conv, Dense, by_parameter, papers_rule, summary, tuned
from alexnet_jax.device import xla
from alexnet_jax.paper.augment import training_views
from alexnet_jax.paper.table import named

BATCH, REPEATS = 128, 7


def seconds(function: Callable, *arguments: Any) -> float:
    compiled = jax.jit(function, compiler_options=xla.compiler_options()).lower(*arguments).compile()
    return median(lambda: compiled(*arguments))


def median(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


def of_layer(layer: Conv | Dense, x: jax.Array, first: bool) -> tuple[dict[str, float], jax.Array]:
    """Seconds of the layer's parts, and its output."""
    kernel, bias = normal(*layer.kernel_shape(x.shape)) * layer.std, jnp.zeros(layer.features)
    out = layer(x, kernel)
    keys = jax.random.split(jax.random.key(0), len(x))

    def steps(out: jax.Array, bias: jax.Array, keys: jax.Array) -> jax.Array:
        out = layer.add_bias(out, bias)
        for step in layer.then:
            out = step(out, keys)
        return out

    def there_and_back(gradient: jax.Array, out: jax.Array, bias: jax.Array, keys: jax.Array) -> tuple:
        after, back = jax.vjp(lambda out, bias: steps(out, bias, keys), out, bias)
        return after, back(gradient)

    def of_input(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: layer(x, kernel), x)[1](gradient)[0]

    def of_kernel(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        if isinstance(layer, Dense):  # whose own rule waits for the input's gradient
            return x.reshape(len(x), -1).T @ gradient
        return jax.vjp(lambda kernel: layer(x, kernel), kernel)[1](gradient)[0]

    after = jax.jit(steps)(out, bias, keys)
    steps_forward = seconds(steps, out, bias, keys)
    parts = {
        "forward": seconds(layer, x, kernel),
        "input gradient": 0.0 if first else seconds(of_input, x, kernel, out),
        "weight gradient": seconds(of_kernel, x, kernel, out),
        "steps forward": steps_forward,
        "steps backward": seconds(there_and_back, after, out, bias, keys) - steps_forward,
    }
    return parts, after


def update() -> float:
    """Seconds of the update of all parameters."""
    optimizer = by_parameter({"kernel": papers_rule(0.01), "bias": papers_rule(0.01)})
    shape: tuple[int, ...] = (1, 224, 224, 3)
    params: dict[str, Any] = {}
    for (name, layer), row in zip(named(PAPER).items(), summary(PAPER), strict=True):
        params[name] = {"kernel": normal(*layer.kernel_shape(shape)), "bias": normal(layer.features)}
        shape = (1, *row.output_shape)
    gradients = jax.tree.map(jnp.array, params)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=xla.compiler_options())
    def one(state: tuple, gradients: Any) -> tuple:
        params, opt_state = state
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    state = (params, optimizer.init(params))

    def call() -> tuple:
        nonlocal state
        state = one(state, gradients)
        return state

    return median(call)


def main() -> None:
    pixels, keys = jnp.zeros((BATCH, 256, 256, 3), jnp.uint8), jax.random.split(jax.random.key(0), BATCH)
    views = functools.partial(training_views, size=224, color_scale=0.1)
    others = {
        "augmentation": seconds(views, keys, pixels, jnp.zeros((256, 256, 3)), jnp.eye(3)),
        "update": update(),
    }
    rows, x = [], 50 * normal(BATCH, 224, 224, 3)
    for (name, layer), row in zip(named(tuned(PAPER)).items(), summary(PAPER), strict=True):
        parts, x = of_layer(layer, x, first=name == "conv1")
        gflop = 2 * BATCH * row.multiply_adds / 1e9
        rows.append({"layer": name, "gflop_of_each_product": gflop, "seconds": parts})
        print(name, {part: f"{1e3 * of:.1f} ms" for part, of in parts.items()}, flush=True)
    whole = median(build("alexnet_jax", Case("train", "paper", "float32", BATCH)))
    save(
        f"breakdown_{jax.default_backend()}", device=jax.devices()[0].device_kind, batch=BATCH, layers=rows,
        others=others, whole_step=whole, ceiling_tflops=ceiling("float32"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
