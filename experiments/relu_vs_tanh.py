"""Figure 1: "a four-layer convolutional neural network with ReLUs reaches a 25 % training error rate on CIFAR-10 six
times faster than an equivalent network with tanh neurons".

  python experiments/relu_vs_tanh.py --dataset=CIFAR10 --workdir=DIR      6 minutes on an H100, its four parts at once
  python experiments/relu_vs_tanh.py --dataset=CIFAR10 --quick            a minute

CIFAR10: as cifar.py says. Which network it was is not known; the two likeliest of 2012 are run: three convolutions and
one dense layer, and the same with a dense layer of 64 between. No regularisation: no decay, dropout, crops or
reflections. For each network and each non-linearity the rate is the one that reaches 25 % soonest: all rates train for
some epochs, and the two best of them until they are there; then the best with two more seeds. The error is that of the
whole training set, every half epoch (tanh: every epoch), as a mean of three of them; the time is where a line between
two of these falls through 25 %. Expected: ReLU 7 and 4.5 times faster. Finished trainings stay in DIR; the
same command goes on after them. --network=… --name=… does a part, so that several processes can share the work; the
command without them then writes the log.

--quick trains both for 200 steps and says whether the errors are those that are kept in results/.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from cifar import THREE_CONV, THREE_CONV_TWO_DENSE, check_quick, error_after
from record import save
from training import Run, parsed, reached, remembered

from alexnet_jax import Config, open_dataset, relu, with_steps
from alexnet_jax.paper.table import Layers

NETWORKS = {"3 conv + fc10": THREE_CONV, "3 conv + fc64 + fc10": THREE_CONV_TWO_DENSE}
TARGET = 0.25
RATES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
# Of each rate first, at most, and between two looks: all is slower with tanh.
SWEEP_EPOCHS, MOST_EPOCHS, EVERY = {"ReLU": 3.0, "tanh": 6.0}, {"ReLU": 20.0, "tanh": 60.0}, {"ReLU": 0.5, "tanh": 1.0}


def with_non_linearity(name: str, layers: Layers) -> Layers:
    return layers if name == "ReLU" else with_steps(layers, {relu: jnp.tanh})


def without_regularisation(layers: Layers, dataset: str, rate: float, seed: int) -> Run:
    config = Config(
        crop_size=32, reflect=False, color_scale=0.0, weight_decay=0.0, seed=seed,
        learning_rate=rate, bias_learning_rate=2 * rate,
    )  # fmt: skip
    return Run(layers, config, open_dataset(dataset))


def curve(layers: Layers, dataset: str, rate: float, seed: int, most: float, every: float) -> dict[str, Any]:
    """The error on the whole training set, every so often, up to the epoch `most` or until it is at the target."""
    run = without_regularisation(layers, dataset, rate, seed)
    points = [(0.0, run.errors("train").top1_error)]
    for epoch in run.epochs(most, every):
        points.append((epoch, run.errors("train").top1_error))
        print(f"rate {rate:g}, seed {seed}, epoch {epoch:.1f}: training error {points[-1][1]:.1%}", flush=True)
        if reached(points, TARGET):
            break
    return {"epochs": [epoch for epoch, _ in points], "errors": [error for _, error in points]}


def soonest(curves: dict[float, dict[str, Any]]) -> list[float]:
    """The rates, the best first: those that came to the target in order, then the others by their last error."""

    def rank(rate: float) -> tuple[float, float]:
        of = curves[rate]["result"]
        epoch = reached(list(zip(of["epochs"], of["errors"], strict=True)), TARGET)
        return (float("inf") if epoch is None else epoch, of["errors"][-1])

    return sorted(curves, key=rank)


def study(network: str, name: str, dataset: str, workdir: Path, seeds: list[int]) -> dict[str, Any]:
    """Of one network and non-linearity: the rates tried, the one chosen, and its curves."""
    layers = with_non_linearity(name, NETWORKS[network])

    def run(rate: float, seed: int, most: float, every: float = EVERY[name]) -> dict[str, Any]:
        file = workdir / f"{network.replace(' ', '')}_{name}_{rate:g}_{seed}_{most:g}_{every:g}.json"
        return remembered(file, dataset, lambda: curve(layers, dataset, rate, seed, most, every))

    sweep = {rate: run(rate, 0, SWEEP_EPOCHS[name], every=SWEEP_EPOCHS[name]) for rate in RATES}
    finals = {rate: run(rate, 0, MOST_EPOCHS[name]) for rate in soonest(sweep)[:2]}
    rate = soonest(finals)[0]
    if rate in (min(RATES), max(RATES)):
        print(f"{network}, {name}: the best rate is at the end of those tried, {rate:g}", flush=True)
    curves = [run(rate, seed, MOST_EPOCHS[name]) for seed in seeds]
    return {"sweep": sweep, "finals": finals, "rate": rate, "curves": curves}


def quick(dataset: str) -> dict[str, float]:
    """The training error of both after 200 steps."""
    networks = {name: with_non_linearity(name, THREE_CONV) for name in ("ReLU", "tanh")}
    return {
        name: error_after(without_regularisation(layers, dataset, rate=0.001, seed=0), 200, "train")
        for name, layers in networks.items()
    }


def main() -> None:
    arguments = parsed(__doc__, network=NETWORKS, name=SWEEP_EPOCHS)
    if arguments.quick:
        return check_quick("relu_vs_tanh", quick(arguments.dataset))
    results = {
        f"{network}, {name}": study(network, name, arguments.dataset, arguments.workdir, arguments.seeds)
        for network in arguments.network
        for name in arguments.name
    }
    if len(results) == len(NETWORKS) * len(SWEEP_EPOCHS):
        save("relu_vs_tanh", target=TARGET, seeds=arguments.seeds, results=results)


if __name__ == "__main__":
    main()
