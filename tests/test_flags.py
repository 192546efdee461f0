"""Any flags at all: an error of one line, or a run; never a traceback, and never a run with what is impossible."""

import dataclasses
import math

import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import COMPILED, TINY
from hypothesis import HealthCheck, given, settings, strategies as st

from alexnet_jax import command, main, train
from alexnet_jax.config import PRESETS, Config
from alexnet_jax.device import hosts
from alexnet_jax.main import Options
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import CAFFE, DEMO, ORIGINAL
from alexnet_jax.paper.table import with_classes

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


def called(*arguments):
    """The command, in this process."""
    with flagsaver.flagsaver():
        try:
            flags.FLAGS(["main", *arguments])
            main._run()
        finally:
            jax.config.update("jax_debug_nans", False)
            jax.config.update("jax_compilation_cache_dir", COMPILED)


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
    monkeypatch.setattr(hosts, "start", not_here)


@settings(max_examples=20 * settings().max_examples, suppress_health_check=list(HealthCheck))
@given(given_flags=st.dictionaries(st.sampled_from(NAMES), TEXTS, min_size=1, max_size=3))
def test_random_command_lines(prepared, at_the_start, tmp_path, given_flags):
    workdir = tmp_path / str(len(list(tmp_path.iterdir())))
    base = [f"--workdir={workdir}", f"--dataset={prepared}", "--crop_size=32", "--batch_size=16"]
    try:
        called(*base, *(f"--{name}={text}" for name, text in given_flags.items()))
    except Started as started:
        (run,) = started.args
    except (flags.Error, InputError):
        assert not workdir.exists()
        return
    config = run.config
    numbers = [value for value in dataclasses.astuple(config) if isinstance(value, float | int)]
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert config.batch_size % len(jax.devices()) == 0 < config.batch_size <= 50
    assert 0 < config.crop_size <= 40
    assert config.learning_rate > 0 < config.epochs
    assert config.momentum < 1
    assert 3 <= run.net.layers[-1].features < 10**6


@pytest.mark.parametrize(
    ("arguments", "layers", "preset", "changes"),
    [
        ([], with_classes(DEMO, 3), "demo", {}),
        (["--preset=original", "--num_classes=7", "--seed=5"], with_classes(ORIGINAL, 7), "original", {"seed": 5}),
        (["--architecture=caffe", "--preset=paper"], with_classes(CAFFE, 3), "paper", {"crop_size": 227}),
        (["--architecture=caffe", "--crop_size=200"], with_classes(CAFFE, 3), "demo", {"crop_size": 200}),
    ],
)
def test_names_become_what_is_trained(prepared, defined, monkeypatch, arguments, layers, preset, changes):
    started = []
    monkeypatch.setattr(train, "fit", lambda *given: started.append(given))
    called("--workdir=run", f"--dataset={prepared}", *arguments)
    ((found, dataset, config, workdir),) = started
    assert found == layers
    assert config == dataclasses.replace(PRESETS[preset], **changes)
    assert (dataset.name, workdir) == (str(prepared), "run")


def test_fewer_outputs_than_classes_are_refused(prepared, defined):
    with pytest.raises(InputError, match=r"--num_classes=2: .* has 3 classes"):
        called("--workdir=run", f"--dataset={prepared}", "--num_classes=2")
