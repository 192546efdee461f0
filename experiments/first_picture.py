"""docs/first_run.png: what `python -m alexnet_jax.main --workdir=RUN` learned: its errors, and eight of its answers.

python experiments/first_picture.py --workdir=RUN --figure=docs/first_run.png
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from alexnet_jax import load
from alexnet_jax.data.input_pipeline import batch_of
from alexnet_jax.figures import BLUE, ORANGE
from alexnet_jax.paper.evaluate import likeliest
from alexnet_jax.runs.log import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a run on the built-in data set")
    parser.add_argument("--figure", type=Path, required=True, help="the picture to write")
    given = parser.parse_args()
    network, lines = load(given.workdir), read_metrics(given.workdir / "metrics.jsonl")
    some = batch_of(network.open_dataset(), "validation", np.linspace(0, 499, 8).astype(int))
    tops = [likeliest(row, network.class_names, 3) for row in np.asarray(network.probabilities(some.images))]

    figure = Figure(figsize=(8.4, 2.75), layout="constrained")
    curve, answers = figure.subfigures(1, 2, width_ratios=[1, 1.45])
    axes = curve.subplots()
    for split, color, label in (("train", BLUE, "training (augmented)"), ("validation", ORANGE, "validation")):
        of = [line for line in lines if line["split"] == split]
        axes.plot(
            [line["epoch"] for line in of],
            [100 * line["top1_error"] for line in of],
            color=color,
            label=label,
            linewidth=1.2,
            marker="o" if split == "validation" else None,
            markersize=4,
        )
    axes.set_xlabel("epochs", fontsize=8)
    axes.set_ylabel("top-1 error, %", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_xlim(0, 4.08)
    axes.set_ylim(0, 100)
    axes.set_xticks(range(5))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="lower left")
    panels = answers.subplots(4, 4, height_ratios=[2.2, 1, 2.2, 1])
    for place, (image, top, label) in enumerate(zip(some.images, tops, some.labels, strict=True)):
        above, below = panels[2 * (place // 4) :, place % 4][:2]
        above.imshow(image)
        for number, (name, probability) in enumerate(top):
            color = ORANGE if name == network.class_names[label] else BLUE
            below.barh(number, probability, color=color, alpha=0.45)
            below.text(0.02, number, f"{name}  {probability:.0%}", va="center", fontsize=6.5)
        below.set_xlim(0, 1)
        below.set_ylim(2.5, -0.5)
    for axes in panels.flat:
        axes.set_axis_off()
    figure.savefig(given.figure, dpi=150)


if __name__ == "__main__":
    main()
