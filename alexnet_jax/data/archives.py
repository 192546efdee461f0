"""Images as their owners publish them: ImageNet's tars, CIFAR-10's archives, TFDS data sets."""

import functools
import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from alexnet_jax.data import cifar10, tars
from alexnet_jax.data.imagenet import named
from alexnet_jax.data.layouts import Source, split_of
from alexnet_jax.data.shards import Item
from alexnet_jax.data.tars import Place
from alexnet_jax.options import InputError
from alexnet_jax.shown import reason, say

IMAGENET = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


Element = TypeVar("Element")


class Made(Sequence[Element]):
    """`make` of each number, when it is asked for: as objects a million images take most of a gigabyte. A part of it is
    one too, and goes to another process as a list.
    """

    def __init__(self, make: Callable[[int], Element], numbers: range):
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Element: ...
    @overload
    def __getitem__(self, place: slice) -> "Made[Element]": ...
    def __getitem__(self, place: int | slice) -> "Element | Made[Element]":
        if isinstance(place, slice):
            return Made(self._make, self._numbers[place])
        return self._make(self._numbers[place])

    def __reduce__(self) -> tuple[type[list], tuple[list[Element]]]:
        return list, ([*self],)


class _Images:
    """The images in a tar, by their number, in few bytes each."""

    def __init__(self, tar: Path):
        self.tar, self.names, self.synsets = tar, list[str](), list[str]()
        self._offsets, self._sizes, self._pieces = array("q"), array("q"), dict[int, Any]()

    def add(self, synset: str, name: str, place: Place) -> None:
        if place.pieces is not None:
            self._pieces[len(self.names)] = place.pieces
        self.names.append(name)
        self.synsets.append(synset)
        self._offsets.append(place.offset)
        self._sizes.append(place.size)

    def items(self, label_of: dict[str, int], form: str) -> Made[Item]:
        """form: of the name that is stored."""

        def item(number: int) -> Item:
            synset = self.synsets[number]
            name = form.format(synset=synset, name=self.names[number])
            place = Place(self.tar, self._offsets[number], self._sizes[number], self._pieces.get(number))
            return Item(f"{self.tar}:{name}", name, label_of[synset], place.read)

        return Made(item, range(len(self.names)))


def recognised(source: str, data_dir: str, scratch: Path) -> Source | None:
    """The source, where it is one of these: by its name, or by the names of the files in it.

    Raises InputError where one of these is damaged or not whole.
    """
    if source.startswith("tfds:"):
        return tfds_dataset(source.removeprefix("tfds:"), data_dir)
    path = Path(source).expanduser()
    try:
        if path.is_dir() and (path / IMAGENET[0]).is_file():
            return imagenet(path)
        if path.name in cifar10.ARCHIVES and path.is_file():
            return cifar10.cifar10(cifar10.in_tar(path, scratch), path, scratch)
        if path.is_dir() and any((path / f"{cifar10.TEST}{end}").is_file() for end in ("", ".bin")):
            return cifar10.cifar10(cifar10.in_folder(path), path, scratch)
    except InputError:
        raise
    except Exception as error:  # tarfile and pickle raise any type for damage
        raise InputError(f"--source={source}: cannot be read ({reason(error)})") from error
    return None


def imagenet(folder: Path) -> Source:
    """ILSVRC-2012 from its two tars, read where they lie: the training one is a tar of a tar for each synset.

    The validation labels and the order of the classes are those in tensorflow-datasets.
    """
    train, validation = (folder / name for name in IMAGENET)
    if not validation.exists():
        raise InputError(f"{validation}: is missing beside {train.name}")
    synsets = _lines("labels.txt")
    in_train, in_validation = _Images(train), _Images(validation)
    for name, tar in _files(train):
        synset = Path(name).stem
        if synset not in synsets:
            raise InputError(f"{train}: {name}: no synset of ILSVRC-2012")
        for inner, place in _files(train, tar.offset, tar.size):
            in_train.add(synset, inner, place)
    present = {*in_train.synsets}
    labels = _lines("validation_labels.txt")
    for name, place in _files(validation):
        found = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if not found or not 1 <= int(found[1]) <= len(labels):
            raise InputError(f"{validation}: {name}: no validation image of ILSVRC-2012")
        if (synset := labels[int(found[1]) - 1]) in present:
            in_validation.add(synset, name, place)
    class_names = tuple(synset for synset in synsets if synset in present)
    label_of = {synset: label for label, synset in enumerate(class_names)}
    if len(class_names) < len(synsets):
        say(f"{train}: {len(class_names)} of the {len(synsets):,} synsets; validation images of these only")
    items = {
        "train": in_train.items(label_of, "{synset}/{name}"),
        "validation": in_validation.items(label_of, "{name}"),
    }
    return Source("ImageNet", named(class_names), items)


def _lines(name: str) -> list[str]:
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def _files(tar: Path, start: int = 0, size: int | None = None) -> Iterator[tuple[str, Place]]:
    """(name, where it lies) of each file in a tar."""
    for name, place in tars.members(tar, start, size):
        if isinstance(place, Place):
            yield name.rpartition("/")[2], place  # pathlib would keep each for good


def tfds_dataset(name: str, data_dir: str) -> Source:
    """A TFDS data set that was prepared elsewhere in array_record format, with images and one label each."""
    try:
        folder = read_only_builder._find_builder_dir(name, data_dir=data_dir or None)
        if folder is None:
            raise FileNotFoundError("there is no such data set")
        builder = _builder(str(folder))
        features = builder.info.features
        class_names = tuple(features["label"].names)
        splits: dict[str, Sequence[Item]] = {}
        for split, info in builder.info.splits.items():
            if kind := split_of(split):
                make = functools.partial(_item_of_tfds, name, str(builder.data_path), split)
                splits[kind] = Made(make, range(info.num_examples))
        _opened(str(builder.data_path), next(iter(builder.info.splits)))
    except Exception as error:  # TFDS raises many types
        where = f" in {data_dir}" if data_dir else ""
        raise InputError(
            f"--source=tfds:{name}: no array_record data set of labelled images{where} ({reason(error)})"
        ) from error
    test = splits.pop("test", [])  # in ImageNet and others without labels
    if test and "validation" not in splits:
        splits["validation"] = test
    if not {"train", "validation"} <= set(splits):
        raise InputError(f"--source=tfds:{name}: has no split of training and one of validation or test")
    return Source("TFDS", class_names, splits)


def _item_of_tfds(name: str, folder: str, split: str, number: int) -> Item:
    read = functools.partial(_read_tfds, folder, split, number)
    return Item(f"tfds:{name}/{split}#{number}", f"{split}/{number}", -1, read)


def _builder(folder: str) -> tfds.core.DatasetBuilder:
    """TFDS imports any class that such a folder names: here only its own kinds of features may be named."""
    left = [json.loads(Path(folder, "features.json").read_bytes())]
    while left:
        part = left.pop()
        if isinstance(part, str) and part.lstrip()[:1] in ("{", "["):  # JSON in JSON
            left.append(json.loads(part))
        elif isinstance(part, dict):
            for name in (part.get(key) for key in ("pythonClassName", "python_class_name", "type")):
                if isinstance(name, str) and "." in name and not re.fullmatch(_OF_TFDS, name):
                    raise ValueError(f"features.json names {name}, which is no feature of TFDS")
            left += part.values()
        elif isinstance(part, list):
            left += part
    return tfds.builder_from_directory(folder)


_OF_TFDS = r"tensorflow_datasets\.core\.features\.[\w.]+"


@functools.lru_cache
def _opened(folder: str, split: str) -> Any:
    return _builder(folder).as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


def _read_tfds(folder: str, split: str, number: int) -> tuple[Any, int]:
    example = _opened(folder, split)[number]
    return example["image"], int(example["label"])
