"""A run's folder: whose it is. config.json (settings, network, data), data.npz (classes, mean image), init.json."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float

from alexnet_jax.config import Config
from alexnet_jax.data.datasets import Dataset, open_dataset
from alexnet_jax.files import only_process, versions, write_whole
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import ARCHITECTURES
from alexnet_jax.paper.table import Layers, with_classes
from alexnet_jax.paper.written import Written, as_written, differences, from_json, listed
from alexnet_jax.reading import ArrayForm, Count, archive, fitted, read_arrays, read_json
from alexnet_jax.shown import say, short

CONFIG, FACTS, ORIGIN = "config.json", "data.npz", "init.json"
# Of the two arrays that say what images a network is for.
MEAN_IMAGE, CLASS_NAMES = ArrayForm("f", ("size", "size", 3), 0, 255), ArrayForm("U", ("classes",))


class Content(msgspec.Struct):
    """The form of what says what a network is: config.json, the card of a file. Its config and layers are looked at in
    `config_of` and `written.as_written`. Version 0.1 wrote no layers, but a name in the config.
    """

    config: dict[str, Any]
    layers: Any = None

    @property
    def of_version_01(self) -> bool:
        """Whether it is."""
        return self.layers is None and "architecture" in self.config


class _Saved(Content, kw_only=True):
    """Of config.json. What version 0.1 did not write has a default."""

    data: str
    dataset: str | None = None
    own: tuple[str, ...] | None = None


class _Origin(msgspec.Struct):
    """Of init.json."""

    taken: list[str]
    new: list[str]


class _OfVersion01(msgspec.Struct):
    """What its config had beside a `Config`."""

    architecture: str
    dataset: str = ""
    num_classes: Count = 0


def config_of(fields: dict[str, Any], what: str) -> Config:
    """The inverse of `Config.to_json`; fields of later versions have their defaults. Raises InputError, which begins
    with `what`, where one is not known, or its value not possible.
    """
    for field in fields.keys() - {of.name for of in dataclasses.fields(Config)}:
        raise InputError(f"{what} cannot be read (config.{short(field)}: is not known here)")
    return fitted(fields, Config, what, "config")


def table_of(rows: Any, what: str, steps: Mapping[str, Callable] | None = None) -> Layers:
    """As `written.from_json`. Raises InputError, which begins with `what`."""
    try:
        return from_json(rows, steps)
    except ValueError as error:
        raise InputError(f"{what} cannot be read ({error})") from error


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is of, as config.json says it. layers: the table, written out. dataset: its name. data: the
    fingerprint of its images. own: what a caller of `fit` gave in the place of the paper's, as "optimizer".
    """

    config: Config
    layers: Written
    dataset: str
    data: str
    own: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON keeps them."""
        return {**vars(self), "config": self.config.to_json()}

    def differences(self, now: "Run") -> list[str]:
        """From this run to another one: in all that decides what is computed. The data set may lie elsewhere."""
        idle = {field.name for field in dataclasses.fields(Config) if not field.metadata["decides"]}
        before, after = self.config.to_json(), now.config.to_json()
        changed = [of for of in sorted({*before} - idle) if before[of] != after[of]]
        found = [f"{of} was {short(before[of])}, is {short(after[of])}" for of in changed]
        if self.data != now.data:
            others = " with other images" if self.dataset == now.dataset else ""
            found.append(
                f"dataset was {short(self.dataset)}{others}, is {now.dataset} (by data, of its statistics.npz)"
            )
        for of in ("augment", "optimizer"):
            if (of in self.own) != (of in now.own):
                was, now_is = ("one's own" if of in run.own else "the paper's" for run in (self, now))
                found.append(f"{of} was {was}, is {now_is}")
        return [*found, *differences(self.layers, now.layers)]


def claim(workdir: Path, run: Run, *, exists: bool = False) -> None:
    """Writes config.json into a new run's folder; in an existing one, checks that the run is the same.

    Raises InputError where the folder cannot be used, or holds another run: it names what differs, by setting, or by
    layer and field; or where it `exists` by another host's account, and is not here.
    """
    file = workdir / CONFIG
    with _usable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if exists and not file.exists():
            raise InputError(f"--workdir={workdir}: is not on a disk that all processes see")
        if not file.exists():
            write_whole(file, json.dumps({**run.to_json(), **versions()}, indent=2) + "\n")
            return
    saved = read_json(file, _Saved)
    if saved.of_version_01:
        raise InputError(
            f"--workdir={workdir}: holds a run of version 0.1, which can be used but not continued; "
            f"--init_from={workdir} in another --workdir begins with its parameters"
        )
    if differing := _run(saved, file).differences(run):
        raise InputError(
            f"--workdir={workdir}: holds a run with other settings ({listed(differing)}); "
            f"give the old settings or another folder, which --init_from can begin from this one ({file})"
        )


@contextlib.contextmanager
def _usable(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error})") from error


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in a folder, which is made; it is free as soon as this one has ended.

    Raises InputError where another one trains there.
    """
    with _usable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    with only_process(workdir, f"--workdir={workdir}: another process trains in it"):
        yield


def _run(saved: _Saved, file: Path) -> Run:
    """Raises InputError where it is not one of a whole run."""
    config = config_of(saved.config, f"{file}:")
    for field in ("layers", "dataset", "own"):
        if getattr(saved, field) is None:
            raise InputError(f"{file}: cannot be read ({field}: is missing)")
    return Run(config, written_table(saved.layers, f"{file}:"), saved.dataset or "", saved.data, saved.own or ())


def written_table(rows: Any, what: str) -> Written:
    """As `written.as_written`. Raises InputError, which begins with `what`."""
    try:
        return as_written(rows)
    except ValueError as error:
        raise InputError(f"{what} cannot be read ({error})") from error


def settings_of_version_01(content: Content, outputs: int, file: Path) -> tuple[Config, Layers, str]:
    """(config, table, name of the data set), the table by its architecture's name; says so in a line.

    outputs: how many, where the config leaves that open. Raises InputError where the name is unknown.
    """
    old = fitted(content.config, _OfVersion01, f"{file}:", "config")
    if old.architecture not in ARCHITECTURES:
        raise InputError(f"{file}: its architecture '{short(old.architecture)}' is unknown here")
    fields = {name: of for name, of in content.config.items() if name not in _OfVersion01.__struct_fields__}
    config = config_of(fields, f"{file}:")
    say(f"{file}: of version 0.1; its network is taken to be what '{old.architecture}' is today")
    return config, with_classes(ARCHITECTURES[old.architecture], old.num_classes or outputs), old.dataset


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run's folder says of its network. class_names: of the data set, which may be fewer than the outputs."""

    config: Config
    layers: Layers
    dataset: str
    class_names: tuple[str, ...]
    mean_image: Float[np.ndarray, "size size 3"]


def read(workdir: Path, steps: Mapping[str, Callable] | None = None) -> Facts:
    """What is in a run's folder, but for its checkpoints. steps: as in `written.from_json`. Raises InputError."""
    file = workdir / CONFIG
    try:
        saved = read_json(file, _Saved)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{workdir}: there is no run (no {CONFIG})") from None
    if saved.of_version_01:
        dataset = fitted(saved.config, _OfVersion01, f"{file}:", "config").dataset
        names, mean_image = _data(workdir, dataset, saved.data)
        return Facts(*settings_of_version_01(saved, len(names), file), names, mean_image)
    run = _run(saved, file)
    layers = table_of(run.layers, f"{file}:", steps)
    names, mean_image = _data(workdir, run.dataset, run.data)
    if len(names) > layers[-1].features:
        raise InputError(
            f"{workdir / FACTS}: has {len(names)} class_names, and the layers of {CONFIG} {layers[-1].features} outputs"
        )
    return Facts(run.config, layers, run.dataset, names, mean_image)


def _data(workdir: Path, dataset: str, fingerprint: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Of its training images the classes and the mean."""
    file = workdir / FACTS
    try:
        found = read_arrays(file, {"class_names": CLASS_NAMES, "mean_image": MEAN_IMAGE})
    except FileNotFoundError:  # of a run before there were such files
        try:
            data = open_dataset(dataset)
        except InputError as error:
            raise InputError(f"{file}: is missing, and so are its images ({error})") from error
        if data.fingerprint() != fingerprint:
            raise InputError(f"{file}: is missing, and {dataset} holds other images than it was trained on") from None
        return data.class_names, data.statistics.mean_image
    return tuple(found["class_names"].tolist()), found["mean_image"]


def keep_facts(workdir: Path, dataset: Dataset) -> None:
    """What the network needs to know of its data set to be used without it: data.npz."""
    if not (workdir / FACTS).exists():
        names = np.array(dataset.class_names)
        write_whole(workdir / FACTS, archive(class_names=names, mean_image=dataset.statistics.mean_image))


def taken_over(workdir: Path, parameters: Collection[str]) -> list[str]:
    """Those of a run's parameters that it has taken from another one. Raises InputError where init.json is damaged."""
    file = workdir / ORIGIN
    if not file.exists():
        return []
    saved = read_json(file, _Origin)
    for name in parameters:
        if (saved.taken + saved.new).count(name) != 1:
            raise InputError(f"{file}: cannot be read (taken, new: must name {name} once)")
    for name in {*saved.taken, *saved.new} - {*parameters}:
        raise InputError(f"{file}: cannot be read (taken, new: the network has no {short(name)})")
    return saved.taken
