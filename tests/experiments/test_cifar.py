"""The experiments on CIFAR-10: its images, where they are at hand, and the loop that watches training."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CROP, TINY

from alexnet_jax import Config, fit, load, open_dataset, prepare
from alexnet_jax.data import input_pipeline
from alexnet_jax.paper import optim

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import cifar
import cifar_tables
import lrn_cifar10
import overfitting
import record
import relu_vs_tanh
import training

IMAGES = Path(__file__).parents[3] / "shared" / "data"
DIGESTS = {
    "train": "a1a3cc9c14a8fd3c0d66de6ab787bbe8abbea0ab10446fa41b395c03644f2b1e",
    "validation": "0ae072db3437edb693feba85f2d9dec41036f6e2f6d6f2cbd900da3ee13568b6",
}


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    if not (IMAGES / "cifar10-test.tar").exists():
        pytest.skip("the images of CIFAR-10 are not at hand")
    output = str(tmp_path_factory.mktemp("prepared") / "cifar10")
    source = tuple(str(IMAGES / f"cifar10-{part}.tar") for part in (*(f"train-{n}" for n in range(1, 6)), "test"))
    prepare.prepare(prepare.Options(source=source, output=output, size=32, encoding="raw"))
    return output


@pytest.mark.slow
def test_prepared_cifar10_is_cifar10(cifar10):
    dataset = open_dataset(cifar10)
    for split, digest in DIGESTS.items():
        batch = input_pipeline.whole_split(dataset, split)
        pairs = zip(batch.labels, batch.images, strict=True)
        records = sorted(bytes([label]) + np.asarray(image).tobytes() for label, image in pairs)
        assert hashlib.sha256(b"".join(records)).hexdigest() == digest
    mean = dataset.statistics.mean_image.mean((0, 1))
    np.testing.assert_allclose(mean, [125.3069, 122.9504, 113.8654], atol=1e-3)


@pytest.mark.slow
def test_the_quick_result_is_reproduced(cifar10):
    kept = record.log("relu_vs_tanh_quick")["errors"]
    assert relu_vs_tanh.quick(cifar10) == pytest.approx(kept, abs=cifar.QUICK_BAND)


def test_a_run_learns_and_is_looked_at_where_it_was_asked(prepared, quickly_compiled):
    config = Config(crop_size=CROP, batch_size=12, learning_rate=0.002, color_scale=0.0)
    run = training.Run(TINY, config, open_dataset(str(prepared)))
    before = run.errors("train")
    looks = list(run.epochs(3, every=0.5))
    assert looks == pytest.approx([step * 12 / 50 for step in (2, 4, 6, 8, 10, 12)])
    assert int(jax.device_get(run.state.step)) == 12
    assert run.errors("train").nll < before.nll
    assert run.errors("validation").examples == 23


@pytest.mark.slow
def test_a_run_is_the_one_of_fit(prepared, tmp_path):
    config = Config(crop_size=CROP, batch_size=12, learning_rate=0.002, epochs=2.0, seed=3)
    dataset = open_dataset(str(prepared))
    run = training.Run(TINY, config, dataset)
    list(run.epochs(2, every=2))
    errors = fit(TINY, dataset, config, tmp_path)
    network = load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state.params), jax.device_get(network.params))
    assert run.errors("validation") == pytest.approx(errors)
    assert training.errors_of(network, dataset, "validation") == pytest.approx(errors)
    assert training.errors_of(network, dataset, "train", views=10).examples == 50


@pytest.mark.slow
def test_each_layer_has_its_own_decay(prepared, monkeypatch, tmp_path):
    decays = {"kernel": 0.0, "bias": 0.0, "fc3/kernel": 0.004}
    config = Config(crop_size=CROP, batch_size=12, epochs=12 / 50, bias_learning_rate=0.02)  # one step
    params = []
    for decayed in (decays, {**decays, "fc3/kernel": 0.0}):
        monkeypatch.setitem(lrn_cifar10.NETWORKS, "tiny", (TINY, decayed))
        folder = tmp_path / str(len(params))
        lrn_cifar10.fitted("tiny", open_dataset(str(prepared)), config, folder)
        params.append(load(folder).params)
    differs = {
        f"{layer}/{kind}"
        for layer, of in params[0].items()
        for kind, array in of.items()
        if not np.array_equal(array, params[1][layer][kind])
    }
    assert differs == {"fc3/kernel"}


@pytest.mark.slow
def test_what_lrn_cifar10_keeps_of_a_training(prepared, monkeypatch, tmp_path):
    monkeypatch.setitem(lrn_cifar10.NETWORKS, "tiny", (TINY, {"kernel": 0.0, "bias": 0.0}))
    config = dataclasses.replace(lrn_cifar10.CONFIG, crop_size=CROP, batch_size=12)
    monkeypatch.setattr(lrn_cifar10, "CONFIG", config)
    found = lrn_cifar10.trained("tiny", str(prepared), seed=0, epochs=3.0, folder=tmp_path / "run")
    assert [epoch for epoch, _ in found["curve"]] == pytest.approx([step * 12 / 50 for step in (5, 9, 12)])
    assert found["curve"][-1][1] == found["top1_error"]
    assert 0 <= found["ten_views_top1_error"] <= 1


@pytest.mark.parametrize(("network", "first_drop"), [("13 % network", 120), ("11 % network", 430)])
def test_the_schedules_recorded_in_2012_lower_the_rates_of_the_weights_only(monkeypatch, tmp_path, network, first_drop):
    class Seen(Exception):
        pass

    def fitted(network, data, config, folder):
        raise Seen(config)

    monkeypatch.setattr(lrn_cifar10, "fitted", fitted)
    monkeypatch.setattr(lrn_cifar10, "open_dataset", lambda _: None)
    epochs = lrn_cifar10.RECORDED[network]
    assert epochs == first_drop + 20
    with pytest.raises(Seen) as seen:
        lrn_cifar10.trained(network, "", seed=0, epochs=epochs, folder=tmp_path)
    rates = optim.learning_rates(seen.value.args[0], steps_per_epoch=1)
    at = [0, first_drop - 1, first_drop, first_drop + 10]
    np.testing.assert_allclose([rates["kernel"](step) for step in at], [1e-3, 1e-3, 1e-4, 1e-5], rtol=1e-5)
    np.testing.assert_allclose([rates["bias"](step) for step in at], [2e-3] * 4, rtol=1e-5)


def test_what_was_computed_is_remembered_for_one_data_set(prepared, tmp_path, monkeypatch):
    calls = []

    def compute():
        calls.append(1)
        return {"error": 0.25}

    for _ in range(2):
        kept = training.remembered(tmp_path / "a.json", str(prepared), compute)
        assert kept["result"] == {"error": 0.25}
    assert len(calls) == 1
    monkeypatch.setattr(training, "open_dataset", lambda _: open_dataset("shapes"))
    with pytest.raises(SystemExit, match="computed on another data set"):
        training.remembered(tmp_path / "a.json", "shapes", compute)


def test_one_in_n_examples():
    some = training.OneIn(3, list("abcdefgh"))
    assert [some[index] for index in range(len(some))] == ["a", "d", "g"]


def test_tables_and_pictures(tmp_path, monkeypatch):
    def kept(**result):
        return {"result": result, "machine": {"processor": "P", "cores": 2}, "versions": {"jax": "1"}, "date": "D"}

    def fallen(epoch):  # a straight line from 1 to 0 that is at 25 % there
        return kept(epochs=[epoch / 3 * number for number in range(5)], errors=[1, 0.75, 0.5, 0.25, 0])

    logs = {
        "relu_vs_tanh": {
            "results": {
                f"{network}, {name}": {"rate": 0.001, "curves": [fallen(epoch) for epoch in epochs]}
                for network in relu_vs_tanh.NETWORKS
                for name, epochs in {"ReLU": (2, 4), "tanh": (8, 24)}.items()
            }
        },
        "overfitting": {
            "epochs": 5,
            "results": {
                name: [kept(**{"epochs": [1, 2, 3, 4, 5], "test loss": [1, 1, 1, 1, 2.5],
                               "training error": [0.9, 0.6, 0.3, 0.3, 0.3], "test error": [0.9, 0.6] + [0.45] * 3})]
                for name in overfitting.RUNS
            },
        },
    } | {
        f"lrn_cifar10_{epochs}_epochs": {
            "epochs": epochs,
            "results": {
                network: [
                    kept(top1_error=of, ten_views_top1_error=of / 2 - number / 100, training_error=0)
                    for of in (0.1, 0.2)
                ]
                for number, network in enumerate(lrn_cifar10.NETWORKS)
            },
        }
        for epochs in (7, 450)
    }  # fmt: skip
    for name, values in logs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    for module in (record, cifar_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(cifar_tables, "PICTURES", tmp_path / "figures")
    where = "2 cores of an P, jax 1, D."
    assert "| 3 conv + fc10 | 0.001 | 3.0 ± 1.4 | 0.001 | 16.0 ± 11.3 | 5.3 (" in cifar_tables.figure1()
    assert "2 seeds (the log does not name them)" in cifar_tables.figure1()
    assert cifar_tables.figure1().endswith(where)
    for epochs, paper in ((7, ""), (450, "11 %")):  # the paper's figure is of the full schedule
        # ± 4.303 · √(2 · 3.54² / 2) points: Student's t of two degrees of freedom
        row = f"| 11 % network | {epochs} | 2 | 0.00 ± 0.00 % | 15.00 ± 7.07 % | 5.50 ± 3.54 % | "
        assert f"{row}-2.00 (-17.21 to +13.21) | {paper} |\n" in cifar_tables.lrn_on_cifar10()
    assert "| both | 30.0 % | 45.0 % |  | 45.0 % | 2.50 | 4 | 3.0 |\n" in cifar_tables.overfitting_and_cures()
    cifar_tables.draw()
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"relu_vs_tanh.png", "overfitting.png"}


def test_the_target_is_reached_where_the_smoothed_error_falls_through_it():
    errors = [0.9, 0.6, 0.3, 0.3, 0.0, 0.0, 0.0]  # means of three: .6, .4, .2, three quarters of the way at 0.25
    points = [(epoch / 2, error) for epoch, error in enumerate(errors)]
    assert training.reached(points, 0.25) == pytest.approx(1.375)
    assert training.reached(points[:4], 0.25) is None
    curves = {
        rate: {"result": {"epochs": [epoch for epoch, _ in part], "errors": [error for _, error in part]}}
        for rate, part in {0.1: points[:3], 0.2: points, 0.3: points[:4]}.items()
    }
    assert relu_vs_tanh.soonest(curves)[0] == 0.2
