"""Large batches: what 8 and 32 times the batch cost in accuracy, as it is and by the rules of 2014 and 2017.

  python experiments/large_batches.py --dataset=CIFAR10 --workdir=DIR      35 minutes on one core

CIFAR10: as cifar.py says. A fifth of the training images, 24 × 24 crops and reflections, three convolutions and a dense
layer, 6 epochs, a tenth of the rate in the last quarter. The batch of 32 is the measure; 256 and 1,024 images a step
are trained for as many epochs, so in an 8th and a 32nd of the steps: with the rates as they are, by the two rules of
`config.for_batch` (Krizhevsky 2014), and by LARS (You et al. 2017) with a warm-up of an epoch. The first two have no
freedom. LARS has a rate of its own, and that of the first batch is not its measure: the best of RATES, by the error of
one training with another seed. Errors are those of the centre on the test set; a loss that is no number any more counts
as 90 %.

Expected: with the rates as they are the error rises by some 20 points at 256 and 40 at 1,024. The linear rule gives
most of that back at 256 and diverges at 1,024; the square root gives back half at 256, and less at 1,024. Finished
trainings stay in DIR; the same command goes on after them. --rule=… and --seeds=… do a part; the command without them
then writes the log.
"""

import dataclasses
import functools
import math
from typing import Any

from cifar import THREE_CONV
from record import save
from training import Run, one_in, parsed, remembered

from alexnet_jax import Config, open_dataset
from alexnet_jax.config import for_batch

BASE = Config(
    batch_size=32, epochs=6.0, learning_rate=0.001, learning_rate_drops=(4.5,), bias_learning_rate=0.002,
    bias_learning_rate_drops=(4.5,), crop_size=24, crop_to_edge=True, color_scale=0.0,
)  # fmt: skip
PART = 5  # one in so many training images
BATCHES = (256, 1024)
RULES = ("as it is", "linear", "sqrt", "LARS")
RATES, SEED_OF_RATES = (8.0, 32.0, 128.0), 100  # of LARS


def config_of(rule: str, batch_size: int, rate: float = 0.0) -> Config:
    """How the network is trained at a batch size. rate: of LARS."""
    if rule == "as it is":
        return dataclasses.replace(BASE, batch_size=batch_size)
    if rule == "LARS":  # the biases' rate as in the preset
        rest = {"learning_rate": rate, "weight_decay": BASE.weight_decay, "trust_coefficient": 0.001}
        return dataclasses.replace(for_batch(BASE, batch_size, "sqrt"), **rest, warmup_epochs=1.0)
    return for_batch(BASE, batch_size, rule)


def trained(config: Config, dataset: str) -> dict[str, float]:
    """The error at the end, and the loss."""
    run = Run(THREE_CONV, config, one_in(PART, open_dataset(dataset)))
    list(run.epochs(config.epochs, every=config.epochs))
    errors = run.errors("validation")
    return {"top1_error": errors.top1_error, "nll": errors.nll if math.isfinite(errors.nll) else None}


def main() -> None:
    arguments = parsed(__doc__, quick=False, rule=RULES)

    def result(rule: str, batch_size: int, seed: int, rate: float = 0.0) -> dict[str, Any]:
        config = dataclasses.replace(config_of(rule, batch_size, rate), seed=seed)
        name = f"{rule}, {batch_size}, seed {seed}" + f", rate {rate:g}" * bool(rate)
        file = arguments.workdir / f"{name}.json"
        kept = remembered(file, arguments.dataset, functools.partial(trained, config, arguments.dataset))
        print(f"{name}: error {kept['result']['top1_error']:.1%}", flush=True)
        return kept

    searched, results, rates = {}, {}, {}
    for rule in arguments.rule:
        for batch in (BASE.batch_size, *BATCHES) if rule == "as it is" else BATCHES:
            if rule == "LARS":
                searched[batch] = {rate: result(rule, batch, SEED_OF_RATES, rate) for rate in RATES}
                rates[batch] = min(RATES, key=lambda rate: searched[batch][rate]["result"]["top1_error"])
            of_seeds = [result(rule, batch, seed, rates.get(batch, 0.0)) for seed in arguments.seeds]
            results[f"{rule}, {batch}"] = of_seeds
    if len(arguments.rule) == len(RULES):
        save(
            "large_batches", seeds=arguments.seeds, epochs=BASE.epochs, first=f"as it is, {BASE.batch_size}",
            lars_rates=rates, searched=searched, results=results,
        )  # fmt: skip


if __name__ == "__main__":
    main()
