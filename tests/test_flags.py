"""Any flags at all: an error of one line, or a run; never a traceback, and never a run with what is impossible."""

import dataclasses
import math

import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet_jax import command, main, train
from alexnet_jax.config import PRESETS, Config, InputError
from alexnet_jax.device import parallel
from alexnet_jax.main import Options

NUMBERS = st.one_of(
    st.integers(-3, 200).map(str),
    st.floats().map(str),
    st.sampled_from(["", "0", "-1", "1e400", "nan", "inf", "-inf", "0x10", "1_000", "½", "1/0", "10**9", "9" * 20]),
)  # fmt: skip
TEXTS = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, max_size=3).map(",".join),
    st.sampled_from(["true", "false", "device", "none", "paper", "original", "one_gpu", "caffe", "demo", "shapes"]),
    st.sampled_from(["1epoch", "0.5epochs", "epochs", "1/3epoch", "-1epoch", "1/0epoch", "/", "..", "\0", "a b", "é"]),
    st.text(max_size=6),
)  # fmt: skip
NAMES = sorted({field for options in (Options, Config) for field in options.__dataclass_fields__} - {"workdir"})


class Started(Exception):
    pass


@pytest.fixture(scope="module")
def defined():
    command.define_flags(Options)
    command.define_flags(Config, PRESETS)


@pytest.fixture
def at_the_start(defined, monkeypatch):
    """What a run of a small network would be started with, instead of running it."""
    fit = train.fit

    def start(run):
        raise Started(run)

    def small(layers, *others):
        return fit((*TINY[:-1], layers[-1]), *others)

    def not_here(*_):
        raise InputError("no other processes here")

    monkeypatch.setattr(train, "_loop", start)
    monkeypatch.setattr(train, "fit", small)
    monkeypatch.setattr(parallel, "start_hosts", not_here)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(given_flags=st.dictionaries(st.sampled_from(NAMES), TEXTS, min_size=1, max_size=3))
def test_a_thousand_random_command_lines(prepared, at_the_start, tmp_path, given_flags):
    workdir = tmp_path / str(len(list(tmp_path.iterdir())))
    base = [f"--workdir={workdir}", f"--dataset={prepared}", "--crop_size=32", "--batch_size=16"]
    with flagsaver.flagsaver():
        try:
            flags.FLAGS(["main", *base, *(f"--{name}={text}" for name, text in given_flags.items())])
            main._run()
        except Started as started:
            (run,) = started.args
        except (flags.Error, InputError):
            assert not workdir.exists()
            return
        finally:
            jax.config.update("jax_debug_nans", False)
    config = run.config
    numbers = [value for value in dataclasses.astuple(config) if isinstance(value, float | int)]
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert config.batch_size % len(jax.devices()) == 0 < config.batch_size <= 50
    assert 0 < config.crop_size <= 40
    assert config.learning_rate > 0 < config.epochs
    assert config.momentum < 1
    assert 3 <= run.net.layers[-1].features < 10**6
