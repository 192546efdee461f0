"""§6.1: "the kernels on GPU 1 are largely color-agnostic, while the kernels on GPU 2 are largely color-specific. This
kind of specialization occurs during every run": is it so here?

  python experiments/specialisation.py                    seconds: of the networks that ablations.py has trained
  python experiments/specialisation.py --workdir=A,B,C    of other runs of alexnet_jax.main

Each kernel of the first layer has a colourfulness: the share of its energy that is not grey. A run counts as
specialised where the mean of one GPU's kernels is further from the other's than in 95 % of random divisions of the same
kernels: of runs without any specialisation 5 % do. Expected: the paper's networks saw 1.2 million images for 90 epochs;
these are small and saw 4,000 for 24.
"""

import argparse
from typing import Any

import numpy as np
from record import log, save

from alexnet_jax import load

DIVISIONS = 10_000


def colorfulness(kernels: np.ndarray) -> list[float]:
    """Of each kernel (window, window, 3, features): the share of its energy that is not grey, equal in red, green and
    blue. 0: blind to colour; 2/3: as at random.
    """
    kernels = kernels.astype(np.float64)
    grey = 3 * (kernels.mean(axis=2) ** 2).sum(axis=(0, 1))
    return (1 - grey / (kernels**2).sum(axis=(0, 1, 2))).tolist()


def halves(of_kernels: list[float], seed: int = 0) -> dict[str, Any]:
    """The means of the two GPUs, and how many random divisions of the kernels have means as far apart."""
    values = np.array(of_kernels)
    half = len(values) // 2

    def apart(values: np.ndarray) -> np.ndarray:
        return np.abs(values[..., :half].mean(-1) - values[..., half:].mean(-1))

    divided = np.random.default_rng(seed).permuted(np.tile(values, (DIVISIONS, 1)), axis=1)
    chance = float((apart(divided) >= apart(values) - 1e-12).mean())
    return {"means": [float(values[:half].mean()), float(values[half:].mean())], "chance": chance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="")
    arguments = parser.parse_args()
    runs: dict[str, list[float]] = {}
    for workdir in filter(None, arguments.workdir.split(",")):
        runs[workdir] = colorfulness(np.asarray(load(workdir).params["conv1"]["kernel"]))
    if not runs:
        for variant, trainings in log("ablations")["results"].items():
            if variant != "one GPU":
                runs |= {f"{variant}, {n}": of["result"]["colorfulness"] for n, of in enumerate(trainings)}
    found = {name: halves(of_kernels) for name, of_kernels in runs.items()}
    for name, of in found.items():
        print(f"{name}: {of['means'][0]:.3f} and {of['means'][1]:.3f}, by chance {of['chance']:.1%}")
    if not arguments.workdir:
        save("specialisation", runs=found)


if __name__ == "__main__":
    main()
