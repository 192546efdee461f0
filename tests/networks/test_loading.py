"""Loading a trained network: it is that of the table which was written; and what version 0.1 has left can be used."""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from conftest import CROP, SIZE, TINY
from flax.traverse_util import flatten_dict

from alexnet_jax.config import Config
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.device.tuned import tuned
from alexnet_jax.networks import one_file, transfer
from alexnet_jax.networks.loading import load
from alexnet_jax.networks.network import Trained
from alexnet_jax.options import InputError
from alexnet_jax.paper.layers import relu, takes_key
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.optim import papers_rule
from alexnet_jax.paper.table import with_classes, with_layers, with_steps
from alexnet_jax.paper.train_state import TrainState, shapes_of_params
from alexnet_jax.paper.written import to_json
from alexnet_jax.runs import checkpoint, workdir
from alexnet_jax.train import fit

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CONFIG = Config(crop_size=CROP, batch_size=16, epochs=1.0)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def dataset(prepared):
    return open_dataset(str(prepared))


def params_of(layers):
    rng = np.random.default_rng(3)
    like = shapes_of_params(AlexNet(layers), CROP)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.1), jnp.float32), like)


def trained(layers, dataset):
    names, mean_image = dataset.class_names, dataset.statistics.mean_image
    return Trained(Path("nowhere"), 3, CONFIG, dataset.name, names, mean_image, AlexNet(layers), params_of(layers))


def saved(kind, folder, layers, dataset):
    """A run of three steps, or a file."""
    if kind == "file":
        one_file.save(trained(layers, dataset), folder / "a.safetensors")
        return folder / "a.safetensors"
    run = workdir.Run(CONFIG, to_json(layers), dataset.name, dataset.fingerprint())
    workdir.claim(folder / "run", run)
    workdir.keep_facts(folder / "run", dataset)
    params = params_of(layers)
    state = TrainState(jnp.int32(3), params, papers_rule(0.01).init(params))
    checkpoints = checkpoint.Checkpoints(folder / "run" / "checkpoints")
    checkpoints.save(3, state, run.layers, {}, 0.5)
    checkpoints.close()
    return folder / "run"


def own_step(x, *, slope):
    return jnp.where(x > 0, x, slope * x)


@takes_key
def own_noise(x, key, *, scale=1.0):
    return x if key is None else x + scale


kinds = pytest.mark.parametrize("kind", ["run", "file"])


@kinds
def test_the_network_is_that_of_the_table(tmp_path, dataset, kind):
    place = saved(kind, tmp_path, TINY, dataset)
    network, expected = load(place), trained(TINY, dataset)
    assert network.net.layers == TINY
    assert (network.step, network.config, network.class_names) == (3, CONFIG, ("red", "green", "blue"))
    jax.tree.map(np.testing.assert_array_equal, network.params, expected.params)
    np.testing.assert_array_equal(network.probabilities(IMAGES), expected.probabilities(IMAGES))
    assert load(place, layers=TINY).step == load(place, layers=tuned(TINY)).step == 3
    with pytest.raises(InputError, match=r"is of another network: conv1 stride was 2, is 1; conv2 groups was 2, is 1$"):
        load(place, layers=with_layers(TINY, conv1={"stride": 1}, conv2={"groups": 1}))


@kinds
def test_steps_of_ones_own_are_given_and_never_imported(tmp_path, dataset, kind):
    layers = with_steps(TINY, {relu: functools.partial(own_step, slope=0.25)})
    layers = with_layers(layers, conv2={"then": (*layers[1].then, own_noise)})
    place = saved(kind, tmp_path, layers, dataset)
    with pytest.raises(
        InputError,
        match=r"layer 1: its step test_loading\.own_step is not known here; in code of one's own, give",
    ):
        load(place)
    with pytest.raises(InputError, match=r"layer 2: its step test_loading\.own_noise is not known here"):
        load(place, steps={"own_step": own_step})
    for prefix in ("", "test_loading."):
        network = load(place, steps={f"{prefix}own_step": own_step, f"{prefix}own_noise": own_noise})
        assert network.net.layers == layers
    expected = trained(layers, dataset).probabilities(IMAGES)
    np.testing.assert_array_equal(network.probabilities(IMAGES), expected)


def test_a_run_whose_table_was_changed_by_hand_is_not_that_of_its_checkpoint(tmp_path, dataset):
    folder = saved("run", tmp_path, TINY, dataset)
    content = json.loads((folder / "config.json").read_text())
    content["layers"][0]["then"][1]["alpha"] = 0.5
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError,
        match=r"checkpoints/3: is of another network: conv1:lrn alpha was 0\.0001, is 0\.5, in config\.json$",
    ):
        load(folder)
    content["layers"][0]["stride"] = 0
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"config\.json: cannot be read \(conv1: stride is 0; it must be at least 1\)"):
        load(folder)


def test_a_mean_image_that_is_smaller_than_what_the_network_sees_is_named(tmp_path, dataset):
    folder = saved("run", tmp_path, TINY, dataset)
    np.savez(folder / "data.npz", class_names=np.array(dataset.class_names), mean_image=np.ones((8, 8, 3)))
    with pytest.raises(InputError, match=r"data\.npz: its mean_image of 8 pixels is smaller than crops of \d+$"):
        load(folder)


def test_a_file_of_another_framework_is_told_how_to_be_used(tmp_path):
    (tmp_path / "alexnet.pth").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"alexnet\.pth: is neither a run's folder nor a \.safetensors; .*weights"):
        load(tmp_path / "alexnet.pth")


def test_a_network_is_used_whose_optimizer_is_damaged(tmp_path, dataset):
    folder = saved("run", tmp_path, TINY, dataset)
    for file in (folder / "checkpoints" / "3" / "optimizer").rglob("*"):
        if file.is_file():
            os.truncate(file, 0)
    expected = trained(TINY, dataset).probabilities(IMAGES)
    np.testing.assert_array_equal(load(folder).probabilities(IMAGES), expected)


# Version 0.1 wrote the name of an architecture, and no table.


@flax.struct.dataclass
class StateOfVersion01:
    """Its TrainState."""

    step: Any
    params: Any
    opt_state: Any
    plateau: Any
    sums: Any


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(workdir, "ARCHITECTURES", {"demo": TINY})


def config_of_version_01(dataset="", **changes):
    return {**CONFIG.to_json(), "architecture": "demo", "dataset": dataset, "num_classes": 0, **changes}


def run_of_version_01(folder, dataset, outputs=3, **changes):
    """As it lay on the disk."""
    layers = with_classes(TINY, outputs)
    config = config_of_version_01(str(dataset.path), **changes)
    content = {"config": config, "data": dataset.fingerprint(), "versions": {"alexnet_jax": "0.1.0"}, "commit": None}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    np.savez(folder / "data.npz", class_names=np.array(dataset.class_names), mean_image=dataset.statistics.mean_image)
    params = jax.tree.map(np.asarray, params_of(layers))
    opt_state = ({"kernel": (jax.tree.map(np.negative, params), (np.int32(3),))}, ())
    sums = {"loss": np.float32(1), "top1_error": np.float32(1), "steps": np.float32(3)}
    state = StateOfVersion01(np.int32(3), params, opt_state, (np.float32(1), np.float32(2), np.int32(0)), sums)
    handlers = {"state": ocp.StandardCheckpointHandler(), "digest": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["top1_error"], best_mode="min")
    with ocp.CheckpointManager(folder / "checkpoints", options=options, item_handlers=handlers) as manager:
        digest = {"crc32": "00000000"}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave(digest))
        assert manager.save(3, args=items, metrics={"top1_error": 0.5})
    assert {path.name for path in (folder / "checkpoints" / "3").iterdir() if path.is_dir()} == {
        "state", "digest", "metrics",
    }  # fmt: skip
    return folder


SAYS_SO = "of version 0.1; its network is taken to be what 'demo' is today\n"


@pytest.mark.parametrize("name", ["latest", "best", "3"])
def test_a_run_of_version_01_is_used_and_told_so(tmp_path, dataset, capsys, name):
    folder = run_of_version_01(tmp_path / "old", dataset)
    network, expected = load(folder, name), trained(TINY, dataset)
    assert capsys.readouterr().out == f"{folder / 'config.json'}: {SAYS_SO}"
    assert (network.step, network.config, network.dataset) == (3, CONFIG, str(dataset.path))
    assert (network.class_names, network.net.layers) == (("red", "green", "blue"), TINY)
    jax.tree.map(np.testing.assert_array_equal, network.params, expected.params)
    np.testing.assert_array_equal(network.probabilities(IMAGES), expected.probabilities(IMAGES))


def test_a_run_of_version_01_with_more_outputs_than_classes_and_without_data_npz(tmp_path, dataset):
    folder = run_of_version_01(tmp_path / "old", dataset, outputs=5, num_classes=5)
    (folder / "data.npz").unlink()  # it was not written from the beginning
    network = load(folder)
    assert network.class_names == ("red", "green", "blue", "output 3", "output 4")
    assert network.probabilities(IMAGES).shape == (3, 5)
    np.testing.assert_array_equal(network.mean_image, dataset.statistics.mean_image)


def test_a_run_of_version_01_is_not_continued_but_begun_with(tmp_path, dataset, capsys):
    folder = run_of_version_01(tmp_path / "old", dataset)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        fit(TINY, dataset, CONFIG, folder, devices=jax.devices()[:1])
    message = (
        f"--workdir={folder}: holds a run of version 0.1, which can be used but not continued; --init_from={folder}"
    )
    assert str(caught.value) == f"{message} in another --workdir begins with its parameters"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    config = dataclasses.replace(CONFIG, init_from=str(folder))
    origin = transfer.find_origin(config, tmp_path / "new", AlexNet(TINY), dataset)
    assert origin.new == []
    np.testing.assert_array_equal(origin.values["fc4/kernel"], params_of(TINY)["fc4"]["kernel"])
    # Saved as a file, it has its table from then on.
    one_file.save(load(folder), tmp_path / "a.safetensors")
    capsys.readouterr()
    assert load(tmp_path / "a.safetensors", layers=TINY).step == 3
    assert capsys.readouterr().out == ""


# Orbax leaves tasks behind where its reading fails, whose end Python then complains of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_wrong_with_a_run_of_version_01_is_named(tmp_path, dataset, monkeypatch):
    folder = run_of_version_01(tmp_path / "old", dataset)
    content = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"architecture": "lenet"}, r"config\.json: its architecture 'lenet' is unknown here"),
        ({"more": 1}, r"config\.json: cannot be read"),
    ):
        changed = {**content, "config": {**content["config"], **changes}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            load(folder)
    (folder / "config.json").write_text(json.dumps(content))
    with monkeypatch.context() as patch:
        patch.setattr(workdir, "ARCHITECTURES", {"demo": with_layers(TINY, conv1={"features": 16})})
        message = r"is of another network: params/conv1/bias is \(8,\) there, \(16,\) here"
        with pytest.raises(InputError, match=message):
            load(folder)
    with pytest.raises(InputError, match=r"has no checkpoint '7'; there are latest, best, 3"):
        load(folder, "7")
    (folder / "checkpoints" / "3" / "state" / "_METADATA").write_text("{")
    with pytest.raises(InputError, match=r"old: the checkpoint of step 3 is damaged"):
        load(folder)


def test_a_file_of_version_01_is_used_and_told_so(tmp_path, dataset, capsys):
    file, expected = tmp_path / "old.safetensors", trained(TINY, dataset)
    tensors = {name: np.asarray(value) for name, value in flatten_dict(expected.params, sep="/").items()}
    tensors["mean_image"] = dataset.statistics.mean_image.astype(np.float32)
    card = {
        "config": config_of_version_01(), "class_names": dataset.class_names, "step": 3, "errors": {},
        "versions": {"alexnet_jax": "0.1.0"}, "commit": None,
    }  # fmt: skip

    def write(card):
        file.write_bytes(safetensors.numpy.save(tensors, {"format": "alexnet_jax 1", "card": json.dumps(card)}))

    write(card)
    assert one_file.is_ours(file)
    network = load(file)
    assert capsys.readouterr().out == f"{file}: {SAYS_SO}"
    assert (network.step, network.config, network.dataset, network.net.layers) == (3, CONFIG, "", TINY)
    jax.tree.map(np.testing.assert_array_equal, network.params, expected.params)
    np.testing.assert_allclose(network.probabilities(IMAGES), expected.probabilities(IMAGES), rtol=1e-5)
    write({**card, "config": config_of_version_01(architecture="lenet")})
    with pytest.raises(InputError, match=r"old\.safetensors: its architecture 'lenet' is unknown here"):
        load(file)
    write({**card, "class_names": ["red", "green"]})
    with pytest.raises(InputError, match=r"old\.safetensors: fc4/bias has the shape \(3,\), where \(2,\) is expected"):
        load(file)
