"""A run's folder: whose it is. config.json (settings, network, data), data.npz (classes, mean image), init.json."""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from alexnet_jax.config import Config, InputError
from alexnet_jax.data.datasets import Dataset, open_dataset
from alexnet_jax.files import versions, write_whole
from alexnet_jax.paper.architectures import ARCHITECTURES
from alexnet_jax.paper.table import Layers, with_classes
from alexnet_jax.paper.written import Written, differences, from_json, listed
from alexnet_jax.shown import say

CONFIG, FACTS, ORIGIN = "config.json", "data.npz", "init.json"


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
        found = [f"{of} was {before[of]}, is {after[of]}" for of in sorted({*before} - idle) if before[of] != after[of]]
        if self.data != now.data:
            others = " with other images" if self.dataset == now.dataset else ""
            found.append(f"dataset was {self.dataset}{others}, is {now.dataset}")
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
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if exists and not file.exists():
            raise InputError(f"--workdir={workdir}: is not on a disk that all processes see")
        if not file.exists():
            write_whole(file, json.dumps({**run.to_json(), **versions()}, indent=2) + "\n")
            return
        content = json.loads(file.read_text())
        if is_of_version_01(content):
            raise InputError(
                f"--workdir={workdir}: holds a run of version 0.1, which can be used but not continued; "
                f"--init_from={workdir} in another --workdir begins with its parameters"
            )
        differing = _run(content).differences(run)
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error})") from error
    if differing:
        raise InputError(
            f"--workdir={workdir}: holds a run with other settings ({listed(differing)}); "
            "give the old settings or another folder, which --init_from can begin from this one"
        )


def is_of_version_01(content: Mapping[str, Any]) -> bool:
    """Whether what says what a network is (config.json, the card of a file) has its architecture's name instead."""
    return "layers" not in content and "architecture" in content["config"]


def _run(content: Mapping[str, Any]) -> Run:
    config = Config.from_json(content["config"])
    return Run(config, content["layers"], content["dataset"], content["data"], tuple(content["own"]))


def settings_of_version_01(content: Mapping[str, Any], outputs: int, file: Path) -> tuple[Config, Layers, str]:
    """(config, table, name of the data set), the table by its architecture's name; says so in a line.

    outputs: how many, where the config leaves that open. Raises InputError where the name is unknown.
    """
    fields = dict(content["config"])
    name, dataset, classes = (
        fields.pop(of, none) for of, none in (("architecture", ""), ("dataset", ""), ("num_classes", 0))
    )
    if name not in ARCHITECTURES:
        raise InputError(f"{file}: its architecture '{name}' is unknown here")
    say(f"{file}: of version 0.1; its network is taken to be what '{name}' is today")
    return Config.from_json(fields), with_classes(ARCHITECTURES[name], classes or outputs), dataset


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
        content = json.loads(file.read_text())
        if is_of_version_01(content):
            names, mean_image = _data(workdir, content["config"]["dataset"], content["data"])
            return Facts(*settings_of_version_01(content, len(names), file), names, mean_image)
        run = _run(content)
        layers = from_json(run.layers, steps)
    except FileNotFoundError:
        raise InputError(f"{workdir}: there is no run (no config.json)") from None
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    return Facts(run.config, layers, run.dataset, *_data(workdir, run.dataset, run.data))


def _data(workdir: Path, dataset: str, fingerprint: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Of its training images the classes and the mean."""
    file = workdir / FACTS
    try:
        with np.load(file, allow_pickle=False) as facts:
            return tuple(map(str, facts["class_names"])), facts["mean_image"]
    except FileNotFoundError:  # of a run before there were such files
        data = open_dataset(dataset)
        if data.fingerprint() != fingerprint:
            raise InputError(f"{file}: is missing, and {dataset} holds other images than it was trained on") from None
        return data.class_names, data.statistics.mean_image
    except Exception as error:  # NumPy raises many types
        raise InputError(f"{file}: cannot be read ({error})") from error


def keep_facts(workdir: Path, dataset: Dataset) -> None:
    """What the network needs to know of its data set to be used without it: data.npz."""
    if not (workdir / FACTS).exists():
        content = io.BytesIO()
        np.savez(content, class_names=np.array(dataset.class_names), mean_image=dataset.statistics.mean_image)
        write_whole(workdir / FACTS, content.getvalue())


def taken_over(workdir: Path) -> list[str]:
    """The parameters that a run has taken from another one. Raises InputError where init.json is damaged."""
    file = workdir / ORIGIN
    try:
        return json.loads(file.read_text())["taken"] if file.exists() else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
