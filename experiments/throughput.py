"""How fast the network is trained and asked: this package, the obvious Flax code and PyTorch, in turns.

  pip install torch                    (on a GPU, its CUDA build)
  python experiments/throughput.py     a quarter of an hour on two cores
  python experiments/throughput.py --quick                        under two minutes
  python experiments/throughput.py --precisions=bfloat16,float32 --batches=1024,128      on a GPU

Each contender lives in a process of its own, which waits while another computes; medians of the repeats. A training
step is forward, backward and update (momentum, weight decay) on images that lie on the device; this package's also
augments them: its input is uint8, 256 × 256, the others' float32, of the network's size. Inference is the forward pass
in test mode, of float32 images. Model FLOP/s count multiplications and additions of convolutions and dense layers:
forward once, and backward twice, but for the images' gradient, which nobody computes. The ceiling is the best rate of
square matrix products in JAX. Expected on two cores, float32, batch 128, `paper`: at least 1.3 times PyTorch's best
mode and 6 times the obvious code.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from record import save

from alexnet_jax import ARCHITECTURES, AlexNet, optim, parallel, summary, train, xla
from alexnet_jax.architectures import Conv, Dense, Layers, lrn, pool, relu
from alexnet_jax.config import Config
from alexnet_jax.input_pipeline import Batch

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
    layers, size = TABLES[case.table]
    devices = jax.local_devices()[:1]
    net = AlexNet(layers, jnp.dtype(case.precision))
    images, labels = images_of(case)
    config = Config(crop_size=size, batch_size=case.batch)
    optimizer = optim.sgd(0.01)
    state = parallel.replicate(train.init_state(net, optimizer, crop_size=size, seed=0), devices)
    if case.task == "infer":
        options = xla.compiler_options(devices)
        apply = jax.jit(functools.partial(net.apply, train=False), compiler_options=options)
        inputs, variables = jax.device_put(images, devices[0]), jax.device_put({"params": state.params}, devices[0])
        return lambda: apply(variables, inputs)
    stored = size * 8 // 7
    pixels = np.random.default_rng(0).integers(0, 256, (case.batch, stored, stored, 3), np.uint8)
    step = parallel.pmap_step(
        train.make_train_step(net, optimizer, jnp.full((stored, stored, 3), 128.0), jnp.eye(3), config, 100.0),
        devices,
        donate_state=True,
    )
    batch = parallel.shard(Batch(pixels, labels), devices)

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
                name = getattr(step, "func", step).__name__
                if name == "local_response_norm":
                    size, k, alpha, beta = (step.keywords[name] for name in ("size", "k", "alpha", "beta"))
                    sums = jax.lax.reduce_window(x**2, 0.0, jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME")
                    x = x / (k + alpha * sums) ** beta
                elif name == "max_pool":
                    window, stride = step.keywords["window"], step.keywords["stride"]
                    x = nn.max_pool(x, (window, window), (stride, stride))
                elif name == "dropout":
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


def pytorch(case: Case, mode: str) -> Callable[[], Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
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
            name = getattr(step, "func", step).__name__
            if name == "local_response_norm":
                size_, k, alpha, beta = (step.keywords[name] for name in ("size", "k", "alpha", "beta"))
                modules += [torch.nn.LocalResponseNorm(size_, alpha * size_, beta, k)]  # PyTorch divides α by the size
            elif name == "max_pool":
                modules += [torch.nn.MaxPool2d(step.keywords["window"], step.keywords["stride"])]
            else:
                modules += [torch.nn.Dropout() if name == "dropout" else torch.nn.ReLU(inplace=True)]
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


def peak_megabytes(contender: str) -> float:
    if contender.startswith("PyTorch"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
    elif (stats := jax.local_devices()[0].memory_stats()) and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def work(contender: str, case: Case, inner: int) -> None:
    """A worker: builds its step, and does `inner` of them for each line that it reads; answers in JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr  # where libraries may print
    start = time.perf_counter()
    if contender.startswith("PyTorch"):
        step = pytorch(case, contender.split()[1])
    else:
        step = {"alexnet_jax": ours, "obvious Flax": obvious_flax}[contender](case)
    built = time.perf_counter()
    jax.block_until_ready(step())
    first = time.perf_counter()
    jax.block_until_ready(step())
    second = time.perf_counter() - first
    values = {"compile_seconds": first - built - second, "first_step_seconds": first - start}
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(inner):
            result = step()
        jax.block_until_ready(result)
        values["seconds"] = (time.perf_counter() - start) / inner
        values["peak_mb"] = peak_megabytes(contender)
        print(json.dumps(values), file=answers, flush=True)


def measured(case: Case, contenders: list[str], repeats: int, inner: int) -> dict[str, Any]:
    """Of each contender: images/s, the median of the repeats, which are done in turns; and what it took."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share a GPU
    workers, answers = {}, {}
    for contender in contenders:
        command = [sys.executable, __file__, "--work", json.dumps([contender, dataclasses.asdict(case), inner])]
        pipe = subprocess.PIPE
        workers[contender] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        answers[contender] = [ask(workers[contender])]  # one after the other, so that none starts beside another
    for _ in range(repeats):
        for contender, worker in workers.items():
            answers[contender].append(ask(worker))
    for worker in workers.values():
        worker.communicate()
    results = {}
    for contender, (_, *given) in answers.items():
        seconds = statistics.median(answer["seconds"] for answer in given)
        results[contender] = {
            "images_per_second": case.batch / seconds,
            "slowest_and_fastest": [case.batch / at([answer["seconds"] for answer in given]) for at in (max, min)],
            "model_tflops": case.flop_per_image * case.batch / seconds / 1e12,
            **{name: given[-1][name] for name in ("compile_seconds", "first_step_seconds", "peak_mb")},
        }
        print(f"{case} {contender}: {case.batch / seconds:.1f} images/s", flush=True)
    return results


def ask(worker: subprocess.Popen) -> dict[str, float]:
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write("\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def ceiling(precision: str) -> float:
    """TFLOP/s of the best square matrix product."""
    best = 0.0
    for size in (1024, 2048, 4096) if jax.default_backend() == "cpu" else (4096, 8192, 16384):
        a = jnp.ones((size, size), precision)
        for options in ({}, xla.compiler_options()):
            product = jax.jit(jnp.matmul, compiler_options=options).lower(a, a).compile()
            for _ in range(4):
                start = time.perf_counter()
                jax.block_until_ready(product(a, a))
                best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e12)
    return best


def cases(tables: list[str], precisions: list[str], batches: list[int]) -> Iterator[Case]:
    for table, precision, batch in itertools.product(tables, precisions, batches):
        yield Case("train", table, precision, batch)
        if table != "CIFAR-sized":
            yield Case("infer", table, precision, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--precisions", default="float32")
    parser.add_argument("--batches", default="128")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--inner", type=int, default=0, help="steps of a repeat; 0: 1 on a CPU, 20 on a GPU")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="only a few, small batches; nothing is written")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        contender, case, inner = json.loads(arguments.work)
        return work(contender, Case(**case), inner)
    platform = jax.default_backend()
    if arguments.quick:
        arguments.tables, arguments.batches, arguments.repeats = "CIFAR-sized", "32", 3
    batches = [int(batch) for batch in arguments.batches.split(",")]
    tables, precisions, contenders = (
        getattr(arguments, name).split(",") for name in ("tables", "precisions", "contenders")
    )
    rows = [
        {**dataclasses.asdict(case), "gflop_per_image": case.flop_per_image / 1e9}
        | {
            "results": measured(
                case, contenders, arguments.repeats, arguments.inner or (1 if platform == "cpu" else 20)
            )
        }
        for case in cases(tables, precisions, batches)
    ]
    ceilings = {precision: ceiling(precision) for precision in precisions}
    if not arguments.quick:
        from importlib.metadata import version

        device = jax.devices()[0].device_kind
        save(f"throughput_{platform}", device=device, ceiling_tflops=ceilings, rows=rows, torch=version("torch"))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
