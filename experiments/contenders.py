"""Who is measured by throughput.py: this package, obvious Flax code, PyTorch; each a function that does one step."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax import (
    ARCHITECTURES,
    AlexNet,
    Config,
    Conv,
    Dense,
    init_state,
    lrn,
    make_train_step,
    pool,
    relu,
    summary,
)
from alexnet_jax.data.images import Statistics
from alexnet_jax.data.input_pipeline import Batch
from alexnet_jax.device import parallel, xla
from alexnet_jax.device.tuned import tuned, tuned_augmentation
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.paper.table import Layers

# Of the size of the networks that Krizhevsky trained on CIFAR-10.
CIFAR = (
    Conv(32, 5, padding=2, then=(pool, relu, lrn)),
    Conv(32, 5, padding=2, then=(relu, pool, lrn)),
    Conv(64, 5, padding=2, then=(relu, pool)),
    Dense(10),
)
TABLES: dict[str, tuple[Layers, int]] = {
    "paper": (ARCHITECTURES["paper"], 224),
    "torchvision": (ARCHITECTURES["torchvision"], 224),
    "CIFAR-sized": (CIFAR, 32),
}
CONTENDERS = ("alexnet_jax", "obvious Flax", "PyTorch eager", "PyTorch channels_last", "PyTorch compiled")


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    task: str  # train or infer
    table: str
    precision: str
    batch: int

    @property
    def flop_per_image(self) -> int:
        first, *others = (row.multiply_adds for row in summary(*TABLES[self.table]))
        return 2 * (2 * first + 3 * sum(others) if self.task == "train" else first + sum(others))


def images_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    layers, size = TABLES[case.table]
    random = np.random.default_rng(0)
    images = random.standard_normal((case.batch, size, size, 3), np.float32)
    return images, random.integers(0, layers[-1].features, case.batch).astype(np.int32)


def ours(case: Case) -> Callable[[], Any]:
    if case.task == "train":
        return stepping(*training(case))
    layers, size = TABLES[case.table]
    devices = jax.local_devices()[:1]
    net = AlexNet(tuned(layers, devices), jnp.dtype(case.precision))
    variables = net.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    apply = jax.jit(functools.partial(net.apply, train=False), compiler_options=xla.compiler_options(devices))
    inputs, variables = jax.device_put((images_of(case)[0], variables), devices[0])
    return lambda: apply(variables, inputs)


def training(case: Case) -> tuple[Callable, Any, Batch]:
    """This package's training step, its state and a batch, on one device."""
    layers, size = TABLES[case.table]
    devices = jax.local_devices()[:1]
    net = AlexNet(tuned(layers, devices), jnp.dtype(case.precision))
    config = Config(crop_size=size, learning_rate=0.01)
    optimizer = configured_rule(config, 100.0)
    state = parallel.replicate(init_state(net, optimizer, image_size=size), devices)
    _, labels = images_of(case)
    stored = size * 8 // 7
    pixels = np.random.default_rng(0).integers(0, 256, (case.batch, stored, stored, 3), np.uint8)
    statistics = Statistics(np.full((stored, stored, 3), 128.0), np.eye(3))
    one = make_train_step(net, optimizer, tuned_augmentation(config, statistics, 100.0, devices))
    step = parallel.pmap_step(one, devices, donate_state=True)
    return step, state, parallel.shard(Batch(pixels, labels), devices)


def stepping(step: Callable, state: Any, batch: Batch) -> Callable[[], Any]:
    """One step more each time that it is called."""

    def one_step() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"], state.params

    return one_step


class Obvious(nn.Module):
    """The table as one would write it in Flax at first."""

    layers: Layers
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.astype(self.dtype)
        for layer in self.layers:
            if isinstance(layer, Conv):
                padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding, layer.padding)
                window, stride = (layer.window, layer.window), (layer.stride, layer.stride)
                x = nn.Conv(
                    layer.features, window, stride, [padding, padding], feature_group_count=layer.groups,
                    dtype=self.dtype,
                )(x)  # fmt: skip
            else:
                x = nn.Dense(layer.features, dtype=self.dtype)(x.reshape(len(x), -1))
            for step in layer.then:
                keywords = dict(step.keywords)
                if step.name == "lrn":
                    size, k, alpha, beta = (keywords[name] for name in ("size", "k", "alpha", "beta"))
                    sums = jax.lax.reduce_window(x**2, 0.0, jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME")
                    x = x / (k + alpha * sums) ** beta
                elif step.name == "pool":
                    window, stride = keywords["window"], keywords["stride"]
                    x = nn.max_pool(x, (window, window), (stride, stride))
                elif step.name == "dropout":
                    x = nn.Dropout(0.5, deterministic=not train)(x)
                else:
                    x = nn.relu(x)
        return x.astype(jnp.float32)


def obvious_flax(case: Case) -> Callable[[], Any]:
    images, labels = map(jnp.asarray, images_of(case))
    net = Obvious(TABLES[case.table][0], jnp.dtype(case.precision))
    params = net.init(jax.random.key(0), images[:1], train=False)
    if case.task == "infer":
        apply = jax.jit(functools.partial(net.apply, train=False))
        return lambda: apply(params, images)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = state

        def loss(params: Any) -> jax.Array:
            logits = net.apply(params, images, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    state = (params, optimizer.init(params))

    def one_step() -> Any:
        nonlocal state
        state, value = step(state, jax.random.key(1))
        return value, state

    return one_step


def threads() -> int:
    """As many as XLA takes on a CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytorch(case: Case, mode: str) -> Callable[[], Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads())
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    modules: list[Any] = []
    layers, size = TABLES[case.table]
    for layer, row in zip(layers, summary(layers, size), strict=True):
        if isinstance(layer, Conv):
            low, high = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
            modules += [torch.nn.ZeroPad2d((low, high, low, high))] if high else []
            padding = layer.padding if isinstance(layer.padding, int) else 0
            modules += [torch.nn.LazyConv2d(layer.features, layer.window, layer.stride, padding, groups=layer.groups)]
        else:
            modules += [torch.nn.Flatten(), torch.nn.LazyLinear(row.output_shape[-1])]
        for step in layer.then:
            keywords = dict(step.keywords)
            if step.name == "lrn":
                size_, k, alpha, beta = (keywords[name] for name in ("size", "k", "alpha", "beta"))
                modules += [torch.nn.LocalResponseNorm(size_, alpha * size_, beta, k)]  # PyTorch divides α by the size
            elif step.name == "pool":
                modules += [torch.nn.MaxPool2d(keywords["window"], keywords["stride"])]
            else:
                modules += [torch.nn.Dropout() if step.name == "dropout" else torch.nn.ReLU(inplace=True)]
    layout = torch.contiguous_format if mode == "eager" else torch.channels_last
    images, labels = (torch.from_numpy(array).to(device) for array in images_of(case))
    images, labels = images.permute(0, 3, 1, 2).contiguous(memory_format=layout), labels.long()
    net = torch.nn.Sequential(*modules).to(device)
    net(images[:1])
    net = net.to(memory_format=layout)
    forward = net
    if mode == "compiled":
        forward = torch.compile(net, mode="max-autotune" if device == "cuda" else None)
    precision = getattr(torch, case.precision)
    autocast = functools.partial(torch.autocast, device, dtype=precision, enabled=precision != torch.float32)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    if case.task == "infer":
        net.eval()

        def ask() -> None:
            with torch.no_grad(), autocast():
                forward(images)
            finish()

        return ask
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=device == "cuda")

    def one_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = torch.nn.functional.cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        finish()

    return one_step


def build(contender: str, case: Case) -> Callable[[], Any]:
    """What does one step of the case each time it is called, and returns what to wait for."""
    if contender.startswith("PyTorch"):
        return pytorch(case, contender.split()[1])
    return {"alexnet_jax": ours, "obvious Flax": obvious_flax}[contender](case)
