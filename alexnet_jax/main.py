"""Trains AlexNet and evaluates it.

  python -m alexnet_jax.main --workdir=DIR                        the built-in data set, minutes on a CPU
  python -m alexnet_jax.main --workdir=DIR --dataset=PREPARED     your photographs, from alexnet_jax.prepare
  python -m alexnet_jax.main --workdir=DIR --dataset=PREPARED --preset=paper

A preset fills in every setting; each flag given beside it replaces one. The same command given again
continues a run that was stopped.

  python -m alexnet_jax.main --mode=evaluate --workdir=DIR[,DIR,…] --views=10

evaluates what runs have left, each alone and averaged (§6).
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from alexnet_jax import command
from alexnet_jax.config import ARCHITECTURE_NAMES, PRESETS, Config, network_of
from alexnet_jax.files import whole_paths
from alexnet_jax.options import InputError, check_bounds, check_choice, one_of, option


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags beside those of Config."""

    workdir: str = option(
        "", "folder of the run: made where it is missing, continued where it is not; to evaluate: one or several, "
        "comma-separated, or answers.npz of earlier evaluations",
    )  # fmt: skip
    preset: str = option("demo", f"settings to start from: {one_of(PRESETS)}")
    architecture: str = option(
        "", f"the network: {one_of(ARCHITECTURE_NAMES)}; none: that of the preset's name, or else paper"
    )
    dataset: str = option("shapes", "a folder that alexnet_jax.prepare wrote, or the built-in data set 'shapes'")
    num_classes: int = option(
        0, "outputs of the last layer; 0: as many as the data set has classes", minimum=0, maximum=100_000
    )
    mode: str = option("train", "train, and evaluate at the end; or evaluate: only that, of runs that are there")
    views: int = option(1, "to evaluate: 1, the centre of each image, or 10, as in §4.1")
    checkpoint: str = option("latest", "to evaluate: which of the run's: latest, best, or the number of a step")
    split: str = option("validation", "to evaluate: of the data set")
    weights: tuple[float, ...] = option((), "to evaluate: of each --workdir in the average; none: all alike", minimum=0)
    output: str = option("", "to evaluate: where to write; none: 'evaluation' in the first --workdir")
    compilation_cache: str = option(
        "",
        "a folder: the compiled program is kept there, and starts sooner the next time, in this or another --workdir; "
        "on a CPU the convolutions are then others, slower, and round otherwise",
    )
    distributed: bool = option(
        False,
        "train with other processes, each started with this flag; on TPU pods, SLURM and GKE they find each other",
    )
    coordinator: str = option("", "elsewhere: HOST:PORT of process 0, the same for all; means --distributed")
    num_processes: int = option(0, "elsewhere: how many processes there are", minimum=0, maximum=2**16)
    process_id: int = option(-1, "elsewhere: which of them this one is, from 0", minimum=-1)
    host_timeout: float = option(
        60.0, "seconds to wait for a process that has not come or gives no sign of life, before all others end",
        minimum=1,
    )  # fmt: skip
    debug_nans: bool = option(
        False,
        "end with a traceback where the first not-a-number comes from: in a --workdir of its "
        "own, since it rounds otherwise; very slow, one process only",
    )

    def __post_init__(self):
        check_bounds(self)
        if not self.workdir:
            raise InputError("--workdir=DIR is needed: the folder of the run")
        check_choice("mode", self.mode, ("train", "evaluate"))
        check_choice("views", self.views, (1, 10))
        check_choice("preset", self.preset, PRESETS)
        check_choice("architecture", self.architecture or network_of(self.preset), ARCHITECTURE_NAMES)
        host, _, port = self.coordinator.rpartition(":")
        if self.coordinator and not (host and port.isdecimal() and int(port) < 2**16):
            raise InputError(f"--coordinator={self.coordinator}: must be HOST:PORT")
        if self.coordinator and not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"--coordinator={self.coordinator}: needs --num_processes and --process_id, which is from 0 to one less"
            )
        if self.debug_nans and (self.distributed or self.coordinator):
            raise InputError("--debug_nans: not with several processes")
        if (self.num_processes or self.process_id >= 0) and not self.coordinator:
            raise InputError("--num_processes and --process_id need --coordinator=HOST:PORT")


def main() -> None:
    """The command `python -m alexnet_jax.main`."""
    command.define_flags(Options)
    command.define_flags(Config, PRESETS)
    command.run(_run, __doc__)


def _run() -> None:
    options = Options(**command.given_flags(Options))
    given, named = command.given_flags(Config), command.given_flags(Options)
    config = dataclasses.replace(PRESETS[options.preset], **given)
    command.check_cache("--compilation_cache", options.compilation_cache)
    if options.distributed or options.coordinator:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # pages of JAX's, where another process has ended
    # Here, so that --help and bad flags do not wait for it.
    import jax

    if options.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", options.compilation_cache)
    if options.mode == "evaluate":
        _evaluate(options, named.get("dataset", ""), **given)
    else:
        jax.config.update("jax_debug_nans", options.debug_nans)
        _train(options, config, has_crop_size="crop_size" in given, has_preset="preset" in named)


def _evaluate(options: Options, dataset: str, *, batch_size: int = 128, **others: Any) -> None:
    from alexnet_jax.networks import pretrained
    from alexnet_jax.networks.ensemble import evaluate_networks

    if others:
        raise InputError(f"--{next(iter(others))}: not with --mode=evaluate, which takes it from the run")
    sources = [source for source in whole_paths(options.workdir.split(",")) if source] or [options.workdir]
    is_file = sources[0].endswith((".npz", ".safetensors")) or pretrained.is_name(sources[0])
    if not options.output and is_file:
        raise InputError("--output=DIR is needed where the first of --workdir is a file")
    evaluate_networks(
        sources, Path(options.output or Path(sources[0], "evaluation")).expanduser(), views=options.views,
        checkpoint=options.checkpoint, split=options.split, dataset=dataset, weights=options.weights,
        batch_size=batch_size,
    )  # fmt: skip


def _train(options: Options, config: Config, *, has_crop_size: bool, has_preset: bool) -> None:
    from alexnet_jax.data.datasets import open_dataset
    from alexnet_jax.device import hosts
    from alexnet_jax.networks.transfer import table_of_origin
    from alexnet_jax.paper.architectures import ARCHITECTURES, CAFFE_IMAGE_SIZE
    from alexnet_jax.paper.table import with_classes
    from alexnet_jax.train import fit

    if options.distributed or options.coordinator:
        hosts.start(options.coordinator, options.num_processes, options.process_id, options.host_timeout)
    name = options.architecture or network_of(options.preset)
    if config.init_from and not options.architecture and not has_preset:
        layers, crop_size = table_of_origin(config.init_from, Path(options.workdir).expanduser())
    else:
        layers, crop_size = ARCHITECTURES[name], CAFFE_IMAGE_SIZE if name == "caffe" else config.crop_size
    if not has_crop_size:
        config = dataclasses.replace(config, crop_size=crop_size)
    dataset = open_dataset(options.dataset)
    classes = len(dataset.class_names)
    if options.num_classes and options.num_classes < classes:
        raise InputError(f"--num_classes={options.num_classes}: {dataset.path} has {classes} classes")
    with hosts.needed():
        fit(with_classes(layers, options.num_classes or classes), dataset, config, options.workdir)


if __name__ == "__main__":
    main()
