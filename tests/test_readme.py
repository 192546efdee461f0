"""What the README and docs/ show of use in one's own code runs, top to bottom; their commands have these flags."""

import dataclasses
import functools
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from pages import run
from PIL import Image

import alexnet_jax
from alexnet_jax.config import Config
from alexnet_jax.data import datasets
from alexnet_jax.paper.train_state import shapes_of_params

ROOT = Path(__file__).parent.parent


def prepare(folder, monkeypatch):
    """Three pictures, and a small built-in data set."""
    (folder / "a_folder").mkdir()
    for number, name in enumerate(("heart", "ring", "star")):
        Image.fromarray(np.full((90, 120, 3), 60 * number, np.uint8)).save(folder / "a_folder" / f"{name}.png")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(datasets, "builtin_shapes", functools.partial(datasets.builtin_shapes, 32, 10))


@pytest.mark.slow
def test_the_readme_does_what_it_says(tmp_path, monkeypatch):
    prepare(tmp_path, monkeypatch)
    found = run(ROOT / "README.md")
    assert found["PAPER"] == alexnet_jax.PAPER
    assert {name: of.shape for name, of in found["maps"].items()} == {
        "conv1:relu": (8, 30, 30, 16),
        "conv2:pool": (8, 5, 5, 32),
    }
    assert found["logits"].shape == (8, 10)
    assert int(found["state"].step) == 2
    assert set(found["metrics"]) == {"loss", "top1_error"}
    assert found["errors"].examples == 10
    assert '"gradient_norm"' in (tmp_path / "lars_run" / "metrics.jsonl").read_text()
    assert found["pictures"].shape == (1, 256, 256, 3)
    assert found["probabilities"].shape == (1, 10)
    shapes = {name: of.shape for name, of in found["features"].items()}
    assert shapes == {"conv1:relu": (1, 55, 55, 32), "fc7:relu": (1, 1024)}
    new_state, _ = found["step"](found["state"], found["batch"])  # compiled with the fast forms
    assert int(new_state.step) == 3


@pytest.mark.slow
def test_the_pages_on_own_code_do_what_they_say(tmp_path, monkeypatch):
    prepare(tmp_path, monkeypatch)
    found = run(ROOT / "docs" / "own_code.md")
    assert found["errors"].examples == 10
    assert found["logits"].shape == (4, 10)
    assert '"confidence"' in (tmp_path / "own_run" / "metrics.jsonl").read_text()

    config = dataclasses.replace(alexnet_jax.PRESETS["demo"], epochs=0.1)
    alexnet_jax.fit(alexnet_jax.DEMO, alexnet_jax.open_dataset("shapes"), config, "my_run")
    found = run(ROOT / "docs" / "networks.md")
    assert found["probabilities"].shape == (1, 10)
    assert found["features"]["fc7:relu"].shape == (1, 1024)
    assert found["rows"].shape == (10, 1024)


def test_the_code_on_speed_compiles(tmp_path, monkeypatch):
    net, apply = (run(ROOT / "docs" / "speed.md")[name] for name in ("net", "apply"))
    images = np.zeros((1, 224, 224, 3), np.float32)
    params = shapes_of_params(net, 224)
    assert apply.lower(params, images).out_info.shape == (1, 1000)


def test_the_flags_that_the_pages_name_exist():
    known: dict[str, set[str]] = {}
    for command in ("main", "prepare", "predict", "features", "weights"):
        options = importlib.import_module(f"alexnet_jax.{command}").Options
        known[command] = {of.name for of in dataclasses.fields(options)} | {"help"}
    known["main"] |= {of.name for of in dataclasses.fields(Config)}
    shown = 0
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        text = page.read_text()
        for command, flags in re.findall(r"python -m alexnet_jax\.(\w+)([^\n`&]*)", text):
            named = set(re.findall(r"--(\w+)", flags))
            assert named <= known[command], (page, command)
            shown += len(named)
        anywhere = set(re.findall(r"`--(\w+)[=`]", text)) - {"check"}  # of a script in experiments/
        assert anywhere <= set.union(*known.values()), page
    assert shown > 30


def test_the_links_of_the_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    for page in pages:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            file = page.parent / target if target else page
            assert file.exists(), (page, target)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, (page, anchor)
