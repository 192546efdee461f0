"""Predicts what pictures show with a trained network: its five likeliest classes, with their probabilities.

  python -m alexnet_jax.predict --workdir=DIR photo.jpg more/*.png folder
  python -m alexnet_jax.predict --workdir=DIR --views=10 --figure=seen.png photo.jpg
  python -m alexnet_jax.predict --workdir=DIR --format=csv folder > answers.csv
  python -m alexnet_jax.predict --workdir=DIR --explain=gradcam --figure=why.png photo.jpg

DIR: of a run of alexnet_jax.main; or a .safetensors, torchvision or caffe. A folder stands for all files below it.
Where a picture lies in a folder with the name of a class, or its identifier in ImageNet, that is its true class.
"""

import contextlib
import dataclasses
import functools
import glob
import json
import sys
import unicodedata
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alexnet_jax import command
from alexnet_jax.data import imagenet
from alexnet_jax.data.folders import walk
from alexnet_jax.data.pictures import MAX_PIXELS, usual_side
from alexnet_jax.data.preprocessing import Pixels
from alexnet_jax.files import place, read_plain
from alexnet_jax.options import InputError, check_bounds, check_choice, one_of, option
from alexnet_jax.shown import csv_line, progress, say

if TYPE_CHECKING:
    from alexnet_jax.networks.network import Trained

FORMATS = ("table", "json", "csv")
FIGURES, MOST_IN_A_FIGURE = (".png", ".pdf", ".svg"), 400


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags."""

    workdir: str = option("", "folder of the run that trained the network; or a .safetensors, torchvision, caffe")
    checkpoint: str = option("latest", "which of its checkpoints: latest, best, or the number of a step")
    views: int = option(1, "1: the centre of the picture; 10: averaged over corners, centre and their mirror images")
    top: int = option(5, "how many classes are shown", minimum=1)
    format: str = option("table", f"how the answers are shown: {one_of(FORMATS)} (one line of JSON for each picture)")
    json: bool = option(False, "the same as --format=json")
    figure: str = option("", "a .png, .pdf or .svg of the pictures (400 at most) and answers, as in Figure 4")
    max_pixels: int = option(MAX_PIXELS, "of a picture; a larger one cannot be read (JPEGs: four times)", minimum=1)
    maps: str = option("", "with --figure and one picture: draw its feature maps of this name, as conv1 or conv1:relu")
    explain: str = option("", "with --figure: draw what speaks for the likeliest class: saliency, occlusion or gradcam")

    def __post_init__(self):
        check_bounds(self)
        if not self.workdir:
            raise InputError("--workdir=DIR is needed: the folder of a run")
        check_choice("views", self.views, (1, 10))
        check_choice("format", self.format, FORMATS)
        if self.maps and not self.figure:
            raise InputError(f"--maps={self.maps}: needs --figure=FILE")
        if self.explain:
            check_choice("explain", self.explain, ("saliency", "occlusion", "gradcam"))
            if not self.figure or self.maps:
                raise InputError(f"--explain={self.explain}: needs --figure=FILE, without --maps")
        if self.figure and Path(self.figure).suffix.lower() not in FIGURES:
            raise InputError(f"--figure={self.figure}: must end in {', '.join(FIGURES)}")


class Prediction(NamedTuple):
    """Of one picture. top: (class, probability), the likeliest first. label: the true class, where it is known."""

    file: str
    pixels: Pixels
    top: list[tuple[str, float]]
    label: str | None


def files_of(arguments: Sequence[str]) -> list[str]:
    """The files that are meant: folders, as `prepare` sees them, and patterns spelt out, in order.

    Raises InputError for a folder that cannot be read or has no file in it.
    """
    found: list[str] = []
    for argument in arguments:
        path = place(argument)
        if path.is_dir():
            try:
                below = [file.path for file in walk(path) if file.read]
            except OSError as error:
                raise InputError(f"{error.filename or path}: {error.strerror or error}") from error
            if not below:
                raise InputError(f"{argument}: there is no file in it")
            found += below
        elif not path.exists() and glob.has_magic(argument):
            found += sorted(glob.glob(str(path), recursive=True)) or [argument]
        else:
            found.append(argument)
    return found


def predictions(
    network: "Trained", files: Sequence[str], *, views: int = 1, top: int = 5, max_pixels: int = MAX_PIXELS
) -> Generator[Prediction | InputError, None, None]:
    """What a network sees in each file; for one that cannot be read, an InputError that names it."""
    from alexnet_jax.data.ahead import one_behind  # here, as below
    from alexnet_jax.paper.evaluate import likeliest

    left = iter(files)
    batches = network.read(files, max_pixels=max_pixels)
    for rows, read in one_behind((network.probabilities(images, views=views), read) for images, read in batches):
        for pixels, row, file in zip(read, np.asarray(rows), left, strict=False):
            if isinstance(pixels, InputError):
                yield pixels
                continue
            folder = unicodedata.normalize("NFC", Path(file).absolute().parent.name)  # as `prepare` names classes
            names = (folder, *imagenet.named([folder]))  # ImageNet's folders are called by identifiers
            label = next((name for name in names if name in network.class_names), None)
            yield Prediction(file, pixels, likeliest(row, network.class_names, top), label)


def say_if_small(network: "Trained", files: Sequence[str]) -> None:
    """A hint, where most of the pictures are smaller than what the network sees of them."""
    crop_size = network.config.crop_size
    side = usual_side([functools.partial(read_plain, place(file)) for file in files])
    if 0 < side < crop_size:
        sizes = f"have about {side} pixels a side, and the network sees {crop_size} × {crop_size}"
        say(f"hint: most of the pictures {sizes}; they are enlarged, unlike those that it was trained on", error=True)


def as_lines(seen: Prediction) -> list[str]:
    """The file, and below it a line for each class."""
    label = f"  (true: {seen.label})" if seen.label else ""
    return [f"{seen.file}{label}", *(f"{p:7.1%}  {name}" for name, p in seen.top)]


def as_json(seen: Prediction) -> str:
    """One line."""
    top = [{"class": name, "probability": round(probability, 6)} for name, probability in seen.top]
    return json.dumps({"file": seen.file, "label": seen.label, "top": top})


def csv_header(top: int) -> str:
    """Of `lines_of` as csv."""
    ranks = range(1, top + 1)
    return csv_line(["file", "label", *(f"{of} {rank}" for rank in ranks for of in ("class", "probability"))])


def lines_of(seen: Prediction, format: str) -> list[str]:
    """What is shown of a picture."""
    if format == "json":
        return [as_json(seen)]
    if format == "csv":
        cells = (of for name, probability in seen.top for of in (name, f"{probability:.6f}"))
        return [csv_line([seen.file, seen.label or "", *cells])]
    return as_lines(seen)


def main() -> None:
    """The command `python -m alexnet_jax.predict`."""
    command.define_flags(Options)
    command.run(_predict, __doc__, takes_files=True)


def _predict(arguments: Sequence[str]) -> None:
    options = Options(**command.given_flags(Options))
    if options.json:
        options = dataclasses.replace(options, format="json")
    if not arguments:
        raise InputError("no picture is given: python -m alexnet_jax.predict --workdir=DIR photo.jpg more/*.png folder")
    files = files_of(arguments)
    # Here, so that --help and bad flags do not wait for it.
    from alexnet_jax import figures
    from alexnet_jax.networks.loading import load

    if options.maps and len(files) > 1:
        raise InputError(f"--maps={options.maps}: takes one picture, not {len(files)}")
    network = load(options.workdir, options.checkpoint)
    say_if_small(network, files)
    if options.format == "csv":
        say(csv_header(min(options.top, len(network.class_names))))
    seeing = predictions(network, files, views=options.views, top=options.top, max_pixels=options.max_pixels)
    seen, failed = _show(seeing, len(files), options)
    if seen and options.maps:
        _draw_maps(network, seen[0], options)
    elif seen and options.explain:
        _draw_explanations(network, seen, options)
    elif seen:
        figures.save_predictions(
            [of.pixels for of in seen], [of.top for of in seen], [of.label for of in seen],
            Path(options.figure).expanduser(),
        )  # fmt: skip
    if failed:
        raise InputError(f"{failed} of {len(files)} pictures cannot be read")


def _show(
    seeing: Generator[Prediction | InputError, None, None], total: int, options: Options
) -> tuple[list[Prediction], int]:
    """Says each as it comes. Returns those that are to be drawn, and how many could not be read."""
    seen: list[Prediction] = []
    failed = 0
    # On a terminal the answers themselves tell how far it is.
    with progress(total, unit=" pictures", delay=1, disable=sys.stdout.isatty()) as bar, contextlib.closing(seeing):
        for prediction in seeing:
            bar.update()
            if isinstance(prediction, InputError):
                say(f"error: {prediction}", error=True)
                failed += 1
                continue
            is_read = say(*lines_of(prediction, options.format))
            if options.figure and len(seen) < MOST_IN_A_FIGURE:
                seen.append(prediction)
            elif not is_read and not options.figure:
                break  # the rest would be for nobody
    return seen, failed


def _draw_maps(network: "Trained", seen: Prediction, options: Options) -> None:
    from alexnet_jax import figures

    maps = network.features(seen.pixels[None], [options.maps])[options.maps][0]
    if maps.ndim != 3:
        raise InputError(f"--maps={options.maps}: is of a dense layer, which has no maps")
    figures.save_activations(seen.pixels, maps, options.maps, Path(options.figure).expanduser())


def _draw_explanations(network: "Trained", seen: Sequence[Prediction], options: Options) -> None:
    from alexnet_jax import figures
    from alexnet_jax.networks import explain
    from alexnet_jax.networks.network import BATCH

    images = np.stack([of.pixels for of in seen])
    maps: list[np.ndarray] = []
    titles: list[str] = []
    size = min(BATCH, len(images))
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        batch = np.resize(batch, (size, *batch.shape[1:]))  # the last one is filled up: one size, compiled once
        answers = np.asarray(network.probabilities(batch))
        maps += [*explain.METHODS[options.explain](network, batch, answers.argmax(1))]
        titles += [f"{network.class_names[row.argmax()]} {row.max():.0%}" for row in answers]
    maps, titles = maps[: len(images)], titles[: len(images)]
    figures.save_explanations([*explain.seen(network, images)], maps, titles, Path(options.figure).expanduser())


if __name__ == "__main__":
    main()
