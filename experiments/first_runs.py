"""The first runs of a newcomer: the built-in data set, one's own photographs, and the paper's network on them.

  python experiments/first_runs.py shapes --workdir=DIR                      2 minutes on two cores: 15 % error or less
  python experiments/first_runs.py photos --workdir=DIR --source=PHOTOS      20 minutes: 55 % or less (chance 90 %)
  python experiments/first_runs.py paper --workdir=DIR --source=PHOTOS       as long as --epochs says: about 4 minutes
  python experiments/first_runs.py original --workdir=DIR --source=PHOTOS    each for 4,000 images on two cores

PHOTOS: what alexnet_jax.prepare takes; the numbers in results/ are of ten ImageNet classes of 400 training and 100
validation photographs each. Every run goes through the two commands as a user gives them.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from record import save

from alexnet_jax.runs.log import METRICS, read_metrics

FLAGS = {
    "shapes": [],
    "photos": ["--epochs=20", "--learning_rate_drops=15"],
    # All 1,000 outputs, though the photographs have ten classes: the network is the paper's to the last parameter.
    "paper": ["--preset=paper", "--num_classes=1000", "--log_every=1"],
    "original": ["--preset=original", "--num_classes=1000", "--log_every=1"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=FLAGS)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--source")
    parser.add_argument("--epochs", help="instead of the run's own number")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--note", help="kept in the log, for example: the machine had other work")
    arguments = parser.parse_args()

    name = arguments.run + (f"_seed{arguments.seed}" if arguments.seed != "0" else "")
    workdir = arguments.workdir / name
    train = ["alexnet_jax.main", f"--workdir={workdir}", f"--seed={arguments.seed}", *FLAGS[arguments.run]]
    if arguments.epochs:
        train.append(f"--epochs={arguments.epochs}")
    seconds = {}
    if arguments.run != "shapes":
        if not arguments.source:
            parser.error(f"{arguments.run} needs --source=PHOTOS")
        prepared = arguments.workdir / "prepared"
        if not prepared.exists():
            prepare = ["alexnet_jax.prepare", f"--source={arguments.source}", f"--output={prepared}"]
            seconds["prepare"] = run(prepare)
        train.append(f"--dataset={prepared}")
    seconds["train"] = run(train)

    config = json.loads((workdir / "config.json").read_text())
    metrics = read_metrics(workdir / METRICS)
    save(
        f"first_runs_{name}",
        note=arguments.note,
        flags=[flag for flag in train[1:] if not flag.startswith(("--workdir", "--dataset"))],
        wall_seconds=seconds,
        versions=config["versions"],
        commit=config["commit"],
        config=config["config"],
        result=json.loads((workdir / "result.json").read_text()),
        loss_by_step={line["step"]: round(line["loss"], 4) for line in metrics if line["split"] == "train"},
        validation_error_by_epoch={
            round(line["epoch"], 2): line["top1_error"] for line in metrics if line["split"] == "validation"
        },
    )


def run(command: list[str]) -> float:
    """Runs `python -m …`; returns its wall-clock seconds, start of Python, compilation and all."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True)
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    main()
