"""§6: trained networks on a whole split, against NumPy."""

import csv
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from conftest import CROP, TINY, picture

from alexnet_jax.config import Config
from alexnet_jax.data import datasets, input_pipeline, shards
from alexnet_jax.networks import ensemble, one_file
from alexnet_jax.networks.loading import load
from alexnet_jax.options import InputError
from alexnet_jax.paper import model
from alexnet_jax.train import fit

pytestmark = pytest.mark.usefixtures("quickly_compiled", "undrawn")


@pytest.fixture(scope="module")
def workdirs(prepared, tmp_path_factory):
    folder, dataset = tmp_path_factory.mktemp("runs"), datasets.open_dataset(str(prepared))
    config = Config(crop_size=CROP, batch_size=16, epochs=6.0, learning_rate=0.002)
    for seed in (0, 1):
        run = dataclasses.replace(config, seed=seed)
        fit(TINY, dataset, run, folder / f"seed{seed}", devices=jax.devices()[:1])
    return [str(folder / f"seed{seed}") for seed in (0, 1)]


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def results(folder):
    return json.loads((folder / "result.json").read_text())["networks"]


@pytest.mark.parametrize("batch_size", [5, 23, 64])
def test_one_network_has_the_errors_of_its_run_for_any_batch_size(workdirs, tmp_path, batch_size):
    errors = ensemble.evaluate_networks(workdirs[:1], tmp_path, batch_size=batch_size)
    with open(f"{workdirs[0]}/result.json") as file:
        before = json.load(file)
    assert (errors.top1_error, errors.top5_error, errors.examples) == (before["top1_error"], before["top5_error"], 23)
    assert errors.nll == pytest.approx(before["nll"], rel=1e-5)


def test_ten_views_are_the_mean_of_the_softmax_outputs_of_each(workdirs, prepared, tmp_path):
    ensemble.evaluate_networks(workdirs[:1], tmp_path, views=10)
    network, dataset = load(workdirs[0]), datasets.open_dataset(str(prepared))
    images = input_pipeline.whole_split(dataset, "validation").images - dataset.statistics.mean_image
    views = []
    for top, left in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4)):
        patch = images[:, top : top + CROP, left : left + CROP].astype(np.float32)
        views += [patch, patch[:, :, ::-1]]
    apply = jax.jit(functools.partial(model.AlexNet.apply, network.net, train=False))
    expected = np.mean([softmax(np.asarray(apply({"params": network.params}, view))) for view in views], axis=0)
    found = softmax(ensemble.Answers.load(tmp_path / "answers.npz").logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_networks_are_averaged_and_so_are_saved_answers(workdirs, tmp_path, weights):
    for number, workdir in enumerate(workdirs):
        ensemble.evaluate_networks([workdir], tmp_path / str(number))
    saved = [ensemble.Answers.load(tmp_path / str(number) / "answers.npz") for number in (0, 1)]
    expected = np.average([softmax(answers.logits) for answers in saved], axis=0, weights=weights or None)

    errors = ensemble.evaluate_networks(workdirs, tmp_path / "both", weights=weights)
    together = ensemble.Answers.load(tmp_path / "both" / "answers.npz")
    np.testing.assert_allclose(softmax(together.logits), expected, atol=1e-6)
    assert errors.top1_error == np.mean(expected.argmax(1) != together.labels)
    assert errors.nll == pytest.approx(-np.log(expected[np.arange(23), together.labels]).mean(), rel=1e-5)
    names = [row["name"] for row in results(tmp_path / "both")]
    assert names == [f"{workdirs[0]}, step 19", f"{workdirs[1]}, step 19", "2 networks"]

    mixed = [workdirs[0], str(tmp_path / "1" / "answers.npz")]
    again = ensemble.evaluate_networks(mixed, tmp_path / "mixed", weights=weights)
    assert again == errors


def test_answers_to_other_images_are_not_averaged_whatever_they_say_of_them(tmp_path):
    for number, images in enumerate((4, 3, 4)):
        labels = np.arange(images) % 2 if number < 2 else np.zeros(images, int)
        answers = ensemble.Answers(f"of {number}", np.ones((images, 2), np.float32), labels, ("a", "b"), "data")
        answers.save(tmp_path / f"{number}.npz")
    for other in (1, 2):
        with pytest.raises(InputError, match=f"^of {other}: is of other images or classes than of 0$"):
            ensemble.evaluate_networks([str(tmp_path / f"{n}.npz") for n in (0, other)], tmp_path / "out")


def test_tables_by_class(workdirs, tmp_path):
    errors = ensemble.evaluate_networks(workdirs, tmp_path)
    answers = ensemble.Answers.load(tmp_path / "answers.npz")
    with open(tmp_path / "confusion.csv") as file:
        header, *rows = csv.reader(file)
    assert header == ["true class", "red", "green", "blue"]
    for number, (name, *counts) in enumerate(rows):
        assert name == header[1 + number]
        taken = answers.logits.argmax(1)[answers.labels == number]
        assert list(map(int, counts)) == [np.sum(taken == other) for other in range(3)]
    with open(tmp_path / "classes.csv") as file:
        by_class = list(csv.DictReader(file))
    wrong = sum(int(row["images"]) * float(row["top1_error"]) for row in by_class)
    assert wrong / 23 == pytest.approx(errors.top1_error, abs=1e-3)
    assert (tmp_path / "confusion.png").stat().st_size > 5000


def test_the_intervals_are_those_of_a_mean_of_so_many():
    wrong = 1.0 * (np.arange(1000) < 300)
    low, high = ensemble.intervals({"top1_error": wrong})["top1_error"]
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.2 * half)


@pytest.fixture(scope="module")
def other_dataset(tmp_path_factory):
    def build(name, size, classes):
        def item(split, index):
            return shards.Item(f"{split}/{index}", "", index % 3, functools.partial(picture, index % 3, index, size))

        path = tmp_path_factory.mktemp("other") / name
        datasets.write(path, classes, {s: [item(s, i) for i in range(6)] for s in ("train", "validation")}, size=size)
        return str(path)

    return build


def test_what_does_not_fit_is_refused(workdirs, tmp_path, other_dataset):
    run = functools.partial(ensemble.evaluate_networks, workdirs, tmp_path / "out")
    with pytest.raises(InputError, match=r"seed0: is for images of 40 pixels, those of .* have 48"):
        run(dataset=other_dataset("larger", 48, ["red", "green", "blue"]))
    with pytest.raises(InputError, match="seed0: was trained on other classes"):
        run(dataset=other_dataset("others", 40, ["a", "b", "c"]))
    with pytest.raises(InputError, match=r"--split=test: .* has train, validation"):
        run(split="test")
    with pytest.raises(InputError, match="one number above 0 for each of the 2 networks"):
        run(weights=(1.0,))
    (tmp_path / "bad.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"bad\.npz: cannot be read \(File is not a zip file\)"):
        ensemble.evaluate_networks([str(tmp_path / "bad.npz")], tmp_path / "out")
    ensemble.evaluate_networks(workdirs[:1], tmp_path / "train", split="train")
    with pytest.raises(InputError, match="is of other images or classes than"):
        ensemble.evaluate_networks([workdirs[0], str(tmp_path / "train" / "answers.npz")], tmp_path / "out")
    one_file.save(load(workdirs[0]), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"--dataset=PATH is needed: .*a\.safetensors does not say"):
        ensemble.evaluate_networks([str(tmp_path / "a.safetensors")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=look"], "--mode=look: must be train or evaluate"),
        (["--mode=evaluate", "--momentum=0.5"], "--momentum: not with --mode=evaluate"),
        (["--mode=evaluate", "--workdir=a.npz"], "--output=DIR is needed"),
        (["--mode=evaluate", "--workdir=a.safetensors"], "--output=DIR is needed"),
        (["--mode=evaluate", "--views=3"], "--views=3: must be 1 or 10"),
        (["--mode=evaluate"], "nowhere: there is no run"),
    ],
)
def test_bad_flags_are_one_line(call_here, flags, message):
    process = call_here("main", "--workdir=nowhere", *flags)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"error: {message}")
    assert process.stderr.count("\n") == 1
