"""Caffe's files, read without Caffe: protocol buffers, of which the fields that are used are declared here."""

import collections
import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from jaxtyping import Float

from alexnet_jax.files import read_plain
from alexnet_jax.options import InputError
from alexnet_jax.shown import reason, short

# caffe.proto of BVLC/caffe: message → (field, number, type, repeated). Of the two lists of layers, the older one has
# numbers for types.
_MESSAGES: dict[str, list[tuple[str, int, str, bool]]] = {
    "BlobShape": [("dim", 1, "int64", True)],
    "BlobProto": [
        ("num", 1, "int32", False),
        ("channels", 2, "int32", False),
        ("height", 3, "int32", False),
        ("width", 4, "int32", False),
        ("data", 5, "float", True),
        ("shape", 7, "BlobShape", False),
    ],
    "V1LayerParameter": [("name", 4, "string", False), ("type", 5, "int32", False), ("blobs", 6, "BlobProto", True)],
    "LayerParameter": [("name", 1, "string", False), ("type", 2, "string", False), ("blobs", 7, "BlobProto", True)],
    "NetParameter": [
        ("name", 1, "string", False),
        ("layers", 2, "V1LayerParameter", True),
        ("layer", 100, "LayerParameter", True),
    ],
}


_KINDS = {15: "norm", 17: "pool", "LRN": "norm", "Pooling": "pool"}


@functools.cache
def message(name: str) -> Any:
    """The class of a message of caffe.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="alexnet_jax/caffe.proto", package="caffe", syntax="proto2")
    for of, fields in _MESSAGES.items():
        described = file.message_type.add(name=of)
        for of_field, number, kind, repeated in fields:
            one = described.field.add(name=of_field, number=number, label=3 if repeated else 1)
            if kind in _MESSAGES:
                one.type, one.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                one.type = getattr(field, f"TYPE_{kind.upper()}")
            if repeated and kind not in _MESSAGES:
                one.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))


class Network(NamedTuple):
    """What a .caffemodel says. blobs: of each layer that has some. pools_first: whether it is CaffeNet, which pools
    before it normalises; else AlexNet.
    """

    blobs: dict[str, list[Float[np.ndarray, "..."]]]
    pools_first: bool


def read_network(file: Path) -> Network:
    """Raises InputError where it is damaged."""
    with _named(file):
        network = message("NetParameter").FromString(read_plain(file))
        layers = [*network.layers, *network.layer]
        if not all(isinstance(of.name, str) for of in (network, *layers)):  # protobuf then gives bytes
            raise ValueError("a name in it is no text")
        names = collections.Counter(of.name for of in layers if of.blobs)
        for name, number in names.items():
            if number > 1:
                raise ValueError(f"has two layers {short(name)}")
        blobs = {layer.name: [_array(blob) for blob in layer.blobs] for layer in layers if layer.blobs}
        kinds = [_KINDS[layer.type] for layer in layers if layer.type in _KINDS]
        by_name = "caffenet" in network.name.lower()  # where only the layers with blobs are kept
    return Network(blobs, kinds[0] == "pool" if len(set(kinds)) == 2 else by_name)


def read_mean(file: Path) -> Float[np.ndarray, "height width 3"]:
    """The mean image of a .binaryproto, as RGB. Raises InputError where it is damaged, or no colour image of
    finite numbers.
    """
    with _named(file):
        mean = _array(message("BlobProto").FromString(read_plain(file)))
    mean = mean[0] if mean.ndim == 4 and len(mean) == 1 else mean
    if mean.ndim != 3 or mean.shape[0] != 3:
        raise InputError(f"{file}: holds no colour image, but numbers of the shape {mean.shape}")
    if not np.isfinite(mean).all():
        raise InputError(f"{file}: holds numbers that are not finite")
    return mean[::-1].transpose(1, 2, 0)


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (DecodeError, ValueError) as error:  # a name that is no text, a shape that no array has
        raise InputError(f"{file}: is damaged, or no file of Caffe's ({reason(error)})") from error


def _array(blob: Any) -> Float[np.ndarray, "..."]:
    """Raises ValueError where there are not as many numbers as its shape says."""
    shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    values = np.array(blob.data, np.float32)
    if len(shape) > 8 or min(shape) < 0 or math.prod(shape) != values.size:
        raise ValueError(f"{values.size} numbers where the shape is {shape}")
    return values.reshape(shape)
