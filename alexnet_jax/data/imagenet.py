"""The names of ImageNet's classes."""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


@functools.cache
def synsets() -> dict[str, str]:
    """The 1,000 classes of ILSVRC-2012 in the order of their numbers: WordNet's identifier → all its names, as
    "n01440764" → "tench, Tinca tinca". Where they come from stands in the file.
    """
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines if not line.startswith("#"))


def class_names() -> tuple[str, ...]:
    """A name for each: its first one, as "tench"; with the identifier where two have the same: "crane (n02012849)"."""
    first = {synset: names.split(",")[0] for synset, names in synsets().items()}
    times = Counter(first.values())
    return tuple(name if times[name] == 1 else f"{name} ({synset})" for synset, name in first.items())


def named(classes: Sequence[str]) -> tuple[str, ...]:
    """The same classes, those that are given by their identifiers by their names."""
    return tuple(_names().get(of, of) for of in classes)


@functools.cache
def _names() -> dict[str, str]:
    return dict(zip(synsets(), class_names(), strict=True))
