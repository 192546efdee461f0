"""The paper's network in full width on Imagenette, by §5's recipe and its plateau rule to the end.

  python experiments/imagenette.py --workdir=DIR --source=IMAGENETTE               6 hours on two cores
  python experiments/imagenette.py --workdir=DIR --source=IMAGENETTE --so_far      the same of the last checkpoint

IMAGENETTE: what alexnet_jax.prepare takes: ten ImageNet classes, 9,469 training and 3,925 validation photographs. The
numbers in results/ are of copies of 224 × 224 pixels, scaled to §2's 256. Everything goes through the commands as a
user gives them; where it is stopped, the same command goes on. Logged: errors by epoch, those of the centre and of ten
views with 95 % of bootstrap samples of the images, and Figure 3 in numbers, by GPU. Expected: about 20 % error, as
other networks of this size have that saw nothing else and no other augmentation.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from first_runs import run
from kernels_and_neighbors import neighbors, selectivity
from record import save
from specialisation import colorfulness, halves

from alexnet_jax import load
from alexnet_jax.runs.log import METRICS, read_metrics

FLAGS = ["--preset=paper", "--epochs=60", "--checkpoint_every=20"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--so_far", action="store_true")
    arguments = parser.parse_args()
    prepared, workdir = arguments.workdir / "prepared", arguments.workdir / f"seed{arguments.seed}"
    if not prepared.exists():
        run(["alexnet_jax.prepare", f"--source={arguments.source}", f"--output={prepared}"])
    if not arguments.so_far:
        run(["alexnet_jax.main", f"--workdir={workdir}", f"--dataset={prepared}", f"--seed={arguments.seed}", *FLAGS])
    errors = {}
    for views in (1, 10):
        output = workdir / f"views{views}"
        asked = ["--mode=evaluate", f"--views={views}", f"--output={output}"]
        run(["alexnet_jax.main", f"--workdir={workdir}", *asked])
        errors[views] = json.loads((output / "result.json").read_text())["networks"][0]

    network = load(workdir)
    dataset = network.open_dataset("")
    kernels = np.asarray(network.params["conv1"]["kernel"])
    colors, selective = colorfulness(kernels), selectivity(kernels)
    random = selectivity(np.random.default_rng(0).standard_normal((*kernels.shape[:3], 1000)))
    above = {kind: of > np.quantile(random[kind], 0.95) for kind, of in selective.items()}
    metrics = read_metrics(workdir / METRICS)
    config = json.loads((workdir / "config.json").read_text())
    save(
        f"imagenette_seed{arguments.seed}",
        flags=FLAGS,
        versions=config["versions"],
        commit=config["commit"],
        config=config["config"],
        images={split: len(of) for split, of in dataset.splits.items()},
        epochs=network.step * network.config.batch_size / len(dataset.splits["train"]),
        errors=errors,
        training_loss_by_step={line["step"]: round(line["loss"], 4) for line in metrics if line["split"] == "train"},
        validation_error_by_epoch={
            round(line["epoch"], 2): line["top1_error"] for line in metrics if line["split"] == "validation"
        },
        rate_by_epoch={
            round(line["epoch"], 2): line["learning_rate"] for line in metrics if line["split"] == "train"
        },
        colorfulness={"of each kernel": colors, **halves(colors)},
        selective={
            kind: [float(of.mean()) for of in np.split(kernels, 2)] for kind, kernels in above.items()
        },  # the share of each GPU's kernels that are more so than 95 % of random ones
        neighbors=neighbors(network, dataset),
    )  # fmt: skip


if __name__ == "__main__":
    main()
