"""§6's pre-training: a run that begins with the parameters of another."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import CROP, TINY, picture

from alexnet_jax import train
from alexnet_jax.config import Config, InputError
from alexnet_jax.data import datasets, shards
from alexnet_jax.networks import network as trained
from alexnet_jax.paper.architectures import ARCHITECTURES, with_layers

ONE = jax.devices()[:1]


@pytest.fixture(scope="module", autouse=True)
def small_tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", TINY)
        patch.setitem(
            ARCHITECTURES,
            "wider",
            with_layers(TINY, conv1={"features": 16}, conv2={"features": 12}, fc3={"features": 20}),
        )
        yield


@pytest.fixture(scope="module")
def origin(prepared, tmp_path_factory):
    """A run on three classes."""
    workdir = tmp_path_factory.mktemp("origin") / "run"
    config = Config(
        architecture="tiny", dataset=str(prepared), crop_size=CROP, batch_size=16, epochs=2.0, learning_rate=0.002
    )
    train.train_and_evaluate(config, workdir, devices=ONE)
    return workdir


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Other images, of two classes."""

    def item(split, index):
        return shards.Item(f"{split}/{index}", "", index % 2, functools.partial(picture, index % 2, 99 * split + index))

    path = tmp_path_factory.mktemp("others") / "set"
    splits = {
        split: [item(number, index) for index in range(20)] for number, split in enumerate(("train", "validation"))
    }
    datasets.write(path, ["rose", "leaf"], splits, size=40)
    return path


@pytest.fixture
def config(others, origin):
    return Config(
        architecture="tiny", dataset=str(others), crop_size=CROP, batch_size=10, epochs=2.0, learning_rate=0.002,
        init_from=str(origin),
    )  # fmt: skip


def params(workdir):
    return jax.tree.map(np.asarray, trained.load(workdir).params)


def test_layers_are_taken_over_but_the_last_whose_classes_are_others(config, origin, tmp_path, capsys):
    train.train_and_evaluate(dataclasses.replace(config, taken_rate_scale=0.0), tmp_path, devices=ONE)
    facts = json.loads((tmp_path / "init.json").read_text())
    taken = [f"{layer}/{kind}" for layer in ("conv1", "conv2", "fc3") for kind in ("bias", "kernel")]
    assert facts == {"from": f"{origin}, step 6", "taken": taken, "new": ["fc4/bias", "fc4/kernel"]}
    assert f"{origin}, step 6: {', '.join(taken)}; new: fc4/bias, fc4/kernel" in capsys.readouterr().out
    before, after = params(origin), params(tmp_path)
    for layer in ("conv1", "conv2", "fc3"):
        jax.tree.map(np.testing.assert_array_equal, before[layer], after[layer])
    assert after["fc4"]["kernel"].shape == (16, 2)


def test_where_the_classes_are_the_same_the_last_layer_is_taken_too(config, prepared, tmp_path):
    config = dataclasses.replace(config, dataset=str(prepared), batch_size=16, epochs=0.4)
    train.train_and_evaluate(config, tmp_path, devices=ONE)
    assert json.loads((tmp_path / "init.json").read_text())["new"] == []


def test_what_is_taken_learns_at_a_tenth_of_the_rate_and_what_is_frozen_not_at_all(config, origin, tmp_path):
    moves = {}
    for scale, frozen in ((1.0, ()), (0.1, ("conv2",))):
        run = dataclasses.replace(config, epochs=0.5, taken_rate_scale=scale, frozen_layers=frozen)  # one step
        train.train_and_evaluate(run, tmp_path / str(scale), devices=ONE)
        after = params(tmp_path / str(scale))
        moves[scale] = {
            layer: after[layer]["kernel"] - params(origin)[layer]["kernel"] for layer in ("conv1", "conv2", "fc3")
        }
        moves[scale]["fc4"] = after["fc4"]["kernel"]
    for layer in ("conv1", "fc3"):
        assert np.abs(moves[1.0][layer]).max() > 1e-6
        np.testing.assert_allclose(moves[0.1][layer], 0.1 * moves[1.0][layer], atol=2e-8)
    assert not moves[0.1]["conv2"].any()
    np.testing.assert_array_equal(moves[0.1]["fc4"], moves[1.0]["fc4"])


def test_a_run_goes_on_without_the_one_that_it_began_with(config, origin, tmp_path):
    copy = tmp_path / "origin"
    shutil.copytree(origin, copy)
    config = dataclasses.replace(config, init_from=str(copy), frozen_layers=("conv1",))
    first = train.train_and_evaluate(config, tmp_path / "run", devices=ONE)
    shutil.rmtree(copy)
    assert train.train_and_evaluate(config, tmp_path / "run", devices=ONE) == first
    np.testing.assert_array_equal(params(tmp_path / "run")["conv1"]["kernel"], params(origin)["conv1"]["kernel"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "wider"}, "none of its parameters has the name and shape of one here"),
        ({"init_from": "nowhere"}, "--init_from=nowhere: nowhere: there is no run"),
        ({"frozen_layers": ("fc4",)}, "--frozen_layers=fc4: is not taken over from"),
        ({"frozen_layers": ("conv1",), "init_from": ""}, "--frozen_layers=conv1: needs --init_from"),
    ],
)
def test_what_cannot_be_taken_over_is_refused(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train.train_and_evaluate(dataclasses.replace(config, **changes), tmp_path / "run", devices=ONE)
    assert not (tmp_path / "run").exists()  # else the right flags would be refused there
