"""Networks as ONNX models: what onnxruntime computes of them is what we compute."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from alexnet_jax import weights
from alexnet_jax.config import Config
from alexnet_jax.networks import one_file
from alexnet_jax.networks.network import Trained
from alexnet_jax.networks.onnx import OPSET, STEPS, to_onnx
from alexnet_jax.options import InputError
from alexnet_jax.paper import layers as formulas
from alexnet_jax.paper.architectures import ARCHITECTURES, PAPER
from alexnet_jax.paper.layers import dropout, lrn, pool, relu
from alexnet_jax.paper.model import AlexNet, outputs
from alexnet_jax.paper.table import Conv, Dense, Local, output_names, with_column
from alexnet_jax.paper.train_state import shapes_of_params

onnx = pytest.importorskip("onnx", reason="onnx is not installed; the extra [test] brings it")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; the extra [test] brings it")

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CLASSES = 7


def trained(layers, crop, size):
    """With random parameters, in proportion to the inputs: so that normalisation matters, and all logits differ."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        inputs = np.prod(leaf.shape[:-1])
        return jnp.asarray(rng.normal(size=leaf.shape) * (2 / max(inputs, 4)) ** 0.5, jnp.float32)

    params = jax.tree.map(draw, shapes_of_params(AlexNet(layers), crop))
    mean_image = rng.uniform(90, 140, (size, size, 3)).astype(np.float32)
    names = tuple(f"class {number}, {{ä}}" for number in range(layers[-1].features))
    return Trained(Path("run"), 0, Config(crop_size=crop), "", names, mean_image, AlexNet(layers), params)


def narrow(layers, widths=12):
    return with_column(layers, features=[min(widths, of.features) for of in layers[:-1]] + [CLASSES])


def pictures(count, size):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def run(content, images, names=None):
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(names, {"images": images})


def with_all_outputs(content, names):
    """The same model, of which all tensors of these names are outputs."""
    model = onnx.load_from_string(content)
    there = {of.name for of in model.graph.output}
    model.graph.output.extend(of for of in model.graph.value_info if of.name in names and of.name not in there)
    return model.SerializeToString()


def assert_equal(found, expected):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def expected_outputs(network, images):
    """By the formulas: after the crop and the mean, written here in NumPy."""
    crop = network.config.crop_size
    first = (network.size - crop) // 2
    views = (images.astype(np.float64) - network.mean_image)[:, first : first + crop, first : first + crop]
    names = output_names(network.net.layers)
    return outputs(network.net, {"params": network.params}, jnp.asarray(views, jnp.float32), names)


# 99: conv1 has 23 × 23 places, so that pooling over 2 × 2 hangs over the edge. 104 - 99 is odd.
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_output_of_each_architecture_is_ours(name):
    network, images = trained(narrow(ARCHITECTURES[name]), 99, 104), pictures(2, 104)
    expected = expected_outputs(network, images)
    *_, last = expected
    scale = np.float32(3 / np.abs(expected[last]).max())  # so that no class has it all
    expected[last] = expected[last] * scale
    network.params[last] = {part: of * scale for part, of in network.params[last].items()}
    content = to_onnx(network)
    onnx.checker.check_model(content, full_check=True)
    names = [node.name for node in onnx.load_from_string(content).graph.node if node.name in expected]
    inverted = {of for of in expected if of.endswith(":dropout")} if name in ("caffe", "torchvision") else set()
    assert set(expected) - set(names) == inverted  # which is nothing at test
    for of, found in zip(names, run(with_all_outputs(content, names), images, names), strict=True):
        ours = np.asarray(expected[of])
        assert_equal(found, ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours)
    probabilities, logits = run(content, images)
    assert_equal(logits, expected[last])
    assert_equal(probabilities, network.probabilities(images))
    assert np.ptp(probabilities, axis=0).max() > 0.01  # the images matter


def stepped(*steps):
    return (Conv(6, 3, stride=2, then=(*steps, pool)), Dense(CLASSES))


@pytest.mark.parametrize("name", formulas.STEPS)
def test_every_step_is_ours(name):
    keywords = {
        "lrn": {"size": 3, "k": 1.5, "alpha": 0.3, "beta": 0.6, "groups": 3},
        "srn": {"size": 3, "alpha": 0.3, "beta": 0.6},
        "pool": {"window": 2, "stride": 3, "ceil_mode": True},  # of 20 places: the last one is alone in its window
        "average_pool": {"window": 3, "stride": 2},
        "dropout": {"rate": 0.3},
        "elu": {"alpha": 0.7},
        "leaky_relu": {"negative_slope": 0.2},
    }.get(name, {})
    choices = ({}, {"approximate": False}) if name == "gelu" else ({},)
    for more in choices:
        layers = stepped(functools.partial(formulas.STEPS[name], **keywords, **more))
        network, images = trained(layers, 41, 42), pictures(3, 42)
        network = type(network)(**{**vars(network), "params": jax.tree.map(lambda p: p / 30, network.params)})
        expected = expected_outputs(network, images)
        found = run(with_all_outputs(to_onnx(network), [f"conv1:{name}"]), images, [f"conv1:{name}", "fc2"])
        assert_equal(found[0], np.asarray(expected[f"conv1:{name}"]).transpose(0, 3, 1, 2))
        assert_equal(found[1], expected["fc2"])
    assert set(STEPS) == set(formulas.STEPS)


def test_any_number_of_images_and_what_the_file_says():
    network = trained(TINY, 32, 40)
    content = to_onnx(network)
    for count in (1, 5):
        probabilities, logits = run(content, pictures(count, 40))
        assert_equal(logits, expected_outputs(network, pictures(count, 40))["fc4"])
        assert_equal(probabilities.sum(1), np.ones(count))
    model = onnx.load_from_string(content)
    assert [(of.domain, of.version) for of in model.opset_import] == [("", OPSET)]
    assert model.ir_version <= 9  # older runtimes refuse a later one
    assert [of.name for of in model.graph.output] == ["probabilities", "fc4"]
    assert {"fc3/kernel", "fc3/bias", "conv1/kernel", "mean_image"} <= {of.name for of in model.graph.initializer}
    about = {of.key: of.value for of in model.metadata_props}
    assert tuple(json.loads(about["class_names"])) == network.class_names
    assert [row["kind"] for row in json.loads(about["layers"])] == ["conv", "conv", "dense", "dense"]
    assert "40 × 40" in about["preprocessing"]
    assert about["preprocessing"] == model.graph.input[0].doc_string
    assert json.loads(about["versions"])["alexnet_jax"] == model.producer_version
    operators = [node.op_type for node in model.graph.node]
    assert operators[:4] == ["Slice", "Cast", "Transpose", "Sub"]
    lrn_of_two = ["Split", "LRN", "LRN", "Concat"]
    assert operators[4:] == [
        "Conv", "Relu", *lrn_of_two, "MaxPool", "Conv", "Relu", "MaxPool", "Flatten", "Gemm", "Relu", "Mul", "Gemm",
        "Softmax",
    ]  # fmt: skip


def test_dense_layers_alone_and_two_flattened_axes():
    for layers in ((Dense(4, then=(relu, dropout)), Dense(3)), (Conv(5, 5, stride=3, then=(relu,)), Dense(3))):
        network, images = trained(layers, 9, 11), pictures(2, 11)
        assert_equal(run(to_onnx(network), images, ["fc2"])[0], expected_outputs(network, images)["fc2"])


def my_step(x):
    return x * 2


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            stepped(relu, my_step),
            r"^run: conv1:my_step: ONNX has no operator for the step \S*test_onnx\.my_step there$",
        ),
        (stepped(lambda x: x), r"^run: conv1:<lambda>: ONNX has no operator for the step "),
        ((Dense(4, then=(lrn,)), Dense(3)), "^run: fc1:lrn: ONNX has no operator for the step lrn there$"),
        ((Local(4, 3), Dense(3)), "^run: local1: ONNX has no operator for a locally connected layer$"),
    ],
)
def test_what_onnx_has_not_is_refused_by_layer_and_step(layers, message):
    with pytest.raises(InputError, match=message):
        to_onnx(trained(layers, 9, 9))


def test_without_the_package_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'alexnet_jax\[onnx\]'$"):
        to_onnx(trained(TINY, 32, 40))


def test_the_command_writes_it(tmp_path, monkeypatch):
    network = trained(TINY, 32, 40)
    one_file.save(network, tmp_path / "a.safetensors")
    flags = [f"--source={tmp_path}/a.safetensors", f"--output={tmp_path}/a.onnx"]
    subprocess.run([sys.executable, "-m", "alexnet_jax.weights", *flags], check=True, capture_output=True)
    images = pictures(2, 40)
    assert_equal(run((tmp_path / "a.onnx").read_bytes(), images)[0], network.probabilities(images))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.onnx").rename("alexnet.onnx")
    page = (Path(__file__).parents[2] / "docs" / "other_frameworks.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in block)
    found = {"images": images}
    exec(example.replace("fc8", "fc4"), found)
    assert_equal(found["probabilities"], network.probabilities(images))
    assert tuple(found["names"]) == network.class_names
    for more, message in (({"views": 10}, "--views=10 is of a program"), ({"pytorch": True}, "--pytorch writes a")):
        with pytest.raises(InputError, match=message):
            weights.Options(source="run", output="a.onnx", **more)


@pytest.mark.slow
def test_the_papers_network_in_its_own_size():
    network, images = trained(PAPER, 224, 256), pictures(2, 256)
    probabilities, logits = run(to_onnx(network), images)
    assert_equal(logits, expected_outputs(network, images)["fc8"])
    assert_equal(probabilities, network.probabilities(images))
