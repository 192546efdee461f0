"""The experiments on photographs: what the variants are, and what is measured of their kernels."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CROP, TINY

from alexnet_jax import DEMO, fit, open_dataset, summary
from alexnet_jax.data import input_pipeline

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import ablations
import specialisation
import training


def test_the_centers_of_a_data_set(prepared):
    whole = open_dataset(str(prepared))
    size = whole.size - 4
    part = training.centers(size, whole)
    found, expected = (input_pipeline.whole_split(of, "validation") for of in (part, whole))
    np.testing.assert_array_equal(found.images, expected.images[:, 2:-2, 2:-2])
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(part.statistics.mean_image, whole.statistics.mean_image[2:-2, 2:-2])


@pytest.mark.slow
def test_each_variant_trains_and_differs_from_the_network_in_one_thing(prepared, monkeypatch, tmp_path):
    ran = {}

    def tiny_fit(layers, dataset, config, workdir):
        ran[name] = layers, dataclasses.asdict(config), dataset.size
        return fit(TINY, dataset, dataclasses.replace(config, batch_size=20), workdir)

    monkeypatch.setattr(ablations, "fit", tiny_fit)
    monkeypatch.setattr(ablations, "CROP", CROP)
    for name in ("demo", "no crops"):
        found = ablations.trained(name, str(prepared), seed=0, epochs=1.0, folder=tmp_path / name)
        assert 0 <= found["top1_error"] <= 1
        assert 0 <= found["training_error"] <= 1
        assert len(found["colorfulness"]) == TINY[0].features
    assert ran["demo"][:2] == ran["no crops"][:2]
    assert (ran["demo"][2], ran["no crops"][2]) == (open_dataset(str(prepared)).size, CROP)
    others = {name: of for name, of in ablations.VARIANTS.items() if name != "demo"}
    for name, of in others.items():
        differs = [of.layers != DEMO, bool(of.config), not of.crops]
        assert sum(differs) == 1, name
        assert summary(of.layers, 224)[-1].output_shape == (10,)


def test_colorfulness_against_known_kernels():
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.normal(size=(11, 11, 1, 1)), 3, axis=2)
    red_against_green = np.array([1.0, -1.0, 0.0])[None, None, :, None] * rng.normal(size=(11, 11, 1, 1))
    red = np.array([1.0, 0.0, 0.0])[None, None, :, None] * rng.normal(size=(11, 11, 1, 1))
    found = specialisation.colorfulness(np.concatenate([grey, red_against_green, red], axis=3))
    np.testing.assert_allclose(found, [0, 1, 2 / 3], atol=1e-12)
    random = specialisation.colorfulness(rng.normal(size=(11, 11, 3, 500)))
    assert np.mean(random) == pytest.approx(2 / 3, abs=0.01)


def test_a_division_by_color_is_found_and_one_by_chance_is_not():
    found = specialisation.halves([0.1] * 16 + [0.9] * 16)
    assert found["means"] == pytest.approx([0.1, 0.9])
    assert found["chance"] < 0.001
    chances = [specialisation.halves(jax.random.uniform(jax.random.key(n), 32))["chance"] for n in range(100)]
    assert 0 <= np.mean(np.array(chances) < 0.05) <= 0.12
