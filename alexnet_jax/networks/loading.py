"""The trained network of a run's folder, of a file of ours, or one that others have trained."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from alexnet_jax.networks import one_file, pretrained
from alexnet_jax.networks.network import Trained, built, check_mean
from alexnet_jax.options import InputError
from alexnet_jax.paper.evaluate import all_class_names
from alexnet_jax.paper.table import Layers
from alexnet_jax.paper.written import differences, listed, to_json
from alexnet_jax.runs import workdir
from alexnet_jax.runs.checkpoint import Checkpoints
from alexnet_jax.runs.errors import Damaged


def load(
    run_or_file: str | Path,
    checkpoint: str = "latest",
    *,
    layers: Layers | None = None,
    steps: Mapping[str, Callable] | None = None,
) -> Trained:
    """The network of a run, which may still be running; or of a .safetensors of `one_file.save`; or "torchvision" or
    "caffe": see `pretrained`.

    It is built from the table that is written there. Nothing that a file says is imported or run.

    Args:
      checkpoint: "latest", "best" (lowest validation top-1 error), or a step's number; all but runs have one network.
      layers: the table that the caller expects; by default any.
      steps: the functions of steps of one's own, by name, as {"my_step": my_step}.

    Raises InputError where the folder is not a run's, the checkpoint is not there or damaged, a step is not known, or
    the table is another one than in the checkpoint, or than `layers`: it names layer and field.
    """
    source = Path(run_or_file).expanduser()
    if pretrained.is_name(run_or_file):
        _check_only(source, checkpoint)
        network = pretrained.pretrained(str(run_or_file))
    else:
        network = (_of_file if _is_file(source) else _of_run)(source, checkpoint, steps)
    if layers is not None and (differing := differences(to_json(network.net.layers), to_json(layers))):
        raise InputError(f"{source}: is of another network: {listed(differing)}")
    return network


def table(run_or_file: str | Path) -> tuple[Layers, int]:
    """The layers of what `load` gives, and the size of its crops, without its parameters. Raises InputError."""
    source = Path(run_or_file).expanduser()
    if pretrained.is_name(run_or_file):
        return pretrained.table(str(run_or_file))
    if _is_file(source):
        return one_file.table(source)
    facts = workdir.read(source)
    return facts.layers, facts.config.crop_size


def _is_file(source: Path) -> bool:
    """Of ours, and not the folder of a run. Raises InputError for another framework's."""
    if source.suffix != ".safetensors" and source.is_file():
        raise InputError(
            f"{source}: is neither a run's folder nor a .safetensors; of another framework's file "
            "python -m alexnet_jax.weights makes one"
        )
    return source.suffix == ".safetensors"


def _check_only(source: Path, checkpoint: str) -> None:
    if checkpoint not in ("latest", "best"):
        raise InputError(f"{source}: holds one network and has no checkpoint '{checkpoint}'")


def _of_file(file: Path, checkpoint: str, steps: Mapping[str, Callable] | None) -> Trained:
    _check_only(file, checkpoint)
    return one_file.load(file, steps)


def _of_run(folder: Path, checkpoint: str, steps: Mapping[str, Callable] | None) -> Trained:
    facts = workdir.read(folder, steps)
    net, like = built(folder / workdir.CONFIG, facts.layers, facts.config)
    check_mean(folder / workdir.FACTS, facts.mean_image, facts.config)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        step = checkpoints.step_of(checkpoint)
        try:
            params = checkpoints.restore_params(step, like, to_json(facts.layers))
        except Damaged as error:
            raise InputError(f"{folder}: the checkpoint of step {step} is damaged ({error})") from error
        except InputError as error:
            raise InputError(f"{error}, in {workdir.CONFIG}") from error
    finally:
        checkpoints.close()
    names = all_class_names(facts.class_names, facts.layers[-1].features)
    return Trained(
        folder, step, facts.config, facts.dataset, names, facts.mean_image, net, jax.device_put(params)
    )  # fmt: skip
