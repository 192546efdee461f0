"""Runs over several devices in the ways of docs/parallel.md, and continued in others."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, small_config
from test_train import final_params, losses, stopping, without_figures  # noqa: F401

from alexnet_jax import train
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.networks.loading import load
from alexnet_jax.options import InputError
from alexnet_jax.paper.table import with_layers
from alexnet_jax.train_setup import Metrics

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CONFIG = small_config(log_every=1, checkpoint_every=2, plateau_patience=2, evaluate_every=3)
WAYS = {
    "one": (1, {}),
    "dense, 2": (2, {"dense_parallel": True}),
    "dense, 4": (4, {"dense_parallel": True}),
    "columns": (2, {"columns_parallel": True}),
    "data, 4": (4, {}),
}


@pytest.fixture(scope="module")
def run(prepared):
    """`fit` with CONFIG, and changes of it, in one of the ways."""
    dataset = open_dataset(str(prepared))

    def fit(workdir, way, *, layers=TINY, metrics=None, **changes):
        number, flags = WAYS[way]
        config = dataclasses.replace(CONFIG, **flags, **changes)
        return train.fit(layers, dataset, config, workdir, devices=jax.devices()[:number], metrics=metrics)

    return fit


@pytest.fixture(scope="module")
def on_one(run, tmp_path_factory):
    """The folder and errors of a run on one device."""

    @functools.cache
    def of(**changes):
        workdir = tmp_path_factory.mktemp("runs") / "run"
        return workdir, run(workdir, "one", **changes)

    return of


def equal(workdir, other, tolerance=1e-5):
    np.testing.assert_allclose(list(losses(workdir).values()), list(losses(other).values()), rtol=tolerance)
    for one, two in zip(*(jax.tree.leaves(final_params(of)) for of in (workdir, other)), strict=True):
        assert np.linalg.norm(one - two) <= tolerance * np.linalg.norm(two)


@pytest.mark.parametrize("way", ["dense, 4", "columns", pytest.param("dense, 2", marks=pytest.mark.slow)])
def test_a_run_is_that_of_one_device(run, on_one, tmp_path, way):
    errors = run(tmp_path, way)
    workdir, of_one = on_one()
    equal(tmp_path, workdir)
    assert errors.top1_error == of_one.top1_error
    assert errors.nll == pytest.approx(of_one.nll, rel=1e-5)


@pytest.mark.parametrize(
    "ways",
    [
        ("dense, 4", "one", "columns"),
        pytest.param(("one", "dense, 2", "data, 4"), marks=pytest.mark.slow),
        pytest.param(("columns", "data, 4", "dense, 2"), marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_does_not_know_how_many_devices_wrote_it(run, on_one, tmp_path, ways):
    for way, stop_at in zip(ways, (3, 4, None), strict=True):
        with stopping(stop_at) if stop_at else contextlib.nullcontext():
            run(tmp_path, way)
    assert list(losses(tmp_path)) == list(range(1, 13))
    equal(tmp_path, on_one()[0], 1e-6)


@pytest.mark.slow
def test_images_kept_on_the_devices_and_frozen_layers(run, on_one, tmp_path):
    taken = {"init_from": str(on_one()[0]), "frozen_layers": ("conv1", "fc3"), "taken_rate_scale": 0.5}
    for way, cache in (("one", "none"), ("dense, 4", "device"), ("columns", "device")):
        run(tmp_path / way, way, cache=cache, **taken)
        equal(tmp_path / way, tmp_path / "one")
    before, after = (load(of).params["fc3"]["kernel"] for of in (on_one()[0], tmp_path / "dense, 4"))
    np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_gradients_in_bfloat16_give_nearly_the_same_losses_and_other_parameters(run, on_one, tmp_path):
    run(tmp_path, "data, 4", exchange_precision="bfloat16")
    one, two = (list(losses(of).values()) for of in (on_one()[0], tmp_path))
    np.testing.assert_allclose(one, two, rtol=0.02)
    assert not np.allclose(one, two, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dense, 4", "columns"])
def test_a_metric_sees_the_whole_of_parameters_gradients_and_batch(run, tmp_path, way):
    shapes = []

    def seen(of):
        shapes.append([of.params["fc3"]["kernel"].shape, of.gradients["fc3"]["bias"].shape, of.logits.shape])
        return sum(jnp.sum(jnp.abs(gradient)) for gradient in jax.tree.leaves(of.gradients))

    run(tmp_path, way, metrics=Metrics({"norm": seen}), epochs=0.5)
    assert shapes[0] == [(72, 16), (16,), (16, 3)]


def test_a_run_of_other_widths_is_refused(run, tmp_path):
    with stopping(3):
        run(tmp_path, "dense, 4")
    wider = with_layers(TINY, fc3={"features": 32})
    with pytest.raises(InputError, match=r"holds a run with other settings \(.*fc3.*features was 16, is 32"):
        run(tmp_path, "dense, 4", layers=wider)
