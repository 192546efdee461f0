"""The paper's pictures."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float, Int, UInt8

from alexnet_jax.files import named_in_errors
from alexnet_jax.options import InputError
from alexnet_jax.shown import reason, shown

try:
    from matplotlib.figure import Figure
except ValueError as error:  # a setting of somebody's, as MPLBACKEND
    raise InputError(f"matplotlib: cannot be used with its settings ({reason(error)})") from error

BLUE, ORANGE = "#1f5fa8", "#d9631e"


def save_curves(metrics: list[dict[str, Any]], file: Path) -> None:
    """Learning curves from the lines of a metrics.jsonl: loss and top-1 error by epoch, training and validation."""
    train = [line for line in metrics if line.get("split") == "train"]

    def points(split: str, key: str, factor: float) -> list[tuple[float, float]]:
        """Of the lines that say it, which need not be all: what a run's folder says is only as good as it is."""
        lines = [line for line in metrics if line.get("split") == split]
        found: list[tuple[Any, Any]] = [(line.get("epoch"), line.get(key)) for line in lines]
        return [(epoch, factor * value) for epoch, value in found if _is_drawn(epoch) and _is_drawn(value)]

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, train_key, validation_key, factor in (
        (left, "loss", "nll", 1),
        (right, "top1_error", "top1_error", 100),
    ):
        axes.plot(*np.reshape(points("train", train_key, factor), (-1, 2)).T, color=BLUE, linewidth=1,
                  label="training (augmented, with dropout)")  # fmt: skip
        axes.plot(*np.reshape(points("validation", validation_key, factor), (-1, 2)).T, color=ORANGE, marker="o",
                  markersize=3, label="validation")  # fmt: skip
        for before, after in itertools.pairwise(train):
            # None where the optimizer is one's own.
            if before.get("learning_rate") != after.get("learning_rate") and _is_drawn(before.get("epoch")):
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


def _is_drawn(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e30


def save_kernels(
    kernel: Float[np.ndarray, "window window 3 features"], file: Path, *, gpus: int = 1, columns: int = 16
) -> None:
    """The first layer's kernels as the paper's Figure 3 shows them: 16 a row, those of each GPU apart, all on one
    scale, zero as grey.
    """
    window, features = kernel.shape[0], kernel.shape[-1]
    of_gpu = features // gpus
    cell = window + 1
    height = -(-of_gpu // columns) * cell + cell // 2  # of a GPU's rows, and the space below
    scaled = 0.5 + 0.5 * kernel / max(float(np.abs(kernel).max()), 1e-12)
    sheet = np.ones((gpus * height - cell // 2 - 1, columns * cell - 1, 3))
    for index in range(features):
        gpu, place = divmod(index, of_gpu)
        top, left = cell * np.array(divmod(place, columns))
        top += gpu * height
        sheet[top : top + window, left : left + window] = scaled[..., index]
    figure = Figure(figsize=(columns * 0.55, len(sheet) / cell * 0.55 + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    apart = f", {of_gpu} of each of {gpus} GPUs" if gpus > 1 else ""
    axes.set_title(f"{features} kernels of {window}×{window}×3, first layer{apart}", fontsize=9)
    _save(figure, file)


def save_predictions(
    images: Sequence[UInt8[np.ndarray, "size size 3"]],
    tops: Sequence[Sequence[tuple[str, float]]],
    labels: Sequence[str | None],
    file: Path,
    *,
    columns: int = 4,
) -> None:
    """As Figure 4, left: each image, its true class where it is known, and the likeliest classes as bars, (class,
    probability) each; that of the true class in another colour.
    """
    columns = min(columns, len(images))
    rows, bars = -(-len(images) // columns), max(map(len, tops))
    height = 2.2 + 0.2 * bars
    figure = Figure(figsize=(2.2 * columns, height * rows), layout="constrained")
    panels = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.0, 0.2 * bars] * rows)
    for place, (image, top, label) in enumerate(zip(images, tops, labels, strict=True)):
        above, below = panels[2 * (place // columns) :, place % columns][:2]
        above.imshow(image)
        above.set_title(_shortened(label or ""), fontsize=8, parse_math=False)
        for number, (name, probability) in enumerate(top):
            below.barh(number, probability, color=ORANGE if name == label else BLUE, alpha=0.45)
            below.text(0.01, number, _shortened(name), va="center", fontsize=7, parse_math=False)
        below.set_xlim(0, 1)
        below.set_ylim(bars - 0.5, -0.5)
    for axes in panels.flat:
        axes.set_axis_off()
    _save(figure, file)


def save_activations(
    image: UInt8[np.ndarray, "size size 3"],
    maps: Float[np.ndarray, "height width kernels"],
    name: str,
    file: Path,
    *,
    columns: int = 16,
) -> None:
    """An image and what each kernel of a layer makes of it, dark where it answers most; each on a scale of its own."""
    height, width, kernels = maps.shape
    rows = -(-kernels // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), 0.8)  # a grid of grey between the maps
    for index in range(kernels):
        top, left = np.array(divmod(index, columns)) * (height + 1, width + 1)
        one = maps[..., index] - min(0.0, float(maps[..., index].min()))
        sheet[top : top + height, left : left + width] = 1 - one / max(float(one.max()), 1e-12)
    tall = max(2.4, 0.45 * rows + 0.3)
    figure = Figure(figsize=(2.6 + 0.45 * columns, tall), layout="constrained")
    left_axes, right = figure.subplots(1, 2, width_ratios=[2.4, 0.45 * columns])
    left_axes.imshow(image)
    right.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    right.set_title(f"{_shortened(name)}: {kernels} maps of {height}×{width}", fontsize=9, parse_math=False)
    for axes in (left_axes, right):
        axes.set_axis_off()
    _save(figure, file)


def save_explanations(
    images: Sequence[UInt8[np.ndarray, "size size 3"]],
    maps: Sequence[Float[np.ndarray, "height width"]],
    titles: Sequence[str],
    file: Path,
    *,
    columns: int = 3,
) -> None:
    """Each image, and beside it in grey, under what a map says of its places: orange speaks for the class, purple
    against it, each map on a scale of its own. Maps are of any size, and cover the image.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for place, (image, map_, title) in enumerate(zip(images, maps, titles, strict=True)):
        left, right = panels[place // columns, 2 * (place % columns) :][:2]
        left.imshow(image)
        left.set_title(_shortened(title), fontsize=8, parse_math=False)
        extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        right.imshow(image.mean(-1), cmap="gray", vmin=-255, vmax=255)  # pale
        most = max(float(np.abs(map_).max()), 1e-12)
        smooth = "bilinear" if len(map_) < len(image) else "nearest"
        right.imshow(
            map_ / most, cmap="PuOr_r", vmin=-1, vmax=1, alpha=np.abs(map_) / most, extent=extent, interpolation=smooth
        )
    _save(figure, file)


def save_images(
    images: Sequence[UInt8[np.ndarray, "size size 3"]], titles: Sequence[str], file: Path, *, columns: int = 5
) -> None:
    """Images under a title each, as those that units like best (`explain.activation_maximization`)."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, image, title in zip(panels.flat, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(_shortened(title), fontsize=8, parse_math=False)
    _save(figure, file)


def save_neighbors(
    queries: Sequence[UInt8[np.ndarray, "size size 3"]],
    neighbors: Sequence[Sequence[UInt8[np.ndarray, "size size 3"]]],
    file: Path,
) -> None:
    """As Figure 4, right: each image, and then in its row those that are nearest to it."""
    columns = 1 + max(map(len, neighbors))
    figure = Figure(figsize=(1.1 * columns + 0.3, 1.1 * len(queries)), layout="constrained")
    # The narrow empty column sets the query apart.
    panels = figure.subplots(len(queries), columns + 1, squeeze=False, width_ratios=[1, 0.15, *[1] * (columns - 1)])
    for axes in panels.flat:
        axes.set_axis_off()
    for row, query, nearest in zip(panels, queries, neighbors, strict=True):
        row[0].imshow(query)
        for axes, image in zip(row[2:], nearest, strict=False):
            axes.imshow(image)
    _save(figure, file)


def save_confusion(counts: Int[np.ndarray, "classes classes"], class_names: Sequence[str], file: Path) -> None:
    """How often each class (row) was taken for each other (column), in shares of its images; named where few."""
    classes = len(class_names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3.0 + (0.25 * classes if classes <= 40 else 5)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if classes <= 40:
        names = [_shortened(name, 20) for name in class_names]
        axes.set_xticks(range(classes), names, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(classes), names, fontsize=7, parse_math=False)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    figure.colorbar(drawn, shrink=0.6, label="share of the class's images")
    _save(figure, file)


def _shortened(text: str, characters: int = 30) -> str:
    text = shown(text)
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), named_in_errors(file):  # a character that the font lacks is a box
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(file, dpi=150)
