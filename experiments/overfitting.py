"""§4: overfitting, and its two cures: random crops and reflections (§4.1), and dropout (§4.2), which "roughly doubles
the number of iterations required to converge".

  python experiments/overfitting.py --dataset=CIFAR10 --workdir=DIR      72 minutes on one core
  python experiments/overfitting.py --dataset=CIFAR10 --quick            a minute

CIFAR10: as cifar.py says. Few images and many weights: every tenth image of the training set, three convolutions and a
dense layer of 512, no weight decay, one rate throughout. Four runs: neither cure, each alone, both; three seeds each.
Every three epochs the errors on the training images and on the test set, of whole images or, where the crops are
random, of the centre. Expected: without a cure the training error goes to zero and the test error stays up, and the
loss there rises; either cure lowers it, and the training takes longer. Finished trainings stay in DIR; the same command
goes on after them. --name=… does a part, so that several processes can share the work; the command without it then
writes the log.

--quick trains without a cure and with both for 200 steps, and says whether the errors are those kept in results/.
"""

import functools
from typing import Any

from cifar import THREE_CONV, check_quick, error_after
from record import save
from training import Run, one_in, parsed, reached, remembered, smoothed

from alexnet_jax import Config, Dense, dropout, relu
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.paper.table import Layers

RUNS = {
    "neither": {"augmented": False, "dropped": False},
    "crops and reflections": {"augmented": True, "dropped": False},
    "dropout": {"augmented": False, "dropped": True},
    "both": {"augmented": True, "dropped": True},
}
EPOCHS, EVERY, LEARNED = 60.0, 3.0, 0.4


def network(dropped: bool) -> Layers:
    then = (relu, dropout) if dropped else (relu,)
    return (*THREE_CONV[:3], Dense(512, std=0.03, then=then), Dense(10, std=0.03))


def start(dataset: str, seed: int, augmented: bool, dropped: bool) -> Run:
    config = Config(
        crop_size=28 if augmented else 32, crop_to_edge=True, reflect=augmented, color_scale=0.0,
        weight_decay=0.0, learning_rate=0.001, bias_learning_rate=0.002, seed=seed,
    )  # fmt: skip
    return Run(network(dropped), config, one_in(10, open_dataset(dataset)))


def curves(name: str, dataset: str, seed: int, epochs: float, every: float) -> dict[str, list[float]]:
    run = start(dataset, seed, **RUNS[name])
    found: dict[str, list[float]] = {"epochs": [], "training error": [], "test error": [], "test loss": []}
    for epoch in run.epochs(epochs, every):
        training, test = run.errors("train"), run.errors("validation")
        for of, value in zip(found, (epoch, training.top1_error, test.top1_error, test.nll), strict=True):
            found[of].append(value)
        print(
            f"{name}, seed {seed}, epoch {epoch:g}: {training.top1_error:.1%}, test {test.top1_error:.1%}", flush=True
        )
    return found


def converged(run: dict[str, list[float]]) -> float:
    """The epoch at which the test error, the mean of three looks, comes within a point of its lowest."""
    means = smoothed(run["test error"])[1:-1]
    return next(epoch for epoch, mean in zip(run["epochs"][1:], means, strict=False) if mean <= min(means) + 0.01)


def learned(run: dict[str, list[float]]) -> float | None:
    """The epoch at which the training error comes to LEARNED."""
    return reached(list(zip(run["epochs"], run["training error"], strict=True)), LEARNED)


def quick(dataset: str) -> dict[str, float]:
    """The test error after 200 steps."""
    return {name: error_after(start(dataset, 0, **RUNS[name]), 200, "validation") for name in ("neither", "both")}


def main() -> None:
    arguments = parsed(__doc__, name=RUNS)
    if arguments.quick:
        return check_quick("overfitting", quick(arguments.dataset))
    results: dict[str, list[Any]] = {name: [] for name in arguments.name}
    for seed in arguments.seeds:
        for name, of in results.items():
            compute = functools.partial(curves, name, arguments.dataset, seed, EPOCHS, EVERY)
            file = arguments.workdir / f"{name}_{seed}_{EPOCHS:g}_{EVERY:g}.json"
            of.append(remembered(file, arguments.dataset, compute))
    if len(results) == len(RUNS):
        save("overfitting", epochs=EPOCHS, seeds=arguments.seeds, results=results)


if __name__ == "__main__":
    main()
