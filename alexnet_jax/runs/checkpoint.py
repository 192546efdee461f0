"""Checkpoints by orbax: save and restore.

Each has three items: `params`, all that it takes to use the network; `optimizer`, its state and the number of steps;
`log`, JSON. Each carries a checksum, and `params` the network's table as well. A fourth, `metrics`, is orbax's own: the
error, by which the best one is found.
"""

import copy
import functools
import itertools
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax.device import hosts
from alexnet_jax.files import check_text
from alexnet_jax.options import InputError
from alexnet_jax.paper.train_state import TrainState
from alexnet_jax.paper.written import Written, as_written, differences, listed
from alexnet_jax.reading import Positive, read_json
from alexnet_jax.runs import states
from alexnet_jax.runs.errors import Damaged, as_damaged, named_errors, report_lost_error
from alexnet_jax.shown import say

_STEP = re.compile("0|[1-9][0-9]*")  # the name of one's folder
_REMOVED = ".removed"  # the folder, in that of the checkpoints, of those that are not kept


class _Metrics(msgspec.Struct):
    top1_error: Annotated[float, msgspec.Meta(ge=0)]  # infinite where it is not known


class _Log(msgspec.Struct):
    """Of what the training keeps in the log, beside what others may; each sum has its number of steps."""

    sums: dict[str, tuple[float, Annotated[int, msgspec.Meta(ge=1)]]] = {}
    lowest: Positive = 2.0


class Checkpoints:
    """The checkpoints of one run, by step, in `folder`; saved in the background.

    Kept are the last `keep`, and the one with the lowest validation top-1 error. With `read_only` nothing is changed:
    another process may be saving.
    """

    def __init__(self, folder: Path, keep: int = 2, *, read_only: bool = False):
        check_text(folder, str(folder))
        self._options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,  # what a kill left half-written is removed at the next start
            todelete_subdir=_REMOVED,  # renamed first, so that a kill leaves none half-removed
            best_fn=lambda metrics: metrics["top1_error"],
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(get_metric_fn=lambda metrics: -metrics["top1_error"], n=1),
                ]
            ),
        )  # fmt: skip
        self._handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "log": ocp.JsonCheckpointHandler(),
            "state": ocp.PyTreeCheckpointHandler(),  # of version 0.1
        }
        self._folder, self._read_only = folder, read_only

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Of orbax, which saves; made once damaged checkpoints are set aside, since it does not start with any."""
        self._before = sys.unraisablehook
        sys.unraisablehook = functools.partial(report_lost_error, self._before)
        self._remove_old()
        with named_errors(self._folder, "opened"):
            return ocp.CheckpointManager(self._folder.absolute(), options=self._options, item_handlers=self._handlers)

    def _steps(self) -> list[int]:
        """Of those on the disk, complete ones."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(int(place.name) for place in found if _STEP.fullmatch(place.name) and place.is_dir())

    def save(
        self, step: int, state: TrainState, layers: Written, log: Mapping[str, Any], top1_error: float = math.inf
    ) -> None:
        """Starts saving; `state` and `log` may be overwritten as soon as it returns. Raises InputError where it cannot.

        layers: the network's table, written out. log: any JSON. top1_error: on the validation split, where it is known.
        """
        manager = self._manager
        params, optimizer = states.on_host((state.params, {"step": state.step, "state": state.opt_state}))
        with named_errors(self._folder):
            manager.wait_until_finished()  # with the one before, which takes room too
        self._remove_old()
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimizer))), self._free()
        if free < needed:  # asked first, since a write that fails makes TensorStore's threads print pages
            megabytes = f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free"
            raise InputError(f"{self._folder}: the checkpoint cannot be written (the disk is full: {megabytes})")
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params, custom_metadata={"layers": layers, **states.sums(params, layers)}),
            optimizer=ocp.args.StandardSave(optimizer, custom_metadata=states.sums(optimizer)),
            log=ocp.args.JsonSave({**copy.deepcopy(dict(log)), "crc32": states.crc(log)}),  # while the caller goes on
        )
        with named_errors(self._folder):
            if not manager.save(step, args=items, metrics={"top1_error": top1_error}):
                raise ValueError(f"orbax did not take that of step {step}")

    def _remove_old(self) -> None:
        if hosts.is_first_host():
            shutil.rmtree(self._folder / _REMOVED, ignore_errors=True)

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self._steps(), default=None) if self._read_only else self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the one with the lowest validation top-1 error; of several, the last. Raises InputError where the
        error of one cannot be read.
        """
        if self._read_only:
            return min(self._steps(), key=lambda step: (self._error(step), -step), default=None)
        return self._manager.best_step()

    def _error(self, step: int) -> float:
        """The validation top-1 error of a step, infinite where it is not known. Raises InputError."""
        file = self._folder / str(step) / "metrics" / "metrics"
        try:
            return read_json(file, _Metrics, finite=False).top1_error
        except FileNotFoundError:
            raise InputError(f"{file}: is missing") from None

    def step_of(self, name: str) -> int:
        """The step of "latest", "best", or a number. Raises InputError where there is no such checkpoint."""
        steps = {str(step): step for step in self._steps()}
        kinds = {"latest": self.latest_step, "best": self.best_step}
        found = kinds[name]() if name in kinds else steps.get(name)
        if found is None:
            there = f"there are latest, best, {', '.join(steps)}" if steps else "there is none"
            raise InputError(f"{self._folder}: has no checkpoint '{name}'; {there}")
        return found

    def restore_latest(self, like: TrainState, layers: Written) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, as (state on the host, log); None where there has been none.

        Damaged ones after it are set aside, with a warning. Raises InputError where all are damaged, or are of another
        table than `layers`, or have other parameters than `like`.
        """
        damaged: dict[int, Exception] = {}
        found = None
        for step in reversed(self._steps()):
            try:
                self._check_small_files(step)
                found = found or self.restore(step, like, layers)
            except Damaged as error:
                damaged[step] = error
        if damaged and not found:
            reasons = "; ".join(f"{step}: {error}" for step, error in damaged.items())
            raise InputError(f"{self._folder}: no checkpoint can be read ({reasons}); begin again in another --workdir")
        self._set_aside(damaged)
        _ = self._manager  # now, and not when there is something to save
        return found

    def _set_aside(self, damaged: Mapping[int, Exception]) -> None:
        if not damaged:
            return
        hosts.wait_for_all("restored")
        for step, error in damaged.items() if hosts.is_first_host() else ():
            place = self._folder / str(step)
            names = (Path(f"{place}.damaged{number or ''}") for number in itertools.count())
            aside = next(name for name in names if not os.path.lexists(name))
            place.rename(aside)
            say(f"warning: {place}: is damaged ({error}); it is now {aside}", error=True)
        hosts.wait_for_all("set aside")

    def _check_small_files(self, step: int) -> None:
        """Raises Damaged where orbax would not start with them."""
        try:
            self._error(step)
            file = self._folder / str(step) / "_CHECKPOINT_METADATA"
            if file.exists():
                read_json(file, dict[str, Any])
        except InputError as error:
            raise Damaged(error) from error

    def restore(self, step: int, like: TrainState, layers: Written) -> tuple[TrainState, dict[str, Any]]:
        """The state of that step, on the host, with the structure and types of `like`; and the log.

        Raises Damaged where it cannot be read, InputError where it is of another network or optimizer.
        """
        params = self.restore_params(step, like.params, layers)
        optimizer = self._item(step, "optimizer", {"step": like.step, "state": like.opt_state})
        if (of := int(optimizer["step"])) != step:
            raise Damaged(f"optimizer: is of step {of}")
        return TrainState(optimizer["step"], params, optimizer["state"]), self._log(step)

    def _log(self, step: int) -> dict[str, Any]:
        file = self._folder / str(step) / "log" / "metadata"
        with as_damaged(file):
            log = read_json(file, dict[str, Any], finite=False)
            found = log.pop("crc32", "unknown" if "sums" in log else "")  # of the first days of version 0.2
            if found not in ("unknown", states.crc(log)):
                raise ValueError("its numbers are not those that were saved")
            msgspec.convert(log, _Log)
        return log

    def restore_params(self, step: int, like: PyTree, layers: Written) -> PyTree:
        """The parameters alone. like: their shapes and types. Raises as `restore` does."""
        folder = self._folder / str(step)
        if not (folder / "params").exists() and (folder / "state").exists():
            return self._params_of_version_01(step, like)
        return self._item(step, "params", like, layers)

    def _item(self, step: int, name: str, like: PyTree, layers: Written | None = None) -> PyTree:
        folder = self._folder / str(step)
        place, wanted, like = folder / name, like, states.shapes(like)
        with as_damaged(place):
            metadata = self._handlers[name].metadata(place.absolute())
            saved = dict(metadata.custom_metadata)
            if saved.get("form_crc32", form := states.form_crc(metadata.tree, saved.get("layers"))) != form:
                raise ValueError("its names, shapes or layers are not those that were saved")
            table = as_written(saved["layers"]) if layers is not None else []
        if layers is not None and (differing := differences(table, layers)):
            raise InputError(f"{folder}: is of another network: {listed(differing)}")
        states.compare(folder, name, metadata.tree, like)
        with as_damaged(place):
            args = ocp.args.StandardRestore(jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like))
            found = self._handlers[name].restore(place.absolute(), args=args)
            if saved["crc32"] != states.digest(found):  # TensorStore does not notice a changed byte
                raise ValueError("its numbers are not those that were saved")
        return jax.tree.map(states.as_keys, wanted, found)

    def _params_of_version_01(self, step: int, like: PyTree) -> PyTree:
        like, folder = {"params": states.shapes(like)}, self._folder / str(step)
        place = (folder / "state").absolute()
        with as_damaged(place):
            tree = self._handlers["state"].metadata(place).tree["params"]
        states.compare(folder, "params", tree, like["params"])
        with as_damaged(place):
            types = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), like)
            args = ocp.args.PyTreeRestore(like, restore_args=types, partial_restore=True)
            return self._handlers["state"].restore(place, args=args)["params"]

    def reached_preemption(self, step: int) -> bool:
        """Whether the hosts are to stop after this step: the same answer on all."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until what is being saved is on disk. Raises InputError where it could not be written."""
        if "_manager" in vars(self):
            try:
                with named_errors(self._folder):
                    self._manager.close()
                self._remove_old()
            finally:
                sys.unraisablehook = self._before
