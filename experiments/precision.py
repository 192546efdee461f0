"""Training in bfloat16 against float32: whether the loss curves differ by more than the seeds do.

  python experiments/precision.py --dataset=PREPARED --workdir=DIR     half an hour on two cores, for 4,000 images

PREPARED: what alexnet_jax.prepare wrote. Runs of the default network, each seed in both precisions. Expected: on a
GPU's tensor cores bfloat16 is for speed; on most CPUs it is slower than float32, and only the curves matter here.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from record import save

from alexnet_jax.runs.log import METRICS, read_metrics

PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    flags = [
        f"--epochs={arguments.epochs}",
        f"--learning_rate_drops={0.75 * arguments.epochs}",
        "--log_every=0.5epochs",
    ]
    runs = []
    for seed in range(arguments.seeds):
        for precision in PRECISIONS:
            workdir = arguments.workdir / f"{precision}_{seed}"
            own = [f"--workdir={workdir}", f"--dataset={arguments.dataset}", f"--seed={seed}"]
            command = [sys.executable, "-m", "alexnet_jax.main", *own, f"--precision={precision}", *flags]
            subprocess.run(command, check=True)
            lines = read_metrics(workdir / METRICS)
            result = json.loads((workdir / "result.json").read_text())
            runs.append(
                {
                    "precision": precision,
                    "seed": seed,
                    "loss": {round(line["epoch"], 1): line["loss"] for line in lines if line["split"] == "train"},
                    "top1_error": result["top1_error"],
                    "images_per_second": result["images_per_second"],
                }
            )
    save("precision", flags=flags, runs=runs)


if __name__ == "__main__":
    main()
