"""Strict settings for every test: what would show only on a big machine shows here."""

import contextlib
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# Before JAX starts: four devices out of one CPU.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests, and the processes that they start, run the same programs: each is compiled once a session. Pytest-xdist's
# processes find the folder of the first one in their environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

from jaxtyping import install_import_hook

install_import_hook("alexnet_jax", "typecheck.check")  # shapes and types of every call are checked

import jax
import pytest
from drawn import NAMES, SIZE, items, picture
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

from alexnet_jax import command, figures
from alexnet_jax.config import Config
from alexnet_jax.data import datasets
from alexnet_jax.paper.layers import dropout, lrn, pool, relu
from alexnet_jax.paper.table import Conv, Dense

settings.register_profile("default", max_examples=10, deadline=None, derandomize=True)
settings.register_profile("with the slow tests", settings.get_profile("default"), max_examples=30)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"  # photographs and weights beside the checkout, where there are any
CROP = 32

# The paper's table in small: an image of 32×32 goes through it.
TINY = (
    Conv(8, 5, stride=2, padding=(0, 1), std=0.02, then=(relu, lrn, pool)),
    Conv(8, 3, padding=1, groups=2, std=0.1, then=(relu, pool)),
    Dense(16, std=0.1, then=(relu, dropout)),
    Dense(3, std=0.1),
)


def pytest_configure(config):
    settings.load_profile("default" if config.option.markexpr == "not slow" else "with the slow tests")


@contextlib.contextmanager
def without_compilation_cache():
    """As users run by default, and with what only works so: oneDNN's convolution."""
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", COMPILED)
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def quickly_compiled():
    """In a third of the time, with hardly any optimisation: where a test is of what is done with programs.

    In processes that the tests start too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def undrawn():
    """Runs without their pictures, which take longer than small networks; test_main looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_curves", "save_kernels", "save_predictions"):
            patch.setattr(figures, name, lambda *_, **others: None)
        yield


class Ended(NamedTuple):
    """How a command has ended, as `subprocess` tells it."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def nothing_left(monkeypatch):
    """No thread that would end this process."""
    monkeypatch.setattr(command, "PATIENCE", 10**6)


@pytest.fixture
def call_here(monkeypatch, capsys, nothing_left):
    """A command, called in this process: one of its own would import for seconds first."""

    def call_here(name, *flags):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
        code = 0
        try:
            importlib.import_module(f"alexnet_jax.{name}").main()
        except SystemExit as end:
            code = end.code or 0
        return Ended(code, *capsys.readouterr())

    return call_here


def small_config(**changes) -> Config:
    """For TINY on `prepared`, whose epoch then has 3.125 steps."""
    return Config(**{"crop_size": CROP, "batch_size": 16, "epochs": 4.0, "learning_rate": 0.002, **changes})


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A prepared data set of three classes: 50 training and 23 validation images of 40×40."""

    path = tmp_path_factory.mktemp("prepared") / "colors"
    datasets.write(path, NAMES, {"train": items(0, 50), "validation": items(1, 23)}, size=SIZE)
    return path


@pytest.fixture
def photo_folder(tmp_path):
    """A folder of class folders, as a user has it: two classes of ten 30×50 JPEGs."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(10):
            image = Image.fromarray(picture(label, index, size=50)[:30])
            image.save(tmp_path / "photos" / name / f"{index}.jpg")
    return tmp_path / "photos"


def interrupted_after(images):
    """For `progress` of a writing: stops it as Ctrl-C does, once so many images are done."""
    done = []

    def progress(more):
        done.append(more)
        if sum(done) == images:
            raise KeyboardInterrupt

    return progress
