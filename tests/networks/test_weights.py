"""Networks in one file, and from and to other frameworks."""

import dataclasses
import functools
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import CROP, TINY
from flax.traverse_util import flatten_dict

from alexnet_jax import command, weights
from alexnet_jax.config import Config
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.networks import caffe, interchange, one_file
from alexnet_jax.networks.loading import load
from alexnet_jax.networks.network import Trained, network_of_arrays
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import CAFFE, PAPER, TORCHVISION
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.table import Conv, Dense, Local, with_column
from alexnet_jax.paper.train_state import init_params, shapes_of_params
from alexnet_jax.train import fit

pytestmark = pytest.mark.usefixtures("quickly_compiled", "undrawn")
WIDTHS = (8, 12, 16, 12, 8, 24, 20, 7)
IMAGES = np.random.default_rng(1).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The same tables at widths that tests can afford."""
    for name, layers in {"CAFFE": CAFFE, "TORCHVISION": TORCHVISION}.items():
        monkeypatch.setattr(interchange, name, with_column(layers, features=WIDTHS))


def logits(network, images):
    return np.asarray(network.make_logits()(network.params, jnp.asarray(images)))


def oihw(layers, crop_size, scale=1.0):
    """Random weights and biases by layer, in the order of PyTorch and Caffe."""
    like = shapes_of_params(AlexNet(layers), crop_size)
    rng = np.random.default_rng(0)
    found = {}
    for name, of in like.items():
        shape = of["kernel"].shape
        inputs = int(np.prod(shape[:-1]))
        weight = rng.normal(size=(shape[-1], *((shape[2], *shape[:2]) if len(shape) == 4 else (inputs,))))
        found[name] = [
            (scale * weight * (2 / inputs) ** 0.5).astype(np.float32),
            rng.normal(size=shape[-1]).astype(np.float32),
        ]
    return found


def torchvision_tensors():
    ours = oihw(interchange.TORCHVISION, 224)
    return {
        f"{theirs}.{part}": tensor
        for theirs, name in interchange.TORCHVISION_NAMES.items()
        for part, tensor in zip(("weight", "bias"), ours[name], strict=True)
    }


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("runs") / "run", Config(crop_size=CROP, batch_size=16, epochs=1.0)
    fit(TINY, open_dataset(str(prepared)), config, folder, devices=jax.devices()[:1])
    return folder


def test_a_saved_network_is_the_same_network(run, prepared, tmp_path):
    file = tmp_path / "a.safetensors"
    before = weights.read(weights.Options(source=str(run), output="a.safetensors"))
    errors = weights.known_errors(before)
    assert errors["top1_error"] == json.loads((run / "result.json").read_text())["top1_error"]
    assert weights.known_errors(dataclasses.replace(before, step=1)) == {}
    one_file.save(before, file, errors)
    after = load(file)
    images = np.random.default_rng(0).integers(0, 256, (5, before.size, before.size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(after.probabilities(images), before.probabilities(images))
    assert (after.class_names, after.step, after.config) == (before.class_names, before.step, before.config)
    assert after.net.layers == before.net.layers == TINY
    assert (before.dataset, after.dataset) == (str(prepared), "")
    card = json.loads(one_file.read_safetensors(file)[1]["card"])
    assert card["errors"] == errors
    assert {"layers", "versions", "commit"} <= set(card)
    with pytest.raises(InputError, match="holds one network and has no checkpoint '7'"):
        load(file, "7")
    # It is a beginning for another run.
    other, dataset = tmp_path / "other", open_dataset(str(prepared))
    config = Config(crop_size=CROP, batch_size=16, epochs=0.4, init_from=str(file), taken_rate_scale=0.0)
    fit(TINY, dataset, config, other, devices=jax.devices()[:1])
    np.testing.assert_array_equal(load(other).params["conv1"]["kernel"], before.params["conv1"]["kernel"])


def test_the_command_converts_a_run_as_the_flags_say(run, prepared, tmp_path, monkeypatch):
    def convert(output, **flags):
        monkeypatch.setattr(command, "given_flags", lambda _: {"source": str(run), "output": str(output), **flags})
        weights._convert()
        return output

    card = one_file.read_safetensors(convert(tmp_path / "own.safetensors"))[1]["card"]
    assert str(prepared) not in card  # a path of the user's machine
    assert json.loads(card)["errors"]["examples"] == 23
    assert set(safetensors.numpy.load_file(convert(tmp_path / "torch.safetensors", pytorch=True))) == {
        f"{layer}.{part}" for layer in ("conv1", "conv2", "fc3", "fc4") for part in ("weight", "bias")
    }
    views = []
    monkeypatch.setattr(one_file, "program", lambda network, **flags: views.append(flags["views"]) or b"")
    convert(tmp_path / "program.jax", views=10)
    assert views == [10]
    with pytest.raises(InputError, match="has no checkpoint '7'"):
        convert(tmp_path / "seventh.safetensors", checkpoint="7")
    with pytest.raises(
        InputError, match=r"--classes=names.txt is for files without names of their own; .*run has its own"
    ):
        convert(tmp_path / "named.safetensors", classes="names.txt")


@pytest.mark.parametrize("kind", ["caffe", "torchvision"])
def test_the_classes_are_numbered_or_named_by_a_file(tmp_path, kind):
    file, mean, _, _ = caffe_files(tmp_path)
    options = weights.Options(source=str(file), output="a.safetensors", mean=str(mean))
    if kind == "torchvision":
        file = tmp_path / "torchvision.safetensors"
        safetensors.numpy.save_file(torchvision_tensors(), file)
        options = weights.Options(source=str(file), output="a.safetensors")
    assert weights.read(options).class_names[:2] == ("class 0", "class 1")
    names = tuple(f"kind {number}" for number in range(7))
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    options = dataclasses.replace(options, classes=str(tmp_path / "names.txt"))
    assert weights.read(options).class_names == names
    (tmp_path / "names.txt").write_bytes(b"\xff\n" * 7)
    with pytest.raises(InputError, match=r"names.txt: is no text in UTF-8"):
        weights.read(options)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"output": "a.safetensors"}, "are needed"),
        ({"source": "run", "output": "a.pth"}, r"--output=a\.pth: must end in"),
        ({"source": "run", "output": "a.jax", "views": 3}, "--views=3: must be 1 or 10"),
        ({"source": "run", "output": "a.jax", "pytorch": True}, r"--pytorch writes a \.safetensors"),
        ({"source": "run", "output": "a.safetensors", "views": 10}, "--views=10 is of a program"),
        ({"source": ".", "output": "a.safetensors", "mean": "m"}, r"--mean=m is for a \.caffemodel"),
        ({"source": __file__, "output": "a.safetensors", "checkpoint": "7"}, "--checkpoint=7 is for a run's folder"),
    ],
)
def test_flags_that_would_do_nothing_or_harm_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        weights.read(weights.Options(**flags))


def torchvision_module(torch, state):
    """torchvision/models/alexnet.py, in float64."""
    nn, c, d = torch.nn, WIDTHS[:5], WIDTHS[5:]
    features = nn.Sequential(
        nn.Conv2d(3, c[0], 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c[0], c[1], 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c[1], c[2], 3, padding=1), nn.ReLU(), nn.Conv2d(c[2], c[3], 3, padding=1), nn.ReLU(),
        nn.Conv2d(c[3], c[4], 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(c[4] * 36, d[0]), nn.ReLU(), nn.Dropout(), nn.Linear(d[0], d[1]), nn.ReLU(),
        nn.Linear(d[1], d[2]),
    )  # fmt: skip
    module = nn.ModuleDict({"features": features, "classifier": classifier})
    module.load_state_dict(state)
    module.double().eval()
    return lambda images: module["classifier"](module["features"](images).flatten(1))


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pth before 1.6"])
def test_torchvision_has_the_outputs_of_pytorch(tmp_path, kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    tensors = torchvision_tensors()
    file = tmp_path / f"alexnet.{kind.split()[0]}"
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    if kind == "safetensors":
        safetensors.numpy.save_file(tensors, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "pth")
    network = interchange.from_torchvision(file)
    # The transforms of its weights: the centre of 224, to [0, 1], normalised.
    scaled = IMAGES[:, 16:240, 16:240].astype(np.float64) / 255
    scaled = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = torchvision_module(torch, state)(torch.from_numpy(scaled.transpose(0, 3, 1, 2)))
    found = logits(network, IMAGES)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5 * np.abs(expected.numpy()).max())


def field(number, content):
    """A field of a protocol buffer with a length, as the format's description has it."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    head = b""
    while value > 127:
        head, value = head + bytes([value & 127 | 128]), value >> 7
    return head + bytes([value])


def blob(values, old):
    data = field(5, values.astype("<f4").tobytes())
    if not old:
        return field(7, field(1, b"".join(map(varint, values.shape)))) + data
    shape = (1,) * (4 - values.ndim) + values.shape
    return b"".join(varint(number << 3) + varint(length) for number, length in enumerate(shape, start=1)) + data


def caffemodel(blobs, old):
    """With layers that have no weights, and fields that the reader does not know, as in a real one."""
    layer, name, blobs_at = (2, 4, 6) if old else (100, 1, 7)
    content = field(1, b"AlexNet") + field(layer, field(name, b"data") + varint(5 << 3) + varint(1))
    for of, arrays in blobs.items():
        content += field(layer, field(name, of.encode()) + b"".join(field(blobs_at, blob(a, old)) for a in arrays))
    return content


def caffe_files(tmp_path, old=False, mean=(256, 256)):
    tmp_path.mkdir(exist_ok=True)
    blobs = oihw(interchange.CAFFE, 227, scale=0.5)
    image = np.random.default_rng(2).uniform(90, 130, (3, *mean)).astype(np.float32)  # BGR
    file, mean_file = tmp_path / "bvlc.caffemodel", tmp_path / "mean.binaryproto"
    file.write_bytes(caffemodel(blobs, old))
    mean_file.write_bytes(blob(image[None], old=True))
    return file, mean_file, blobs, image


def prototxt(widths):
    """The deploy.prototxt of bvlc_alexnet, with other widths."""
    text = 'name: "AlexNet" input: "data" input_shape { dim: 3 dim: 3 dim: 227 dim: 227 }\n'
    bottom = "data"

    def layer(name, kind, settings, inplace=False):
        nonlocal text, bottom
        top = bottom if inplace else name
        text += f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {settings} }}\n'
        bottom = top

    convolutions = ("kernel_size: 11 stride: 4", "kernel_size: 5 pad: 2 group: 2", "kernel_size: 3 pad: 1")
    convolutions += ("kernel_size: 3 pad: 1 group: 2",) * 2
    for number, (width, window) in enumerate(zip(widths, convolutions, strict=False), start=1):
        layer(f"conv{number}", "Convolution", f"convolution_param {{ num_output: {width} {window} }}")
        layer(f"relu{number}", "ReLU", "", inplace=True)
        if number in (1, 2):
            layer(f"norm{number}", "LRN", "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
        if number in (1, 2, 5):
            layer(f"pool{number}", "Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
    for number, width in enumerate(widths[5:], start=6):
        layer(f"fc{number}", "InnerProduct", f"inner_product_param {{ num_output: {width} }}")
        if number < 8:
            layer(f"relu{number}", "ReLU", "", inplace=True)
            layer(f"drop{number}", "Dropout", "dropout_param { dropout_ratio: 0.5 }", inplace=True)
    return text


@pytest.mark.parametrize("old", [True, False])
def test_caffe_has_the_outputs_of_opencvs_reader(tmp_path, old):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; the extra [parity] brings it")
    file, mean_file, _, mean = caffe_files(tmp_path, old)
    network = interchange.from_caffe(file, mean_file)
    (tmp_path / "deploy.prototxt").write_text(prototxt(WIDTHS))
    reader = cv2.dnn.readNetFromCaffe(str(tmp_path / "deploy.prototxt"), str(file))
    # What Caffe is given: BGR minus its mean, the centre of 227.
    images = (IMAGES[..., ::-1].transpose(0, 3, 1, 2) - mean)[:, :, 14:241, 14:241]
    reader.setInput(np.ascontiguousarray(images))
    expected = reader.forward("fc8")
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits(network, IMAGES), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_what_goes_to_pytorch_has_equal_outputs_in_the_module_of_the_docs(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    page = (Path(__file__).parents[2] / "docs" / "other_frameworks.md").read_text()
    names = {}
    (module,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "nn.Module" in block)
    exec(module, names)
    net = AlexNet(PAPER)
    params = jax.jit(lambda key: init_params(net, key, 224))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: 2 * leaf, params)  # livelier than at first
    mean = np.full((256, 256, 3), 120.0)
    network = Trained(tmp_path, 0, Config(crop_size=224), "", ("a",) * 1000, mean, net, params)
    module = names["AlexNet"]()
    module.load_state_dict({name: torch.tensor(array) for name, array in interchange.to_pytorch(network).items()})
    images = torch.from_numpy(IMAGES[:2, 16:240, 16:240].astype(np.float32).transpose(0, 3, 1, 2)) - 120
    with torch.no_grad():
        expected = module(images).numpy()
    found = logits(network, IMAGES[:2])
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_locally_connected_layer_does_not_go_to_pytorch():
    layers = (Conv(4, 3, padding=1), Local(4, 3), Dense(3))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes_of_params(AlexNet(layers), 9))
    network = Trained(Path("run"), 0, Config(crop_size=9), "", ("a",) * 3, np.zeros((9, 9, 3)), AlexNet(layers), params)
    with pytest.raises(InputError, match=r"^run: local2: PyTorch has no module for a locally connected layer$"):
        interchange.to_pytorch(network)


class Malicious:
    def __reduce__(self):
        return (Path("ran").touch, ())


def bad_safetensors(tmp_path):
    tensors = torchvision_tensors()
    names = sorted(tensors)
    file = tmp_path / "a.safetensors"
    whole = safetensors.numpy.save(tensors)
    yield "is not there", lambda: interchange.from_torchvision(file)
    for content, message in (
        (whole[: len(whole) // 2], "is damaged"),
        (struct.pack("<Q", 10**10) + b"{}", "is damaged"),
        (b"", "is damaged"),
        (safetensors.numpy.save({**tensors, "more": np.zeros(2)}), "more is one too many"),
        (safetensors.numpy.save({name: tensors[name] for name in names[1:]}), f"{names[0]} is missing"),
        (safetensors.numpy.save({**tensors, "features.3.weight": np.zeros((12, 8, 3, 3), np.float32)}),
         r"conv2/kernel has the shape \(3, 3, 8, 12\), where \(5, 5, 8, 12\) is expected"),
        (safetensors.numpy.save({**tensors, "classifier.4.bias": np.full(20, np.nan, np.float32)}),
         "fc7/bias is not finite"),
        (safetensors.numpy.save({**tensors, "classifier.4.bias": np.full(20, 1e300)}), "fc7/bias is not finite"),
        (safetensors.numpy.save({**tensors, "classifier.1.weight": np.zeros((24, 5), np.float32)}), "fc6 has weights"),
        (safetensors.numpy.save({**tensors, "features.0.weight": np.zeros((8, 1, 11, 11), np.float32)}),
         r"conv1 has weights of the shape \(8, 1, 11, 11\), not of a convolution"),
        (safetensors.numpy.save({**tensors, "classifier.4.weight": np.zeros((), np.float32)}), "fc7 has weights"),
        (safetensors.numpy.save({**tensors, "classifier.4.weight": np.zeros((20, 0), np.float32)}),
         r"fc7/kernel has the shape \(0, 20\)"),
        (safetensors.numpy.save({**tensors, "classifier.6.bias": np.zeros(0, np.float32)}), "cannot be built|fc8"),
    ):  # fmt: skip
        file.write_bytes(content)
        yield message, functools.partial(interchange.from_torchvision, file)
    file.write_bytes(whole)
    yield "was not written by alexnet_jax.weights", lambda: load(file)
    yield "has 7 outputs, and 1 class names", lambda: interchange.from_torchvision(file, ("a",))
    file.write_bytes(safetensors.numpy.save({"a": np.zeros(1)}, {"format": one_file.FORMATS[0], "card": "{}"}))
    yield "its card cannot be read", lambda: load(file)
    yield from bad_cards(tmp_path)
    pickled = tmp_path / "a.pth"
    for content in (pickle.dumps({"features.0.weight": Malicious()}), b"no pickle", b""):
        pickled.write_bytes(content)
        yield "holds other things than tensors", lambda: interchange.from_torchvision(pickled)
    model, mean, blobs, _ = caffe_files(tmp_path)
    whole = model.read_bytes()
    for content, message in (
        (whole[:-100], "is damaged"),
        (varint(100 << 3 | 2) + varint(10**10) + b"abc", "is damaged"),
        (b"", "is missing"),
        (caffemodel({**blobs, "fc9": blobs["fc8"]}, old=False), "fc9 is one too many"),
        (caffemodel({**blobs, "fc8": blobs["fc8"][:1]}, old=False), "fc8 has 1 blobs"),
        (caffemodel({**blobs, "conv1": blobs["fc8"]}, old=False), "conv1 has weights of the shape"),
        (whole.replace(field(1, b"".join(map(varint, (24, 288)))), field(1, b"".join(map(varint, (24, 289))))),
         r"6912 numbers where the shape is \(24, 289\)"),
    ):  # fmt: skip
        model.write_bytes(content)
        yield message, functools.partial(interchange.from_caffe, model, mean)
    model.write_bytes(whole)
    yield "is not there", lambda: weights.read(weights.Options(source="none.pth", output="a.safetensors"))
    mean.write_bytes(blob(np.zeros((1, 1, 5, 5), np.float32), old=True))
    yield "holds no colour image", lambda: interchange.from_caffe(model, mean)
    for content, message in (
        (np.zeros((1, 3, 5, 5), np.float32), "is a mean of"),
        (np.zeros((2, 3, 256, 256), np.float32), "holds no colour image"),
        (np.full((1, 3, 256, 256), np.nan, np.float32), "holds numbers that are not finite"),
    ):
        mean.write_bytes(blob(content, old=True))
        yield message, lambda: interchange.from_caffe(model, mean)
    for shape, count in (((-1, -6912), 6912), ((2**32, 2**32), 0)):
        lengths = b"".join(varint(length & 2**64 - 1) for length in shape)
        values = field(5, np.zeros(count, "<f4").tobytes())
        model.write_bytes(field(100, field(1, b"fc6") + field(7, field(7, field(1, lengths)) + values)))
        yield "numbers where the shape is", lambda: interchange.from_caffe(model, mean)


def test_complex_numbers_are_not_taken_for_real_ones(tmp_path):
    tensors, file = torchvision_tensors(), tmp_path / "a.safetensors"
    try:
        file.write_bytes(safetensors.numpy.save({**tensors, "classifier.4.bias": np.zeros(20, np.complex64)}))
    except (KeyError, ValueError, safetensors.SafetensorError):
        pytest.skip("this version of safetensors does not write complex numbers")
    with pytest.raises(InputError, match=r"a\.safetensors: fc7 has complex numbers$"):
        interchange.from_torchvision(file)
    network = interchange.from_caffe(*caffe_files(tmp_path)[:2])
    params = {name: np.asarray(of) for name, of in flatten_dict(network.params, sep="/").items()}
    params["fc8/bias"] = params["fc8/bias"] * 1j
    with pytest.raises(InputError, match="fc8/bias has complex numbers"):
        network_of_arrays(file, network.config, 0, network.class_names, network.mean_image, network.net.layers, params)


def bad_cards(tmp_path):
    """Files of ours, which something else has written."""
    network = interchange.from_caffe(*caffe_files(tmp_path / "good")[:2])
    file = tmp_path / "ours.safetensors"
    one_file.save(network, file)
    tensors, metadata = one_file.read_safetensors(file)
    card, sums = json.loads(metadata["card"]), json.loads(metadata["checksums"])
    # As somebody would who wants it to be read.
    without = {**metadata, "checksums": json.dumps({name: of for name, of in sums.items() if name != "card"})}
    for changes, message in (
        ({"config": []}, "its card cannot be read"),
        ({"config": None}, "its card cannot be read"),
        ({"config": {**card["config"], "crop_size": "x"}}, "cannot be read|cannot be built"),
        ({"config": {**card["config"], "crop_size": 8}}, "its network cannot be built"),
        ({"config": {**card["config"], "crop_size": 259}}, "mean_image of 256 pixels is smaller than crops of 259"),
        ({"config": {**card["config"], "more": 1}}, "its card cannot be read"),
        ({"class_names": []}, "has 7 outputs, and 0 class names"),
        ({"class_names": ["a"] * 8}, "has 7 outputs, and 8 class names"),
        ({"layers": with_row(card["layers"], 0, stride=3)}, "its card is of another network: conv1 stride was 4, is 3"),
        ({"layers": card["layers"][1:]}, "its card is of another network: the layers were "),
        ({"layers": None}, "its card cannot be read"),
        ({"step": -1}, r"its card cannot be read \(step: "),
        ({"step": 1.5}, r"its card cannot be read \(step: "),
        ({"step": None}, r"its card cannot be read \(step: "),
        ({"class_names": "abcdefg"}, r"its card cannot be read \(class_names: "),
        ({"class_names": [0] * 7}, r"its card cannot be read \(class_names\[0\]: "),
        ({"config": {**card["config"], "crop_size": -1}}, r"its card cannot be read \(config: --crop_size=-1: must be"),
        ({"config": {**card["config"], "crop_size": 10**4000}}, r"its card cannot be read \(config\.crop_size: "),
        ({"config": {**card["config"], "momentum": float("nan")}}, r"its card cannot be read \(config\.momentum: "),
    ):
        changed = {**without, "card": json.dumps({**card, **changes})}
        file.write_bytes(safetensors.numpy.save(tensors, changed))
        yield message, lambda: load(file)
    for layers, message in (
        ([], "its card cannot be read"),
        (5, "its card cannot be read"),
        ([{}], "its card cannot be read"),
        (with_row(card["layers"], 1, then=[{"step": "pathlib.Path"}]), "its step pathlib.Path is not known here"),
        (with_row(card["layers"], 1, features=9), "its network cannot be built|its card cannot be read"),
        (with_row(card["layers"], 2, features=18), r"conv3/bias has the shape \(16,\), where \(18,\) is expected"),
        (with_row(card["layers"], 1, groups="2"), "layer 2 groups is '2'; it must be a whole number"),
    ):
        changed = {**without, "card": json.dumps({**card, "layers": layers}), "layers": json.dumps(layers)}
        file.write_bytes(safetensors.numpy.save(tensors, changed))
        yield message, lambda: load(file)
    file.write_bytes(safetensors.numpy.save(tensors, {of: metadata[of] for of in ("format", "card")}))
    yield "its layers cannot be read", lambda: load(file)
    changed = {**tensors, "fc6/bias": tensors["fc6/bias"] + np.float32(1e-6)}
    file.write_bytes(safetensors.numpy.save(changed, metadata))
    yield "fc6/bias is not what was written, by its checksums", lambda: load(file)
    for sums in ("{", "[]", json.dumps({"fc6/bias": 3})):
        file.write_bytes(safetensors.numpy.save(tensors, {**metadata, "checksums": sums}))
        yield r"its checksums cannot be read", lambda: load(file)
    metadata = {of: text for of, text in metadata.items() if of != "checksums"}  # so that what is below is seen
    for mean, message in (
        (np.zeros((5, 5)), "mean_image is missing, or no square colour image"),
        (np.zeros((256, 255, 3)), "mean_image is missing, or no square colour image"),
        (np.full((256, 256, 3), np.nan), "mean_image is not finite"),
    ):
        file.write_bytes(safetensors.numpy.save({**tensors, "mean_image": mean}, metadata))
        yield message, lambda: load(file)


def with_row(layers, number, **changes):
    """A table as it is written down, with other fields in one of its layers."""
    return [{**row, **(changes if of == number else {})} for of, row in enumerate(layers)]


def test_a_bad_file_is_named_and_nothing_in_it_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = 0
    for message, read in bad_safetensors(tmp_path):
        with pytest.raises(InputError, match=rf"^\S+\.\w+: .*({message})"):
            read()
        seen += 1
    assert seen > 45
    assert not (tmp_path / "ran").exists()


def test_a_length_of_ten_gigabytes_takes_no_memory(tmp_path):
    file = tmp_path / "a.caffemodel"
    file.write_bytes(varint(100 << 3 | 2) + varint(10**10) + b"abc")
    with pytest.raises(InputError, match="is damaged"):
        caffe.read_network(file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda: field(1, b"\xff\xfe"), "a name in it is no text"),
        (lambda: field(100, field(1, b"\xff") + field(7, b"")), "a name in it is no text"),
        (lambda: blob_of(varint(1) * 65, 1), "1 numbers where the shape is"),
        (lambda: blob_of(varint(2**62) * 2 + varint(0), 0), "shape|dimension|array"),
        (lambda: blob_of(varint(2**64 - 1), 1), "1 numbers where the shape is"),
        (lambda: field(2, b"") * 10**5 + b"\x07", ""),
    ],
)  # fmt: skip
def test_odd_numbers_and_names_of_caffe_are_one_line(tmp_path, content, problem):
    file = tmp_path / "a.caffemodel"
    file.write_bytes(content())
    if problem:
        with pytest.raises(InputError, match=problem):
            caffe.read_network(file)
    for kind in (caffe.read_network, caffe.read_mean):
        try:
            kind(file)
        except InputError as error:
            told = str(error)
            is_named = told.startswith(f"{file}: ") and told.isprintable()
        else:
            is_named = True
        assert is_named


def blob_of(dims, count):
    blob = field(7, field(1, dims)) + field(5, b"\0\0\x80?" * count)
    return field(100, field(1, b"fc8") + field(7, blob))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.caffemodel", "a.binaryproto", "classes.txt"])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path, name, kind):
    file = tmp_path / name
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path)}[kind](file)
    read = {
        "a.caffemodel": caffe.read_network, "a.binaryproto": caffe.read_mean, "classes.txt": weights._lines,
        "a.safetensors": one_file.load, "a.pth": interchange.from_torchvision,
    }[name]  # fmt: skip
    with pytest.raises(
        InputError, match=rf"^{file}: (is no plain file|cannot be read \((no plain file|Is a directory)\))$"
    ):
        read(file)


def with_steps_between(content, old, pools_first, name=b"AlexNet"):
    """The same .caffemodel with its layers of normalisation and pooling, as real ones have them."""
    kinds = ("Pooling", "LRN") if pools_first else ("LRN", "Pooling")
    found = field(1, name)
    for kind in (*kinds, *kinds, "Pooling"):
        if old:
            found += field(2, field(4, kind.encode()) + varint(5 << 3) + varint({"LRN": 15, "Pooling": 17}[kind]))
        else:
            found += field(100, field(1, kind.encode()) + field(2, kind.encode()))
    return found + content.removeprefix(field(1, b"AlexNet"))


@pytest.mark.parametrize("old", [False, True])
def test_caffenet_is_told_from_alexnet_by_its_order_or_its_name(tmp_path, old):
    """bvlc_reference_caffenet has the shapes of bvlc_alexnet, and pools before it normalises."""
    file, mean, _, _ = caffe_files(tmp_path, old)
    whole = file.read_bytes()
    weights_only = field(1, b"CaffeNet") + whole.removeprefix(field(1, b"AlexNet"))
    for content, order in (
        (whole, ["relu", "lrn", "pool"]),
        (with_steps_between(whole, old, pools_first=False), ["relu", "lrn", "pool"]),
        (with_steps_between(whole, old, pools_first=False, name=b"CaffeNet"), ["relu", "lrn", "pool"]),
        (with_steps_between(whole, old, pools_first=True), ["relu", "pool", "lrn"]),
        (with_steps_between(whole, old, pools_first=True, name=b"CaffeNet"), ["relu", "pool", "lrn"]),
        (weights_only, ["relu", "pool", "lrn"]),
    ):
        file.write_bytes(content)
        network = interchange.from_caffe(file, mean)
        for layer in network.net.layers[:2]:
            assert [step.short_name for step in layer.then] == order
    one_file.save(network, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").net.layers == network.net.layers
    file.write_bytes(whole + field(2 if old else 100, field(4 if old else 1, b"fc8") + field(6 if old else 7, b"")))
    with pytest.raises(InputError, match=r"bvlc\.caffemodel: .*has two layers fc8\)$"):
        interchange.from_caffe(file, mean)


@pytest.mark.parametrize("content", ["\ufeffa\nb\n", "a\r\nb\r\n", "\ufeffa\r\nb", "a\rb\r", "a\nb\n\n"])
def test_a_file_of_classes_may_be_of_any_editor(tmp_path, content):
    (tmp_path / "classes.txt").write_bytes(content.encode())
    assert weights._lines(tmp_path / "classes.txt") == ("a", "b")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_file_of_classes_in_utf_16_is_told_as_such(tmp_path, encoding):
    (tmp_path / "classes.txt").write_text("a\nb\n", encoding=encoding)
    with pytest.raises(InputError, match=r"classes\.txt: is no text in UTF-8"):
        weights._lines(tmp_path / "classes.txt")


def test_a_state_dict_may_be_wrapped_as_trainings_do(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    file, tensors = tmp_path / "a.pth", torchvision_tensors()
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    parallel = {f"module.{name}": of for name, of in state.items()}
    compiled = {f"_orig_mod.{name}": of for name, of in parallel.items()}
    bfloat16 = {name: of.to(torch.bfloat16) for name, of in state.items()}
    parameters = {name: torch.nn.Parameter(of) for name, of in state.items()}
    for wrapped, rtol in (
        ({"state_dict": state, "epoch": 3}, 0),
        ({"model": compiled, "optimizer": {}}, 0),
        ({"model_state_dict": parallel}, 0),
        (parallel, 0),
        (compiled, 0),
        (bfloat16, 2**-8),
        (parameters, 0),
        ({name: of.double() for name, of in state.items()}, 0),
    ):
        torch.save(wrapped, file)
        found = interchange.from_torchvision(file).params
        np.testing.assert_allclose(found["fc8"]["kernel"], tensors["classifier.6.weight"].T, rtol=rtol)
        np.testing.assert_allclose(found["conv2"]["bias"], tensors["features.3.bias"], rtol=rtol)
    for wrong, message in (
        ({"state_dict": state, "features": 3}, None),
        ({**state, "epoch": 3}, r"is no state dict of tensors \(epoch in it is of type int\)$"),
        ([1, 2], r"is no state dict of tensors \(it holds none\)$"),
        ({1: state["features.0.bias"]}, r"is no state dict of tensors \(1 in it is of type Tensor\)$"),
        ({}, r"is no state dict of tensors \(it holds none\)$"),
        ({**state, **parallel}, "is one too many"),
    ):
        torch.save(wrong, file)
        if message is None:
            assert interchange.from_torchvision(file).step == 0
            continue
        with pytest.raises(InputError, match=rf"a\.pth: .*{message}"):
            interchange.from_torchvision(file)


def test_the_command_converts_and_what_it_wrote_predicts(call_here, tmp_path):
    file, mean, _, _ = caffe_files(tmp_path)
    process = call_here("weights", f"--source={file}", f"--output={tmp_path / 'uniform.safetensors'}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"{file}: without --mean=FILE, the mean of each colour is subtracted")
    assert np.ptp(load(tmp_path / "uniform.safetensors").mean_image, axis=(0, 1)).max() == 0
    card = json.dumps({"class_names": [], "step": 0, "layers": [], "config": []})
    metadata = {"format": one_file.FORMATS[0], "card": card, "layers": "[]"}
    content = safetensors.numpy.save({"a": np.zeros(1)}, metadata)
    bad = tmp_path / "a.safetensors"
    bad.write_bytes(content)  # in a process of its own, where types are not checked
    process = subprocess.run(
        [sys.executable, "-m", "alexnet_jax.weights", f"--source={bad}", "--output=b.safetensors"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    message = f"error: {bad}: its card cannot be read (config: Expected `object`, got `array`)\n"
    assert (process.returncode, process.stderr) == (2, message)
    names = tuple(f"kind {number}" for number in range(7))
    network = interchange.from_caffe(file, mean, names)
    one_file.save(network, tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors")
    assert again.class_names == names
    np.testing.assert_array_equal(again.probabilities(IMAGES), network.probabilities(IMAGES))


@pytest.mark.slow
def test_a_program_runs_without_this_package_on_any_number_of_images(tmp_path):
    file, mean, _, _ = caffe_files(tmp_path)
    network = interchange.from_caffe(file, mean)
    expected = np.asarray(network.probabilities(IMAGES))
    expected_of_ten = np.asarray(network.probabilities(IMAGES, views=10))
    # In a process of its own, where shapes are not checked: they are symbols.
    script = f"""
from pathlib import Path
from alexnet_jax import CAFFE, with_column
from alexnet_jax.files import write_whole
from alexnet_jax.networks import interchange, one_file
interchange.CAFFE = with_column(CAFFE, features={WIDTHS})
network = interchange.from_caffe("bvlc.caffemodel", "mean.binaryproto")
write_whole(Path("alexnet.jax"), one_file.program(network))
write_whole(Path("ten.jax"), one_file.program(network, views=10))
"""
    # As users run it: with a cache of compiled programs oneDNN, which cannot be exported, is left out anyway.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=environment)
    ten = jax.export.deserialize(bytearray((tmp_path / "ten.jax").read_bytes()))
    assert set(ten.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    np.testing.assert_allclose(ten.call(IMAGES), expected_of_ten, rtol=1e-5, atol=1e-6)
    page = (Path(__file__).parents[2] / "docs" / "other_frameworks.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "deserialize" in block)
    assert "alexnet_jax" not in example
    np.save(tmp_path / "images.npy", IMAGES)
    for count in (1, 3):
        lines = [*example.splitlines(), f"np.save('found.npy', program.call(np.load('images.npy')[:{count}]))"]
        subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, check=True, capture_output=True)
        np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected[:count], rtol=1e-5, atol=1e-6)


def test_names_wrapped_more_often_than_anybody_does_are_one_line(tmp_path):
    file = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"module." * 2000 + "features.0.weight": np.zeros(1, np.float32)}, file)
    with pytest.raises(InputError, match=r"is missing; module\.module\..*is one too many") as caught:
        interchange.from_torchvision(file)
    assert len(str(caught.value)) < 500 + len(str(file))
    wrapped = {f"{'_orig_mod.module.' * 4}{name}": of for name, of in torchvision_tensors().items()}
    safetensors.numpy.save_file(wrapped, file)
    assert interchange.from_torchvision(file).net.layers[-1].features == 7
