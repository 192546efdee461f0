"""How images lie in folders: which of these is a class, and of which split. Nothing is read here."""

import collections
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alexnet_jax.data import imagenet
from alexnet_jax.data.folders import File
from alexnet_jax.data.shards import Item
from alexnet_jax.options import InputError
from alexnet_jax.shown import say, short

SPLITS = {"train": "train|training", "validation": "val|valid|validation|dev", "test": "test|testing"}


def split_of(name: str) -> str | None:
    """The split that a folder holds by its name, as train, Training, training_set, val, valid or test_set; or None."""
    for split, names in SPLITS.items():
        if re.fullmatch(rf"({names})[-_ ]?(set|data|images|split)?", name, re.IGNORECASE):
            return split
    return None


def _text(name: str) -> str:
    """A file's name, which may be any bytes, as text that can be stored and printed."""
    text = name.encode(errors="replace").decode()
    return name if text == name else text  # the same object: a second one of each of a million paths takes 0.1 GB


class Source(NamedTuple):
    """What is to be prepared. kind: as what it was recognised. size, encoding: where nothing else is asked for."""

    kind: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[Item]]
    size: int = 256
    encoding: str = "jpeg"


def sort_files(files: list[File], *, validation_fraction: float, seed: int, on_error: str = "stop") -> Source:
    """Which image goes into which split, under which label; classes in the alphabetical order of their folders. Where
    these have ImageNet's identifiers, as Imagenette's, the classes get their names.

    Without a validation part, `validation_fraction` of each class (at least one image) is drawn from the training
    part; the draw depends on the seed and the files' names only. Raises InputError naming a class that is amiss.

    Args:
      on_error: "stop" at a class folder without images, or "skip" it.
    """
    by_split = _by_split(files)
    for split, classes in by_split.items():
        for name in [name for name, of_class in classes.items() if not of_class]:
            if on_error == "stop":
                raise InputError(
                    f"class folder '{name}' of the {split} part has no images; --on_error=skip leaves it out"
                )
            say(f"left out the class folder '{name}' of the {split} part, which has no images")
            del classes[name]
    class_names = tuple(sorted(by_split["train"]))
    if len(class_names) < 2:
        raise InputError(f"one class only, '{''.join(class_names)}': each class needs a folder of its own")
    for split, classes in by_split.items():
        for name in classes:
            if name not in class_names:
                raise InputError(f"class '{name}' is in the {split} part and not in the training part")
    if "validation" not in by_split:
        by_split["validation"] = _draw_validation(by_split["train"], validation_fraction, seed)
    label_of = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split in ("train", "validation", "test"):
        labels = {file.path: label_of[name] for name, of in by_split.get(split, {}).items() for file in of}
        # In the source's own order: so a tar is read forward.
        splits[split] = [
            Item(_text(file.path), _text("/".join(file.parts)), label, file.read)
            for file in files
            if file.read and (label := labels.get(file.path)) is not None
        ]
    if {*class_names} <= {*imagenet.synsets()}:
        class_names = imagenet.named(class_names)
    return Source("class folders", class_names, {split: items for split, items in splits.items() if items})


def _by_split(files: list[File]) -> dict[str, dict[str, list[File]]]:
    """{split: {class: files}}, the classes' names checked. Raises InputError for a layout that is not understood."""
    tops = {file.parts[0] for file in files if len(file.parts) > 1 or not file.read}
    has_splits = any(map(split_of, tops))
    if not has_splits:
        _check_no_parts(files, tops)
    files = _without_doubled(files) if has_splits else files
    by_split: dict[str, dict[str, list[File]]] = {}
    folder_of: dict[tuple[str, ...], str] = {}  # of a split, or of a class in it: its name as it stands on the disk
    loose = []
    for file in files:
        top, *below = file.parts if has_splits else ("train", *file.parts)
        split = split_of(top)
        if split is None:
            if below and file.read:
                raise InputError(
                    f"{_text(file.path)}: beside train/ there may only be val/, valid/, validation/ or test/"
                )
            loose += [file] * bool(file.read)
            continue
        if file.read and not below:
            loose.append(file)
            continue
        _only_name((split,), top, folder_of)
        classes = by_split.setdefault(split, {})
        if len(below) < (2 if file.read else 1):
            loose += [file] * bool(file.read)
            continue
        name = unicodedata.normalize("NFC", _text(below[0]))  # as some systems write it, and not others
        _only_name((split, name), below[0], folder_of)
        of_class = classes.setdefault(name, [])
        if file.read:
            of_class.append(file)
    for split in [split for split, classes in by_split.items() if not classes]:
        name = _text(folder_of[split,])
        inside = next((file.path for file in loose if split_of(file.parts[0]) == split), None)
        found = f"files that are in none, such as {_text(inside)}" if inside else "nothing in it"
        if split == "test" and by_split.get("validation"):
            say(f"left out {name}/, which has no class folders, but {found}")
            del by_split[split]
        elif has_splits:
            raise InputError(f"{name}/, the {split} part, has no class folders, but {found}")
    if loose:
        say(f"ignored {len(loose)} files that are in no class folder, such as {loose[0].path}")
    if not by_split.get("train"):
        raise InputError(f"no class folders of training images beside {_text(files[0].path)}")
    if "validation" not in by_split and "test" in by_split:
        by_split["validation"] = by_split.pop("test")
    return by_split


def _check_no_parts(files: list[File], tops: set[str]) -> None:
    """Raises InputError where what would be classes looks like parts of a data set: seg_train beside seg_test, or
    trainA beside testA; or where there are such parts in the folder of a class.
    """
    words = {word: split for split, names in SPLITS.items() for word in names.split("|")}
    known: dict[tuple[str, ...], dict[str, str]] = {}  # by what else is in the name, of each split the folder
    for top in sorted(tops):
        tokens = [token.lower() for token in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_A-Za-z]+", top)]
        others = tuple(token for token in tokens if token not in words)
        known.setdefault(others, {}).update({words[token]: top for token in tokens if token in words})
    inside: dict[str, dict[str, str]] = {}
    for file in files:
        if len(file.parts) > (2 if file.read else 1) and (split := split_of(file.parts[1])):
            inside.setdefault(file.parts[0], {})[split] = "/".join(file.parts[:2])
    for parts in (*known.values(), *inside.values()):
        if len(parts) > 1:
            one, other = map(short, [*parts.values()][:2])
            raise InputError(
                f"{one}/ and {other}/ look like parts of a data set; give train/, val/ and test/, each with a folder "
                "for each class"
            )


def _without_doubled(files: list[File]) -> list[File]:
    """training_set/training_set/cats as training_set/cats: where a split's one folder is named as a split is."""
    inside: dict[str, set[str]] = {}
    for file in files:
        if len(file.parts) > (2 if file.read else 1):
            inside.setdefault(file.parts[0], set()).add(file.parts[1])
    doubled = {top for top, (name, *more) in inside.items() if not more and split_of(top) == split_of(name) is not None}
    return [
        file._replace(parts=file.parts[:1] + file.parts[2:]) if file.parts[0] in doubled else file
        for file in files
        if len(file.parts) != 2 or file.parts[0] not in doubled or file.read
    ]


def _only_name(what: tuple[str, ...], folder: str, folder_of: dict[tuple[str, ...], str]) -> None:
    """Remembers a folder's name for a split or a class. Raises InputError where another one stands for the same."""
    known, name = folder_of.setdefault(what, folder), what[-1]
    if known != folder:
        kind = f"class '{name}'" if len(what) > 1 else f"{name} part"
        raise InputError(f"two folders for one {kind}: {known!a} and {folder!a}")
    check_classes([name], "class folder")


def check_classes(names: Sequence[str], what: str = "class") -> None:
    """Raises InputError for a name of a class that cannot be kept: TFDS has a line for each, stripped."""
    for name, number in collections.Counter(names).items():
        if number > 1:
            raise InputError(f"{what} {short(repr(name))}: there are {number} of this name")
        breaks = any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name)
        if name != name.strip() or not name or breaks:
            raise InputError(
                f"{what} {short(repr(name))}: its name must not begin or end with a space, or break a line"
            )


def _draw_validation(train: dict[str, list[File]], fraction: float, seed: int) -> dict[str, list[File]]:
    """Takes its share out of each class of `train`."""
    validation = {}
    for number, name in enumerate(sorted(train)):
        files = train[name]
        count = max(1, round(fraction * len(files)))
        if count >= len(files):
            raise InputError(f"class '{name}' has {len(files)} images: too few to split off {count} for validation")
        by_name = sorted(range(len(files)), key=lambda index: files[index].parts)
        chosen = set(np.random.default_rng((seed, number)).permutation(by_name)[:count].tolist())
        validation[name] = [file for index, file in enumerate(files) if index in chosen]
        train[name] = [file for index, file in enumerate(files) if index not in chosen]
    return validation
