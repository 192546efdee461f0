"""What a trained network is used for: loading it from its workdir, and the command that looks at pictures."""

import csv
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from conftest import SIZE, TINY, picture, small_config
from PIL import Image

from alexnet_jax import command as commands, predict, train
from alexnet_jax.data import datasets, input_pipeline, shards
from alexnet_jax.networks import explain
from alexnet_jax.networks.loading import load
from alexnet_jax.options import InputError
from alexnet_jax.shown import Stream, progress, shown

pytestmark = pytest.mark.usefixtures("quickly_compiled", "undrawn")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Of the validation split all pictures are unlike each other."""

    def items(split, count):
        for index in range(count):
            label = index % 3
            yield shards.Item(f"{index}", f"{index}", label, functools.partial(picture, label, 1000 * split + index))

    path = tmp_path_factory.mktemp("prepared") / "colors"
    splits = {"train": list(items(0, 24)), "validation": list(items(1, 18))}
    datasets.write(path, ["red", "green", "blue"], splits, size=SIZE)
    return datasets.open_dataset(str(path))


@pytest.fixture(scope="module")
def workdir(quickly_compiled, dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    config = small_config(batch_size=6, epochs=6.0, center_mean=True, checkpoint_every=12)
    train.fit(TINY, dataset, config, path, devices=jax.devices()[:1])
    return path


@pytest.fixture(scope="module")
def network(workdir):
    return load(workdir)


def test_what_is_loaded_answers_as_it_was_evaluated(workdir, dataset, network):
    result = json.loads((workdir / "result.json").read_text())
    batch = input_pipeline.whole_split(dataset, "validation")
    found = np.asarray(network.probabilities(batch.images))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert np.mean(found.argmax(1) != batch.labels) == result["top1_error"]
    of_label = found[np.arange(18), batch.labels].astype(np.float64)
    assert -np.log(of_label).mean() == pytest.approx(result["nll"], rel=1e-4)
    assert (network.step, network.class_names) == (result["steps"], ("red", "green", "blue"))


def test_the_command_answers_for_a_validation_image_as_the_evaluation_does(tmp_path, workdir, dataset, network):
    (tmp_path / "blue").mkdir()
    batch = input_pipeline.whole_split(dataset, "validation")
    Image.fromarray(batch.images[2]).save(tmp_path / "blue" / "a.png")
    Image.fromarray(batch.images[3]).save(tmp_path / "blue" / "b.png", exif=turned(8))
    Image.fromarray(batch.images[4]).convert("L").save(tmp_path / "c.jpg")
    Image.fromarray(batch.images[5]).convert("RGBA").resize((100, 80)).save(tmp_path / "d.webp")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    flags = [f"--workdir={workdir}", "--format=json", "--top=2", f"--figure={tmp_path / 'seen.png'}"]
    command = [sys.executable, "-m", "alexnet_jax.predict", *flags, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert process.returncode == 2
    # An older jaxlib writes lines of its own when it loads what was compiled before.
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: {tmp_path / 'broken.jpg'}: is not an image of a known format",
        "error: 1 of 5 pictures cannot be read",
    ]
    seen = {os.path.basename(line["file"]): line for line in map(json.loads, process.stdout.splitlines())}
    assert {name: line["label"] for name, line in seen.items()} == {
        "a.png": "blue", "b.png": "blue", "c.jpg": None, "d.webp": None
    }  # fmt: skip
    probabilities = network.probabilities(np.stack([batch.images[2], np.rot90(batch.images[3])]))
    for name, row in zip(("a.png", "b.png"), np.asarray(probabilities), strict=True):
        assert [of["class"] for of in seen[name]["top"]] == [network.class_names[i] for i in np.argsort(-row)[:2]]
        np.testing.assert_allclose([of["probability"] for of in seen[name]["top"]], np.sort(row)[:0:-1], atol=2e-6)
    with Image.open(tmp_path / "seen.png") as drawn:
        assert drawn.width > 1000


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_more_pictures_than_a_batch_and_ten_views(tmp_path, dataset, network):
    batch = input_pipeline.whole_split(dataset, "validation")
    for number, image in enumerate(batch.images):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    files = predict.files_of([str(tmp_path)])
    found = list(predict.predictions(network, files, views=10, top=1))
    expected = np.asarray(network.probabilities(batch.images, views=10))
    assert [of.top[0][0] for of in found] == [network.class_names[index] for index in expected.argmax(1)]
    np.testing.assert_allclose([of.top[0][1] for of in found], expected.max(1), rtol=1e-4)


def test_the_same_answers_as_table_json_and_csv(tmp_path, dataset, workdir, monkeypatch, capsys):
    images = input_pipeline.whole_split(dataset, "validation").images
    (tmp_path / "blue").mkdir()
    files = [tmp_path / "blue" / 'a, "b"\n.png', tmp_path / "c.png"]
    for file, image in zip(files, images, strict=False):
        Image.fromarray(image).save(file)

    def answers(format):
        monkeypatch.setattr(commands, "given_flags", lambda _: {"workdir": str(workdir), "format": format})
        predict._predict([str(tmp_path)])
        return capsys.readouterr().out

    rows = [json.loads(line) for line in answers("json").splitlines()]
    assert [row["file"] for row in rows] == [str(files[1]), str(files[0])]
    header, *cells = csv.reader(answers("csv").splitlines())
    assert header == ["file", "label", *(f"{of} {rank}" for rank in (1, 2, 3) for of in ("class", "probability"))]
    found = answers("table").splitlines()
    for row, of_csv in zip(rows, cells, strict=True):
        top = [[of["class"], f"{of['probability']:.6f}"] for of in row["top"]]
        assert of_csv == [shown(row["file"]), row["label"] or "", *itertools.chain(*top)]
        label = f"  (true: {row['label']})" if row["label"] else ""
        lines = [shown(row["file"]) + label, *(f"{of['probability']:7.1%}  {of['class']}" for of in row["top"])]
        assert [line for line in found if line in lines] == lines
    assert len(found) == 8


def test_nothing_more_is_computed_for_a_reader_that_has_gone(monkeypatch, tmp_path):
    """As in `predict … | head -1`; but a figure is still wanted."""
    prediction = predict.Prediction("a.png", np.zeros((4, 4, 3), np.uint8), [("red", 1.0)], None)
    for figure, expected in (("", 3), (str(tmp_path / "a.png"), 50)):
        read, write = os.pipe()
        output, computed = os.fdopen(write, "w"), []
        monkeypatch.setattr(sys, "stdout", Stream(output))

        def seeing(computed=computed):
            for number in range(50):
                if number == 2:
                    os.close(read)  # noqa: B023
                computed.append(number)
                yield prediction

        seen, failed = predict._show(seeing(), 50, predict.Options(workdir="run", figure=figure))
        assert (len(computed), failed) == (expected, 0)
        assert len(seen) == (50 if figure else 0)
        output.close()


def test_progress_is_a_bar_on_a_terminal_and_sparse_lines_elsewhere(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        with progress(1000, unit=" pictures", delay=1) as bar:
            for _ in range(1000):
                now[0] += 0.04
                bar.update()
        told = capsys.readouterr().err
        assert ("\r" in told) == terminal
        assert "1000/1000" in told
        assert "25.0" in told  # pictures a second
        if not terminal:
            assert 2 <= told.count("\n") <= 4
            assert told.splitlines()[0][0].isdigit()


def test_a_hint_where_pictures_are_smaller_than_what_the_network_sees(tmp_path, network, capsys):
    for number, size in enumerate((20, 21, 22, 400)):
        Image.new("RGB", (size, 2 * size)).save(tmp_path / f"{number}.png")
    (tmp_path / "none.png").write_bytes(b"none")
    files = predict.files_of([str(tmp_path)])
    predict.say_if_small(network, files)
    assert (
        "hint: most of the pictures have about 22 pixels a side, and the network sees 32 × 32"
        in capsys.readouterr().err
    )
    predict.say_if_small(network, [*files[3:4] * 9, *files])
    predict.say_if_small(network, files[4:])
    assert capsys.readouterr().err == ""


def test_large_pictures_are_allowed_by_a_flag(tmp_path, network):
    Image.new("RGB", (60, 60)).save(tmp_path / "large.png")
    os.mkfifo(tmp_path / "pipe.png")
    files = predict.files_of([str(tmp_path)])
    refused, pipe = predict.predictions(network, files, max_pixels=3599)
    assert str(refused) == f"{tmp_path}/large.png: has more than 3,599 pixels; --max_pixels allows more"
    assert str(pipe) == f"{tmp_path}/pipe.png: no plain file"
    seen, _ = predict.predictions(network, files, max_pixels=3600)
    assert len(seen.top) == 3
    assert network.features(files[:1], ["fc4"], max_pixels=3600)["fc4"].shape == (1, 3)
    with pytest.raises(InputError, match=r"large\.png: has more than 3,599 pixels"):
        network.features(files[:1], ["fc4"], max_pixels=3599)


def test_files_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "more/a.png", "more/.cache/x.png", "more/deep/c.jpg", "[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert predict.files_of(["more", "b.png"]) == ["more/a.png", "more/deep/c.jpg", "b.png"]
    assert predict.files_of(["**/*.png", "[1].png", "none*.png"]) == [
        "[1].png",
        "b.png",
        "more/a.png",
        "[1].png",
        "none*.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jpg"], "--workdir=DIR is needed"),
        (["--workdir=nowhere"], "no picture is given"),
        (["--workdir=nowhere", "a.jpg"], "nowhere: there is no run (no config.json)"),
        (["--workdir=nowhere", "--views=3", "a.jpg"], "--views=3: must be 1 or 10"),
        (["--workdir=nowhere", "--format=xls", "a.jpg"], "--format=xls: must be one of table, json, csv"),
    ],
)
def test_bad_flags_are_one_line(call_here, arguments, message):
    process = call_here("predict", *arguments)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"error: {message}")
    assert process.stderr.count("\n") == 1


def test_which_checkpoint(workdir, network):
    steps = sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir() if entry.name.isdigit())
    assert network.step == steps[-1] == 24
    other = load(workdir, str(steps[0]))
    assert other.step == steps[0]
    assert not np.array_equal(other.params["fc4"]["kernel"], network.params["fc4"]["kernel"])
    assert load(workdir, "best").step == json.loads((workdir / "result.json").read_text())["best_checkpoint"]
    with pytest.raises(InputError, match=r"has no checkpoint '7'; there are latest, best, 1\d, 24"):
        load(workdir, "7")


def test_a_run_that_is_still_writing_is_left_alone(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    half_written = copy / "checkpoints" / "30.orbax-checkpoint-tmp-1"
    half_written.mkdir()
    assert load(copy).step == 24
    assert half_written.exists()


def test_a_run_of_before_data_npz_is_read_by_its_data_set(workdir, dataset, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / "data.npz").unlink()
    assert load(copy).class_names == dataset.class_names
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "data": "others"}))
    with pytest.raises(InputError, match=r"data.npz: is missing, and .* holds other images than it was trained on"):
        load(copy)


@pytest.mark.parametrize("file", ["config.json", "data.npz"])
def test_a_damaged_file_is_named(workdir, tmp_path, file):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / file).write_bytes(b"{")
    with pytest.raises(InputError, match=rf"{file}: cannot be read"):
        load(copy)


def test_activation_maps_are_drawn_of_one_picture(call_here, tmp_path, workdir, dataset):
    Image.fromarray(input_pipeline.whole_split(dataset, "validation").images[0]).save(tmp_path / "a.png")
    flags = [f"--workdir={workdir}", "--maps=conv1", f"--figure={tmp_path / 'm.png'}"]
    process = call_here("predict", *flags, tmp_path / "a.png")
    assert process.returncode == 0, process.stderr
    pixels = np.asarray(Image.open(tmp_path / "m.png").convert("L"))
    assert 0.02 < np.mean(pixels < 128) < 0.9  # neither empty nor black


def test_what_speaks_for_an_answer_is_drawn_of_each_picture(call_here, tmp_path, workdir, dataset):
    for number, image in enumerate(input_pipeline.whole_split(dataset, "validation").images[:2]):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    figure = tmp_path / "why" / "m.png"
    flags = [f"--workdir={workdir}", "--explain=gradcam", f"--figure={figure}"]
    process = call_here("predict", *flags, *tmp_path.glob("*.png"))
    assert process.returncode == 0, process.stderr
    pixels = np.asarray(Image.open(figure).convert("RGB")).astype(int)
    assert pixels.shape[1] > 1000  # two pictures in a row
    assert 0.001 < np.mean(pixels[..., 0] - pixels[..., 2] > 60) < 0.9  # something is orange


@pytest.mark.parametrize("count", [3, 16, 18])
def test_what_is_explained_comes_in_batches_of_one_size(monkeypatch, count):
    sizes, drawn = [], []

    def explained(network, images, classes):
        sizes.append(len(images))
        return images[:, 0, 0, 0]

    network = types.SimpleNamespace(
        class_names=[str(number) for number in range(20)],
        probabilities=lambda images: np.eye(20)[images[:, 0, 0, 0]],
    )
    seen = [predict.Prediction("", np.full((2, 2, 3), number, np.uint8), [], None) for number in range(count)]
    monkeypatch.setitem(explain.METHODS, "gradcam", explained)
    monkeypatch.setattr(explain, "seen", lambda network, images: images)
    monkeypatch.setattr("alexnet_jax.figures.save_explanations", lambda *arguments: drawn.append(arguments))
    predict._draw_explanations(network, seen, predict.Options(workdir="run", figure="m.png", explain="gradcam"))
    ((images, maps, titles, _),) = drawn
    assert set(sizes) == {min(count, 16)}
    assert (len(images), maps, titles) == (count, [*range(count)], [f"{number} 100%" for number in range(count)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--explain=gradcam"], "--explain=gradcam: needs --figure=FILE, without --maps"),
        (["--explain=lime", "--figure=m.png"], "--explain=lime: must be one of saliency, occlusion, gradcam"),
        (["--maps=conv1"], "--maps=conv1: needs --figure=FILE"),
        (["--maps=fc3", "--figure=m.png"], "--maps=fc3: is of a dense layer, which has no maps"),
        (["--maps=conv9", "--figure=m.png"], "its network has no output conv9; there are conv1, conv1:relu, conv1:lrn"),
    ],
)
def test_maps_that_cannot_be_drawn_are_one_line(call_here, tmp_path, workdir, dataset, flags, message):
    Image.fromarray(input_pipeline.whole_split(dataset, "validation").images[0]).save(tmp_path / "a.png")
    process = call_here("predict", f"--workdir={workdir}", *flags, tmp_path / "a.png")
    assert process.returncode == 2
    assert message in process.stderr.splitlines()[-1]
    assert not (tmp_path / "m.png").exists()
