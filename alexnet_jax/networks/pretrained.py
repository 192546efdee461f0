"""Networks that others have trained on ImageNet, from where their owners publish them."""

from collections.abc import Mapping
from pathlib import Path

from alexnet_jax.data import imagenet
from alexnet_jax.downloads import Published, fetched
from alexnet_jax.networks import interchange
from alexnet_jax.networks.network import Trained
from alexnet_jax.options import InputError, check_choice
from alexnet_jax.paper.architectures import CAFFE_IMAGE_SIZE
from alexnet_jax.paper.table import Layers

# torchvision: address and first eight digits of the SHA-256 (in the name) from torchvision/models/alexnet.py,
# AlexNet_Weights.IMAGENET1K_V1; torch.hub checks these eight. The other digits are what several projects found who
# keep a digest of it; they agree, and so do the eight.
# Caffe: address and SHA-1 from the model's card, models/bvlc_alexnet/readme.md of BVLC/caffe.
PUBLISHED: Mapping[str, Published] = {
    "torchvision": Published(
        "alexnet-owt-7be5be79.pth",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "sha256",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "caffe": Published(
        "bvlc_alexnet.caffemodel",
        "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel",
        "sha1",
        "9116a64c0fbe4459d18f4bb6b56d647b63920377",
    ),
}


def pretrained(name: str, mean: str | Path | None = None) -> Trained:
    """The AlexNet of "torchvision" or of "caffe" (bvlc_alexnet), with the names of its 1,000 classes.

    It is fetched once into a cache (ALEXNET_JAX_CACHE, else ~/.cache/alexnet_jax), 233 MB, and is checked at each use.

    Args:
      mean: of "caffe": its .binaryproto of the mean image. By default the mean value of each colour, as Caffe's
        published example takes it: of the archive that has the image no checksum is published.

    Raises InputError for another name, and where it cannot be fetched: the line says what to put where by hand.
    """
    check_choice("workdir", name, PUBLISHED)
    if name == "torchvision":
        if mean is not None:
            raise InputError(f"{mean}: is a mean for caffe; torchvision's network has its own")
        return interchange.from_torchvision(fetched(PUBLISHED[name]), imagenet.class_names())
    return interchange.from_caffe(fetched(PUBLISHED[name]), mean, imagenet.class_names())


def table(name: str) -> tuple[Layers, int]:
    """The layers of one of these, and the size of its crops; nothing is fetched for that."""
    return {"torchvision": (interchange.TORCHVISION, 224), "caffe": (interchange.CAFFE, CAFFE_IMAGE_SIZE)}[name]


def is_name(run_or_file: str | Path) -> bool:
    """Whether this is the name of such a network. A folder or file of that name goes first."""
    return str(run_or_file) in PUBLISHED and not Path(run_or_file).exists()
