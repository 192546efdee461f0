"""Claims of the paper that need many trainings, on a network of its form for images of CIFAR-10 (5,000 of them).

  python experiments/small_claims.py --dataset=CIFAR10 --workdir=DIR        half an hour on two cores
  python experiments/small_claims.py --dataset=CIFAR10 --workdir=DIR --name="no decay"    a part of it

CIFAR10: as cifar.py says. The network, `SMALL`, has five convolutions and three dense layers as the paper's (groups,
normalisation after the first two, overlapping pooling after the first, second and fifth, dropout), at a tenth of its
widths. Each variant differs from it by the one thing that its name says; the rate is that of "small" for all:

  §5    "this small amount of weight decay was important for the model to learn … it reduces the model's training error"
  §5    biases of 1 in some layers accelerate "the early stages of learning": the loss over the first steps
  §3.1–3.4  "sorted according to our estimation of their importance": ReLU, two GPUs, normalisation, overlapping pooling
  §3.4  overlapping pooling makes it "slightly more difficult to overfit": test error minus training error
  §1, §7    "removing any convolutional layer … resulted in inferior performance" (the layer's pooling stays)
  §4.2  outputs × 0.5 approximate "the geometric mean of the predictive distributions" of the dropout networks

Expected: nothing; with 5,000 images and minutes of training an effect of the paper's size is not resolved. Finished
trainings stay in DIR; the same command goes on after them. --name=… and --seeds=… do a part, so that several processes
can share the work. The log has the variants that all seeds have finished.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cifar import largest
from record import save
from scipy import special
from training import Run, one_in, parsed, remembered

from alexnet_jax import (
    AlexNet,
    Config,
    Conv,
    Dense,
    dropout,
    lrn,
    max_pool,
    open_dataset,
    outputs,
    relu,
    with_column,
    with_steps,
)
from alexnet_jax.data import input_pipeline
from alexnet_jax.paper.architectures import no_normalization, one_gpu
from alexnet_jax.paper.augment import center_view, subtract_mean
from alexnet_jax.paper.table import Layers

EPOCHS, FIRST_STEPS, ONE_IN = 6.0, 100, 10
SMALL: Layers = (
    Conv(16, 5, padding=2, std=0.03, then=(relu, lrn, largest)),
    Conv(32, 5, padding=2, groups=2, std=0.05, bias=1.0, then=(relu, lrn, largest)),
    Conv(48, 3, padding=1, std=0.06, then=(relu,)),
    Conv(48, 3, padding=1, groups=2, std=0.06, bias=1.0, then=(relu,)),
    Conv(32, 3, padding=1, groups=2, std=0.06, bias=1.0, then=(relu, largest)),
    Dense(128, std=0.04, bias=1.0, then=(relu, dropout)),
    Dense(128, std=0.06, bias=1.0, then=(relu, dropout)),
    Dense(10, std=0.06),
)
CONFIG = Config(
    crop_size=28, batch_size=32, color_scale=0.0, learning_rate=0.01, learning_rate_drops=(5.0,), epochs=EPOCHS
)
apart = functools.partial(max_pool, window=2, stride=2, ceil_mode=True)  # 28 → 14 → 7 → 4, as overlapping


def without(number: int, layers: Layers) -> Layers:
    """The table without its convolution of this number, from 2 on. Its pooling stays, after the layer before."""
    removed, before = layers[number - 1], layers[number - 2]
    kept = tuple(step for step in removed.then if step.function is max_pool)
    return (*layers[: number - 2], dataclasses.replace(before, then=before.then + kept), *layers[number:])


@dataclasses.dataclass(frozen=True)
class Variant:
    layers: Layers = SMALL
    config: dict[str, Any] = dataclasses.field(default_factory=dict)


VARIANTS = {
    "small": Variant(),
    "no decay": Variant(config={"weight_decay": 0.0}),
    "biases of 0": Variant(with_column(SMALL, bias=(0.0,) * len(SMALL))),
    "tanh": Variant(with_steps(SMALL, {relu: jnp.tanh})),
    "one GPU": Variant(one_gpu(SMALL)),
    "no normalisation": Variant(no_normalization(SMALL)),
    "pooling does not overlap": Variant(with_steps(SMALL, {largest: apart})),
    **{f"without conv{number}": Variant(without(number, SMALL)) for number in (2, 3, 4, 5)},
}


def trained(name: str, dataset: str, seed: int) -> dict[str, Any]:
    """Errors and losses at the end, the training loss over the first steps, and, of "small", what dropout averages."""
    variant = VARIANTS[name]
    data = one_in(ONE_IN, open_dataset(dataset))
    run = Run(variant.layers, dataclasses.replace(CONFIG, seed=seed, **variant.config), data)
    looks = run.epochs(EPOCHS, every=FIRST_STEPS / run.steps_per_epoch)
    next(looks)
    first_loss = run.errors("train").nll
    list(looks)
    training, test = run.errors("train"), run.errors("validation")
    found: dict[str, Any] = {
        "first_loss": first_loss,
        "training_error": training.top1_error, "training_loss": training.nll,
        "test_error": test.top1_error, "test_loss": test.nll,
    }  # fmt: skip
    if name == "small":
        found["dropout"] = averages(run, variant.layers)
    print(f"{name}, seed {seed}: training {training.top1_error:.1%}, test {test.top1_error:.1%}", flush=True)
    return found


def averages(run: Run, layers: Layers, images: int = 1000, networks: int = 200) -> dict[str, float]:
    """Of test images: the answers with outputs × 0.5 beside the normalised geometric mean of the answers of `networks`
    dropout networks, beside their arithmetic mean, and beside one of them. Divergences are in nats, errors top-1.
    """
    numbers = np.linspace(0, len(run.dataset.splits["validation"]) - 1, images).astype(int)
    batch = input_pipeline.batch_of(run.dataset, "validation", numbers)
    mean_image = jnp.asarray(run.dataset.statistics.mean_image, jnp.float32)
    views = center_view(subtract_mean(jnp.asarray(batch.images), mean_image), run.config.crop_size)
    params = jax.device_get(run.state.params)
    last_map = outputs(AlexNet(layers), {"params": params}, views, ["conv5:pool"])["conv5:pool"]
    rng, inputs = np.random.default_rng(2012), np.asarray(last_map, np.float64).reshape(images, -1)

    def answer(keep: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The logarithms of the answers of the three dense layers, where `keep` is applied after the first two."""
        x = inputs
        for name in ("fc6", "fc7"):
            x = keep(np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0))
        return np.asarray(special.log_softmax(x @ params["fc8"]["kernel"] + params["fc8"]["bias"], axis=-1))

    halved = answer(lambda x: x / 2)
    answers = [answer(lambda x: x * (rng.random(x.shape) < 0.5)) for _ in range(networks)]
    geometric = special.log_softmax(np.mean(answers, axis=0), axis=-1)
    arithmetic, single = special.logsumexp(answers, axis=0) - np.log(networks), answers[0]

    def divergence(of: np.ndarray) -> float:
        return float((np.exp(of) * (of - halved)).sum(-1).mean())

    def error(of: np.ndarray) -> float:
        return float((of.argmax(-1) != batch.labels).mean())

    kinds = {"halved": halved, "geometric": geometric, "arithmetic": arithmetic, "single": single}
    found = {f"{name}_error": error(of) for name, of in kinds.items()}
    found |= {f"{name}_divergence": divergence(of) for name, of in kinds.items() if name != "halved"}
    return {**found, "same_answer": float((geometric.argmax(-1) == halved.argmax(-1)).mean())}


def main() -> None:
    arguments = parsed(__doc__, quick=False, name=VARIANTS)

    def file(name: str, seed: int) -> Path:
        return arguments.workdir / f"{name}_{seed}_{EPOCHS:g}.json"

    for name in arguments.name:
        for seed in arguments.seeds:
            compute = functools.partial(trained, name, arguments.dataset, seed)
            remembered(file(name, seed), arguments.dataset, compute)
    results = {
        name: [json.loads(file(name, seed).read_text()) for seed in arguments.seeds]
        for name in VARIANTS
        if all(file(name, seed).exists() for seed in arguments.seeds)
    }
    if "small" in results and len(results) > 1:
        save("small_claims", seeds=arguments.seeds, epochs=EPOCHS, results=results)


if __name__ == "__main__":
    main()
