"""The experiments on single claims, and the table of all of them."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CROP, TINY

from alexnet_jax import Config, fit, load, open_dataset, summary

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import claims_tables
import kernels_and_neighbors
import small_claims


def test_each_variant_differs_from_the_small_network_and_has_its_shapes():
    whole = [row.name for row in summary(small_claims.SMALL, 28)]
    assert whole == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    for name, variant in small_claims.VARIANTS.items():
        changed = (variant.layers != small_claims.SMALL) + bool(variant.config)
        assert changed == (name != "small"), name
        rows = summary(variant.layers, 28)
        assert rows[-1].output_shape == (10,)
        assert len(rows) == 8 - name.startswith("without conv")
        pools = [step for layer in variant.layers for step in layer.then if "window" in dict(step.keywords)]
        assert len(pools) == 3, name  # a removed layer's pooling stays


def test_averages_of_dropout_networks_against_the_exact_ones(monkeypatch):
    """One hidden unit a layer: four masks, whose geometric mean can be written down."""

    class OneUnit:
        class config:
            crop_size = 2

        class state:
            params = None

    rng = np.random.default_rng(0)
    params = {name: {"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[1])}
              for name, shape in {"fc6": (4, 1), "fc7": (1, 1), "fc8": (1, 3)}.items()}  # fmt: skip
    maps, labels = rng.normal(size=(50, 1, 1, 4)), rng.integers(0, 3, 50)
    run = OneUnit()
    run.state.params = params
    run.dataset = type("Data", (), {"splits": {"validation": range(50)}, "statistics": type("S", (), {
        "mean_image": np.zeros((2, 2, 3))})})()  # fmt: skip
    batch = type("Batch", (), {"images": np.zeros((50, 2, 2, 3), np.uint8), "labels": labels})()
    monkeypatch.setattr(small_claims.input_pipeline, "batch_of", lambda *_: batch)
    monkeypatch.setattr(small_claims, "outputs", lambda *_: {"conv5:pool": maps})
    found = small_claims.averages(run, TINY, images=50, networks=4000)

    def answer(first, second):
        x = first * np.maximum(maps.reshape(50, 4) @ params["fc6"]["kernel"] + params["fc6"]["bias"], 0)
        x = second * np.maximum(x @ params["fc7"]["kernel"] + params["fc7"]["bias"], 0)
        logits = x @ params["fc8"]["kernel"] + params["fc8"]["bias"]
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    exact = np.prod([answer(a, b) for a in (0, 1) for b in (0, 1)], axis=0) ** 0.25
    exact /= exact.sum(1, keepdims=True)
    halved = answer(0.5, 0.5)
    assert found["halved_error"] == pytest.approx(np.mean(halved.argmax(1) != labels))
    expected = np.mean((exact * np.log(exact / halved)).sum(1))
    assert found["geometric_divergence"] == pytest.approx(expected, rel=0.15, abs=2e-3)


def test_selectivity_of_known_kernels():
    rows, columns = np.mgrid[:11, :11] - 5.0
    hill = np.exp(-(rows**2 + columns**2) / 12)
    kernels = np.stack(
        [hill * np.cos(0.4 * np.pi * columns), hill * np.cos(0.4 * np.pi * (rows + columns) / 2**0.5), hill]
    )
    kernels = np.repeat(kernels.transpose(1, 2, 0)[:, :, None], 3, axis=2)
    found = kernels_and_neighbors.selectivity(kernels)
    assert found["orientation"][:2].min() > 0.7  # whichever way it lies
    assert found["orientation"][2] < 0.01
    random = kernels_and_neighbors.selectivity(np.random.default_rng(0).normal(size=(11, 11, 3, 300)))
    assert random["orientation"].mean() < 0.3
    assert random["frequency"].mean() < found["frequency"].min()


@pytest.mark.slow
def test_neighbors_of_a_tiny_network(prepared, tmp_path):
    data = open_dataset(str(prepared))
    fit(TINY, data, Config(crop_size=CROP, batch_size=10, epochs=2.0, learning_rate=0.002), tmp_path,
        devices=jax.devices()[:1])  # fmt: skip
    found = kernels_and_neighbors.neighbors(load(tmp_path), data)
    assert found["same class, by pixels"][0] > 0.9  # the classes are colours
    assert all(low <= value <= high for value, low, high in found.values())


def test_every_section_and_every_number_of_the_paper_has_its_line():
    text = " ".join(f"{claim.section} {claim.quote}" for claim in claims_tables.CLAIMS)
    for section in ("§1", "§3.1", "§3.2", "§3.3", "§3.4", "§3.5", "§4.1", "§4.2", "§5", "§6", "§6.1", "§7"):
        assert section in text
    for number in ("37.5", "39.0 / 18.3", "45.7 / 25.7", "47.1 / 28.2", "40.7 / 18.2", "38.1 / 16.4", "39.0 / 16.6",
                   "36.7 / 15.4", "15.3", "26.2", "67.4 / 40.9", "78.1 / 60.9"):  # fmt: skip
        assert number in text


def test_a_claim_is_tested_or_says_why_not():
    for claim in claims_tables.CLAIMS:
        assert claim.kind in (claims_tables.TESTED, claims_tables.SMALL, claims_tables.UNTESTED)
        assert claim.result
        if claim.kind != claims_tables.UNTESTED:
            assert claim.where
