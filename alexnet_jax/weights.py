"""Trained networks in one file, and from and to other frameworks.

  python -m alexnet_jax.weights --source=RUN --output=alexnet.safetensors
  python -m alexnet_jax.weights --source=bvlc_alexnet.caffemodel --output=…      with --mean=FILE, or the colours' means
  python -m alexnet_jax.weights --source=alexnet-owt-7be5be79.pth --output=alexnet.safetensors
  python -m alexnet_jax.weights --source=torchvision --output=…      or caffe: fetched from where its owner publishes it
  python -m alexnet_jax.weights --source=RUN --output=torch.safetensors --pytorch
  python -m alexnet_jax.weights --source=RUN --output=alexnet.jax      a program: images → probabilities
  python -m alexnet_jax.weights --source=RUN --output=alexnet.onnx     the same for the runtimes of ONNX

A .safetensors stands for a run wherever one is asked for: predict --workdir=alexnet.safetensors photo.jpg.
"""

import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_jax import command
from alexnet_jax.options import InputError, check_bounds, check_choice, option
from alexnet_jax.shown import say

if TYPE_CHECKING:
    from alexnet_jax.networks.network import Trained


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags."""

    source: str = option(
        "",
        "a run's folder, a .safetensors, torchvision's .pth, or Caffe's .caffemodel; or torchvision or caffe, "
        "which are fetched",
    )
    output: str = option("", "file to write: .safetensors, .jax (a program of jax.export), or .onnx")
    views: int = option(1, "of a .jax: 1, the centre of each image, or 10, averaged")
    checkpoint: str = option("latest", "of a run: which of its checkpoints")
    mean: str = option("", "of a .caffemodel: the .binaryproto with the mean image; none: each colour's mean")
    classes: str = option("", "of another framework's network: file with the name of a class on each line")
    upright: bool = option(
        False, "of another framework's network: turn pictures as their EXIF says, as its own programs do not"
    )
    pytorch: bool = option(False, "write a state dict for PyTorch instead")

    def __post_init__(self):
        check_bounds(self)
        if not self.source or not self.output:
            raise InputError("--source=RUN_OR_FILE and --output=FILE are needed")
        if Path(self.output).suffix not in (".safetensors", ".jax", ".onnx"):
            raise InputError(f"--output={self.output}: must end in .safetensors, .jax or .onnx")
        check_choice("views", self.views, (1, 10))
        if not self.output.endswith(".safetensors") and self.pytorch:
            raise InputError(f"--pytorch writes a .safetensors, and --output={self.output} is none")
        if not self.output.endswith(".jax") and self.views != 1:
            raise InputError(f"--views={self.views} is of a program, and --output={self.output} is no .jax")


def read(options: Options) -> "Trained":
    """The network that is meant, of whatever kind. Raises InputError."""
    # Here, so that --help and bad flags do not wait for it.
    from alexnet_jax.networks import interchange, one_file, pretrained
    from alexnet_jax.networks.loading import load

    source, mean = Path(options.source).expanduser(), Path(options.mean).expanduser() if options.mean else None
    given = pretrained.is_name(options.source)
    if not given and not source.exists():
        raise InputError(f"--source={source}: is not there")
    if mean and not given and source.suffix != ".caffemodel":
        raise InputError(f"--mean={options.mean} is for a .caffemodel; {source} is none")
    is_own = not given and (source.is_dir() or one_file.is_ours(source))
    if options.classes and (given or is_own):
        raise InputError(f"--classes={options.classes} is for files without names of their own; {source} has its own")
    if is_own and options.upright:
        raise InputError(f"--upright is for another framework's network; {source} says that itself")
    if is_own:
        return load(source, options.checkpoint)
    if options.checkpoint != "latest":
        raise InputError(f"--checkpoint={options.checkpoint} is for a run's folder; {source} is none")
    names = _lines(Path(options.classes).expanduser()) if options.classes else ()
    if given:
        network = pretrained.pretrained(options.source, mean)
    elif source.suffix == ".caffemodel":
        if not mean:
            say(f"{source}: without --mean=FILE, the mean of each colour is subtracted, as in Caffe's example")
        network = interchange.from_caffe(source, mean, names)
    else:
        network = interchange.from_torchvision(source, names)
    rule = dataclasses.replace(network.preprocessing, upright=network.preprocessing.upright or options.upright)
    return dataclasses.replace(network, preprocessing=rule)


def _lines(file: Path) -> tuple[str, ...]:
    from alexnet_jax.files import read_plain

    try:
        text = io.TextIOWrapper(io.BytesIO(read_plain(file)), encoding="utf-8-sig").read()  # lines of any system
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is no text in UTF-8 ({error.reason})") from error
    if "\0" in text:  # as in UTF-16; and NumPy drops it at the end of a name
        raise InputError(f"{file}: is no text in UTF-8 (there is the character 0)")
    return tuple(text.rstrip("\n").split("\n"))


def known_errors(network: "Trained") -> dict[str, float]:
    """What its run's result.json says, where that is of this step and not of a later one."""
    from alexnet_jax.runs import report

    result = network.source / report.RESULT
    found = report.read(result) if result.exists() else {}
    kinds = ("top1_error", "top5_error", "nll", "examples")
    return {kind: found[kind] for kind in kinds} if found.get("steps") == network.step else {}


def main() -> None:
    """The command `python -m alexnet_jax.weights`."""
    command.define_flags(Options)
    command.run(_convert, __doc__)


def _convert() -> None:
    options = Options(**command.given_flags(Options))
    network, output = read(options), Path(options.output).expanduser()
    import safetensors.numpy

    from alexnet_jax.files import write_whole
    from alexnet_jax.networks import interchange, one_file, onnx

    if output.suffix == ".jax":
        write_whole(output, one_file.program(network, views=options.views))
    elif output.suffix == ".onnx":
        write_whole(output, onnx.to_onnx(network))
    elif options.pytorch:
        write_whole(output, safetensors.numpy.save(interchange.to_pytorch(network)))
    else:
        one_file.save(network, output, known_errors(network))
    say(f"{output}: {len(network.net.layers)} layers, {len(network.class_names)} classes")
    if output.suffix == ".jax":
        say(f"it takes {network.described_images()}")


if __name__ == "__main__":
    main()
