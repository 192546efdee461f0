"""Checkpoints by orbax: save, restore, and which run a folder belongs to."""

import contextlib
import dataclasses
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from alexnet_jax.config import Config, InputError


class Checkpoints:
    """The checkpoints of one run, by step, in `folder`; saved in the background, the last two kept."""

    def __init__(self, folder: Path):
        # What a kill left half-written is removed at the next start.
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, cleanup_tmp_directories=True)
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: PyTree) -> None:
        """Starts saving; `state` may be overwritten as soon as this returns. Raises InputError where it cannot."""
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self._folder).free
        if free < needed:  # asked first, since a write that fails makes TensorStore's threads print pages
            megabytes = f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free"
            raise InputError(f"{self._folder}: the checkpoint cannot be written (the disk is full: {megabytes})")
        with _named_errors(self._folder):
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def restore(self, step: int, like: PyTree) -> PyTree:
        """The state of that step, with the structure, types and placement of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits until what is being saved is on disk. Raises InputError where it could not be written."""
        with _named_errors(self._folder):
            self._manager.close()


@contextlib.contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of many types: a full disk is a ValueError of TensorStore
        reason = str(error).split("\n")[0].split(": ")[-1]
        raise InputError(f"{folder}: the checkpoint cannot be written ({reason})") from error


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C and `kill` wait to be asked for (the function that it gives); a second one stops at once.

    An exception raised just anywhere could be lost in another library's callback, or tear a checkpoint.
    """
    received = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield lambda: False
        return
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def claim_workdir(workdir: Path, config: Config, fingerprint: str, software: dict[str, Any]) -> None:
    """Writes config.json into a new run's folder; in an existing one, checks that the run is the same.

    The same means: all fields of the config that decide what is computed, but that the data set may lie elsewhere as
    long as its `fingerprint` is the same.

    Raises InputError where the folder cannot be used, or holds another run: it names the fields.
    """
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_whole(
                file, json.dumps({"config": config.to_json(), "data": fingerprint, **software}, indent=2) + "\n"
            )
            return
        saved = json.loads(file.read_text())
        before, now = dict(saved["config"]), config.to_json()
        if saved["data"] == fingerprint:
            before["dataset"] = now["dataset"]
        elif before["dataset"] == now["dataset"]:
            before["dataset"] = f"{now['dataset']} with other images"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error})") from error
    idle = {field.name for field in dataclasses.fields(config) if not field.metadata["decides"]}
    differing = [
        f"{name} was {before.get(name, 'unset')}, is {now.get(name, 'unset')}"
        for name in sorted({*before, *now} - idle)
        if before.get(name, "unset") != now.get(name, "unset")
    ]
    if differing:
        raise InputError(
            f"--workdir={workdir}: holds a run with other settings ({'; '.join(differing)}); "
            "give the old settings or another folder"
        )


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never half of it."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)
