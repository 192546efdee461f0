"""Checkpoints by orbax: save, restore, and which run a folder belongs to."""

import json
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
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: PyTree) -> None:
        """Starts saving; `state` may be overwritten as soon as this returns."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def restore(self, step: int, like: PyTree) -> PyTree:
        """The state of that step, with the structure, types and placement of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def wait(self) -> None:
        """Until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def claim_workdir(workdir: Path, config: Config, origin: dict[str, Any]) -> None:
    """Writes config.json into a new run's folder; in an existing one, checks that the run is the same.

    Raises InputError where the folder cannot be used, or holds a run with another config: it names the fields.
    """
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps({"config": config.to_json(), **origin}, indent=2) + "\n")
            partial.rename(file)
            return
        before = dict(json.loads(file.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error})") from error
    now = config.to_json()
    differing = [
        f"{name} was {before.get(name, 'unset')}, is {now.get(name, 'unset')}"
        for name in sorted({*before, *now})
        if before.get(name, "unset") != now.get(name, "unset")
    ]
    if differing:
        raise InputError(
            f"--workdir={workdir}: holds a run with other settings ({'; '.join(differing)}); "
            "give the old settings or another folder"
        )
