"""Trained networks in one file, and from and to other frameworks.

  python -m alexnet_jax.weights --source=RUN --output=alexnet.safetensors
  python -m alexnet_jax.weights --source=bvlc_alexnet.caffemodel --mean=imagenet_mean.binaryproto --output=…
  python -m alexnet_jax.weights --source=alexnet-owt-7be5be79.pth --output=alexnet.safetensors
  python -m alexnet_jax.weights --source=RUN --output=torch.safetensors --pytorch
  python -m alexnet_jax.weights --source=RUN --output=alexnet.jax      a program: images → probabilities

A .safetensors stands for a run wherever one is asked for: predict --workdir=alexnet.safetensors photo.jpg.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from alexnet_jax import command
from alexnet_jax.config import Config, InputError, option
from alexnet_jax.device import onednn
from alexnet_jax.networks import interchange
from alexnet_jax.networks import network as trained
from alexnet_jax.networks.network import Trained
from alexnet_jax.paper.architectures import ARCHITECTURES, with_classes
from alexnet_jax.paper.evaluate import Errors
from alexnet_jax.runs import log as runlog

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def save(network: Trained, file: str | Path, errors: Mapping[str, float] | None = None) -> None:
    """Writes a network with all that it takes to use it: parameters, mean image, and a card in the metadata (config,
    class names, step, `errors`, versions and commit).
    """
    # safetensors writes an array's memory, in whatever order it lies there.
    tensors = {name: np.ascontiguousarray(value) for name, value in flatten_dict(network.params, sep="/").items()}
    tensors["mean_image"] = np.ascontiguousarray(network.mean_image, np.float32)
    card = {
        "config": {**network.config.to_json(), "dataset": ""},
        "class_names": network.class_names,
        "step": network.step,
        "errors": dict(errors or {}),
        **runlog.versions(),
    }
    content = safetensors.numpy.save(
        tensors, {"format": interchange.FORMAT, "card": json.dumps(card, ensure_ascii=False)}
    )
    runlog.write_whole(Path(file), content)


def load(file: str | Path) -> Trained:
    """What `save` wrote. Raises InputError where it did not write this, or the file is damaged."""
    file = Path(file)
    tensors, metadata = interchange.read_safetensors(file)
    if metadata.get("format") != interchange.FORMAT:
        raise InputError(f"{file}: was not written by alexnet_jax.weights; it reads the file as --source")
    try:
        card = json.loads(metadata["card"])
        config, names, step = Config.from_json(card["config"]), tuple(map(str, card["class_names"])), int(card["step"])
        layers = with_classes(ARCHITECTURES[config.architecture], len(names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: its card cannot be read ({error})") from error
    mean_image = tensors.pop("mean_image", np.zeros(0))
    if mean_image.ndim != 3 or mean_image.shape[0] != mean_image.shape[1] or mean_image.shape[2] != 3:
        raise InputError(f"{file}: mean_image is missing, or no square colour image")
    return trained.assembled(file, config, step, names, mean_image, layers, tensors)


def program(network: Trained, *, views: int = 1) -> bytes:
    """The function images (uint8, (n, size, size, 3), for any n) → probabilities ((n, classes), float32) with all its
    parameters, as `jax.export` serializes it: it runs on CPUs, GPUs and TPUs, without this package.
    """
    logits = network.make_logits(views=views)
    (n,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, network.size, network.size, 3), jnp.uint8)
    with onednn.left_out():
        answers = jax.jit(lambda images: jax.nn.softmax(logits(network.params, images)))
        return bytes(jax.export.export(answers, platforms=PLATFORMS)(images).serialize())


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags."""

    source: str = option("", "a run's folder, a .safetensors, torchvision's .pth, or Caffe's .caffemodel")
    output: str = option("", "file to write: .safetensors, or .jax for a program of jax.export")
    views: int = option(1, "of a program: 1, the centre of each image, or 10, averaged")
    checkpoint: str = option("latest", "of a run: which of its checkpoints")
    mean: str = option("", "of a .caffemodel: the .binaryproto with the mean image")
    classes: str = option("", "of another framework's network: file with the name of a class on each line")
    pytorch: bool = option(False, "write a state dict for PyTorch instead")

    def __post_init__(self):
        if not self.source or not self.output:
            raise InputError("--source=RUN_OR_FILE and --output=FILE are needed")
        if Path(self.output).suffix not in (".safetensors", ".jax"):
            raise InputError(f"--output={self.output}: must end in .safetensors or .jax")
        if self.views not in (1, 10):
            raise InputError(f"--views={self.views}: must be 1 or 10")
        if self.output.endswith(".jax") and self.pytorch:
            raise InputError(f"--pytorch writes a .safetensors, and --output={self.output} is none")
        if not self.output.endswith(".jax") and self.views != 1:
            raise InputError(f"--views={self.views} is of a program, and --output={self.output} is no .jax")


def read(options: Options) -> Trained:
    """The network that is meant, of whatever kind. Raises InputError."""
    source = Path(options.source).expanduser()
    if not source.exists():
        raise InputError(f"--source={source}: is not there")
    if options.mean and source.suffix != ".caffemodel":
        raise InputError(f"--mean={options.mean} is for a .caffemodel; {source} is none")
    if source.is_dir() or interchange.is_ours(source):
        if options.classes:
            raise InputError(f"--classes={options.classes} is for another framework's network; {source} has its own")
        return trained.load(source, options.checkpoint)
    if options.checkpoint != "latest":
        raise InputError(f"--checkpoint={options.checkpoint} is for a run's folder; {source} is none")
    names = _lines(Path(options.classes).expanduser()) if options.classes else ()
    if source.suffix == ".caffemodel":
        if not options.mean:
            raise InputError(f"{source}: needs --mean=FILE, the .binaryproto that comes with it")
        return interchange.from_caffe(source, Path(options.mean).expanduser(), names)
    return interchange.from_torchvision(source, names)


def _lines(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is no text in UTF-8 ({error.reason})") from error


def known_errors(network: Trained) -> dict[str, float]:
    """What its run's result.json says, where that is of this step and not of a later one."""
    result = network.workdir / "result.json"
    told = json.loads(result.read_text()) if result.exists() else {}
    return {kind: told[kind] for kind in Errors._fields} if told.get("steps") == network.step else {}


def main() -> None:
    """The command `python -m alexnet_jax.weights`."""
    command.define_flags(Options)
    command.run(_convert, __doc__)


def _convert() -> None:
    options = Options(**command.given_flags(Options))
    network, output = read(options), Path(options.output).expanduser()
    if output.suffix == ".jax":
        runlog.write_whole(output, program(network, views=options.views))
    elif options.pytorch:
        runlog.write_whole(output, safetensors.numpy.save(interchange.to_pytorch(network)))
    else:
        save(network, output, known_errors(network))
    print(f"{output}: {network.config.architecture}, {len(network.class_names)} classes", flush=True)


if __name__ == "__main__":
    main()
