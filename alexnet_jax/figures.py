"""The paper's pictures."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

BLUE, ORANGE = "#1f5fa8", "#d9631e"


def save_curves(metrics: list[dict[str, Any]], file: Path) -> None:
    """Learning curves from the lines of a metrics.jsonl: loss and top-1 error by epoch, training and validation."""
    train = [line for line in metrics if line["split"] == "train"]
    validation = [line for line in metrics if line["split"] == "validation"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, train_key, validation_key, factor in (
        (left, "loss", "nll", 1),
        (right, "top1_error", "top1_error", 100),
    ):
        epochs = [line["epoch"] for line in train]
        axes.plot(epochs, [factor * line[train_key] for line in train], color=BLUE, linewidth=1,
                  label="training (augmented, with dropout)")  # fmt: skip
        axes.plot([line["epoch"] for line in validation], [factor * line[validation_key] for line in validation],
                  color=ORANGE, marker="o", markersize=3, label="validation")  # fmt: skip
        for before, after in itertools.pairwise(train):
            if before["learning_rate"] != after["learning_rate"]:
                axes.axvline(before["epoch"], color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xlabel("epochs")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("cross-entropy, nats")
    right.set_ylabel("top-1 error, %")
    left.legend(frameon=False, fontsize=8)
    _save(figure, file)


def save_kernels(kernel: Float[np.ndarray, "window window 3 features"], file: Path, *, columns: int = 16) -> None:
    """The first layer's kernels as the paper's Figure 3 shows them: 16 a row, all on one scale, zero as grey."""
    window, features = kernel.shape[0], kernel.shape[-1]
    rows = -(-features // columns)
    scaled = 0.5 + 0.5 * kernel / max(float(np.abs(kernel).max()), 1e-12)
    sheet = np.ones((rows * (window + 1) - 1, columns * (window + 1) - 1, 3))
    for index in range(features):
        top, left = (window + 1) * np.array(divmod(index, columns))
        sheet[top : top + window, left : left + window] = scaled[..., index]
    figure = Figure(figsize=(columns * 0.55, rows * 0.55 + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{features} kernels of {window}×{window}×3, first layer", fontsize=9)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
