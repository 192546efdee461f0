"""Poor surroundings: closed streams, places that cannot be written, devices that are not there, absurd numbers, another
program around. A command runs, or ends with exit code 2 and one line.
"""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
import typing
from fractions import Fraction
from pathlib import Path

import jax
import pytest
from conftest import TINY, small_config
from hypothesis import assume, given, settings, strategies as st

from alexnet_jax import command, features, main, open_dataset, predict, prepare, train, weights
from alexnet_jax.config import PRESETS, Config
from alexnet_jax.data import datasets
from alexnet_jax.options import LARGEST, InputError, in_steps
from alexnet_jax.runs.log import RunLog
from alexnet_jax.train_setup import Intervals

HELP = f"{sys.executable} -m alexnet_jax.main --help"
BAD = f"{sys.executable} -m alexnet_jax.main --workdir=run --batch_size=0"
LINE = "error: --batch_size=0: must be at least 1\n"


def shell(text, **environment):
    process = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {text}"], capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    "gone", [">&-", "<&- >&-", "| true", "| head -1 >/dev/null", "2>&- >/dev/null", ">&- 2>&- <&-"]
)
def test_help_whose_reader_has_gone_ends_quietly(gone):
    assert shell(f"{HELP} {gone}") == (0, "", "")


@pytest.mark.parametrize(
    ("gone", "said"),
    [(">&-", LINE), ("2>&-", ""), ("2>&- >&- <&-", ""), ("2> >(true)", ""), ("2>/dev/full", ""), ("| true", LINE)],
)
def test_an_error_whose_reader_has_gone_has_its_exit_code(gone, said):
    assert shell(f"{BAD} {gone}") == (2, "", said)


def test_the_list_of_commands_whose_reader_has_gone_ends_quietly():
    assert shell(f"{sys.executable} -m alexnet_jax | true") == (0, "", "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("predict photo.jpg", "predict: is written python -m alexnet_jax.predict"),
        ("predcit", "predcit: no command; python -m alexnet_jax lists them"),
    ],
)
def test_what_is_no_command_is_one_line(given, said):
    assert shell(f"{sys.executable} -m alexnet_jax {given}") == (2, "", f"error: {said}\n")


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_streams_of_ascii_get_other_characters_escaped(environment):
    code, out, err = shell(HELP, PYTHONCOERCECLOCALE="0", **environment)
    assert (code, err) == (0, "")
    assert r"33 \xd7 33 places" in " ".join(out.split())


SMALL_RUN = """
from conftest import TINY
from alexnet_jax import main, train
fit = train.fit
train.fit = lambda layers, *others: fit(TINY, *others)
main.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("gone", [">&- 2>&-", "2>&1 | head -1", "2> >(true) >/dev/null"])
def test_a_run_whose_reader_has_gone_comes_to_its_end(prepared, tmp_path, gone):
    flags = f"--workdir={tmp_path}/run --dataset={prepared} --crop_size=32 --batch_size=16 --epochs=1 --log_every=1"
    (tmp_path / "small.py").write_text(SMALL_RUN)
    environment = {"PYTHONPATH": str(Path(__file__).parent), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    code, *_, err = shell(f"{sys.executable} {tmp_path}/small.py {flags} --learning_rate_drops= {gone}", **environment)
    assert (code, err) == (0, "")
    assert (tmp_path / "run" / "result.json").exists()


def test_commands_one_after_the_other_in_one_process(call_here, prepared):
    before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM), sys.modules["__main__"].__doc__
    for _ in range(2):
        ended = call_here("prepare", f"--verify={prepared}")
        assert (ended.returncode, ended.stderr) == (0, "")
        ended = call_here("prepare", "--verify=nowhere")
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert call_here("prepare", "--epochs=3") == (2, "", "error: Unknown command line flag 'epochs'\n")
        assert call_here("main", "--workdir=run", "--epochs=0") == (2, "", "error: --epochs=0.0: must be above 0\n")
        for told in call_here("main", "--help"), call_here("features", "--version"):
            assert (told.returncode, told.stderr) == (0, "")
        # Flags of the command before are forgotten.
        assert call_here("main") == (2, "", "error: --workdir=DIR is needed: the folder of the run\n")
    assert before == (sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM), sys.modules["__main__"].__doc__)


def test_a_command_in_a_thread(call_here, prepared):
    found = []
    thread = threading.Thread(target=lambda: found.append(call_here("prepare", f"--verify={prepared}")))
    thread.start()
    thread.join()
    assert [(of.returncode, of.stderr) for of in found] == [(0, "")]


HANGING = """
import sys, threading
from alexnet_jax import command
command.PATIENCE = 1

def main():
    threading.Thread(target=threading.Event().wait).start()
    raise command.InputError("bad")

sys.argv = sys.argv[:1]
try:
    command.run(main, "")
except SystemExit as end:
    print(end.code)
"""


def test_a_program_may_go_on_after_an_error_and_does_not_wait_for_what_it_left():
    process = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=30)
    assert (process.returncode, process.stdout, process.stderr) == (2, "2\n", "error: bad\n")


@pytest.mark.parametrize("platform", ["nonsense", pytest.param("rocm", marks=pytest.mark.slow)])
def test_a_device_that_is_not_there_is_one_line(prepared, tmp_path, platform):
    flags = f"--workdir={tmp_path}/run --dataset={prepared} --crop_size=32"
    code, out, err = shell(f"{sys.executable} -m alexnet_jax.main {flags}", JAX_PLATFORMS=platform)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: JAX_PLATFORMS={platform}: there is no such device here")
    assert not (tmp_path / "run").exists()


def run_that_raises(error):
    def fail():
        raise error

    command.run(fail, "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("Could not determine home directory."), "HOME is not set, and a path begins with ~: set it, or "),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 5 GB\nat"),
            "the device's memory is full, a smaller --batch_size takes less",
        ),
        (ValueError("Disable jit is not supported in the AOT path"), "JAX_DISABLE_JIT: cannot be set here"),
        (MemoryError(), "memory: there is not enough (of this computer)"),
        (OSError(28, "No space left on device", "a\x1bb"), r"a\u001bb: No space left on device"),
        (InputError("two\nlines \x1b[31m \udcff"), r"two\nlines \u001b[31m \udcff"),
    ],
)
def test_errors_that_are_no_fault_of_the_program_are_one_line(monkeypatch, capsys, nothing_left, error, line):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        run_that_raises(error)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}")
    assert said.count("\n") == 1


def test_an_error_of_the_program_is_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(RuntimeError, match="a bug"):
        run_that_raises(RuntimeError("a bug"))


def test_a_setting_of_matplotlib_that_is_none_is_one_line(tmp_path):
    command = [sys.executable, "-m", "alexnet_jax.predict", f"--workdir={tmp_path}", str(tmp_path / "a.jpg")]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "none"})
    assert process.returncode == 2
    assert process.stderr.startswith("error: matplotlib: cannot be used with its settings (Key backend: 'none' is not ")
    assert process.stderr.count("\n") == 1


def test_no_place_for_the_builtin_data_set_names_the_variable(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"^XDG_CACHE_HOME=.*/file: set it to a folder that can be written"):
        datasets.builtin_shapes(4, 4)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody here").expanduser())
    with pytest.raises(InputError, match=r"^XDG_CACHE_HOME=DIR is needed"):
        datasets.builtin_shapes(4, 4)


def test_a_compilation_cache_that_cannot_be_written_is_named(call_here, monkeypatch, tmp_path, prepared):
    (tmp_path / "file").touch()
    folder, flags = tmp_path / "file" / "cache", (f"--workdir={tmp_path}", f"--dataset={prepared}", "--crop_size=32")
    line = f"={folder}: cannot be written; choose another folder, or do without\n"
    assert call_here("main", *flags, f"--compilation_cache={folder}") == (2, "", f"error: --compilation_cache{line}")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    assert call_here("main", *flags) == (2, "", f"error: JAX_COMPILATION_CACHE_DIR{line}")


OPTIONS = {
    main.Options: {"workdir": "run"},
    Config: {},
    prepare.Options: {"source": ("source",), "output": "set"},
    predict.Options: {"workdir": "run"},
    features.Options: {"workdir": "run", "output": "rows.npy"},
    weights.Options: {"source": "run", "output": "net.safetensors"},
}
TEXTS = [(of, field.name) for of in OPTIONS for field in dataclasses.fields(of) if isinstance(field.default, str)]


@pytest.mark.parametrize("text", ["gs://bucket/of.npy", "a\0b", "a\ud800b"])
@pytest.mark.parametrize(("options", "name"), TEXTS)
def test_what_can_be_no_place_is_refused_wherever_it_is_given(options, name, text):
    with pytest.raises(InputError, match=f"--{name}={text}: must be "):
        options(**{**OPTIONS[options], name: text})


@pytest.mark.parametrize(
    ("workdir", "problem"),
    [
        ("gs://bucket/run", r"a folder .* mounted as one \(gcsfuse bucket FOLDER\), see docs/clouds.md$"),
        ("s3://bucket/run", r"a folder .* mounted as one \(rclone mount REMOTE:bucket FOLDER\), see docs/clouds.md$"),
        ("a\0b", "without the character 0"), ("a\udcffb", "text in UTF-8$"),
    ],
)  # fmt: skip
def test_what_can_be_no_workdir_of_fit_is_refused(prepared, monkeypatch, tmp_path, workdir, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"--workdir={workdir}: must be {problem}"):
        train.fit(TINY, open_dataset(prepared), small_config(), workdir)
    assert not os.listdir(tmp_path)


TYPES = [(of, name, kind) for of in OPTIONS for name, kind in typing.get_type_hints(of).items()]
NUMBERS = [(of, name, kind) for of, name, kind in TYPES if kind in (int, float, tuple[float, ...])]
ABSURD = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**31, 2**63, 1e300, 1e39, 5e-324, -0.0, math.nan, math.inf, -math.inf]),
)


def built(options, name, value):
    try:
        return options(**{**OPTIONS[options], name: value})
    except InputError as error:
        return error


@settings(max_examples=20 * settings().max_examples)
@given(st.sampled_from(NUMBERS), ABSURD)
def test_absurd_numbers_are_refused_by_name_or_within_what_devices_count_with(where, number):
    options, name, kind = where
    assume(isinstance(number, int) == (kind is int))  # as flags are parsed
    value = number if kind in (int, float) else (number,)
    found = built(options, name, value)
    if isinstance(found, InputError):
        assert f"--{name}" in str(found)
        return
    (taken,) = value if isinstance(value, tuple) else (getattr(found, name),)
    assert math.isfinite(taken)
    assert abs(taken) <= 3e38
    assert isinstance(taken, float) or abs(taken) < 2**63


@pytest.mark.parametrize(
    "text",
    [
        *("1e100000000epochs", "1e-100000000epochs", "1e9999", "9" * 5000, "1/0epochs", "nanepochs", "infepochs"),
        *("-1epoch", "1e400epoch", 10**5000, 0, -3),
    ],
    ids=range(12),
)
def test_absurd_intervals_are_refused_at_once(text):
    with pytest.raises(ValueError, match="must be "):
        in_steps(text, Fraction(3))
    with pytest.raises(InputError, match=r"^--log_every="):
        Config(log_every=text)


@pytest.mark.parametrize("text", ["1e3epochs", "1e-3epochs", "1/3epoch", "9" * 300])
def test_unusual_intervals_are_taken(text):
    due = Intervals.of(Config(log_every=text, epochs=4.0), Fraction(3)).due(12)
    assert due.log


class Started(Exception):
    pass


def start(dataset, workdir, monkeypatch, **changes):
    """Two steps of a run."""
    monkeypatch.setattr(RunLog, "advance", lambda log: seen.append(1) if not seen else stop())
    seen = []

    def stop():
        raise Started

    with pytest.raises(Started):
        train.fit(TINY, open_dataset(dataset), small_config(**changes), workdir, devices=jax.devices()[:1])


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 1e8, "learning_rate_drops": (float(LARGEST),), "color_off_from": float(LARGEST), "seed": 2**63 - 1,
         "conv1_frozen_from": float(LARGEST), "crop_chunk": LARGEST, "keep_checkpoints": LARGEST,
         "stall_timeout": float(LARGEST), "log_every": "9" * 300, "evaluate_every": LARGEST},
        pytest.param({"learning_rate": 3e38, "weight_decay": 3e38, "color_scale": 3e38, "bias_learning_rate": 3e38,
                      "plateau_patience": LARGEST, "cache": "device", "cache_budget": float(LARGEST)},
                     marks=pytest.mark.slow),
        pytest.param({"learning_rate": 5e-324, "weight_decay": 5e-324, "color_scale": 5e-324, "stall_timeout": 1e9,
                      "learning_rate_drops": (5e-324,), "bias_learning_rate": 5e-324}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_largest_and_smallest_numbers_run(quickly_compiled, prepared, tmp_path, monkeypatch, changes):
    start(prepared, tmp_path, monkeypatch, **changes)


def test_more_steps_than_can_be_counted_are_refused(prepared, tmp_path):
    with pytest.raises(InputError, match=r"--epochs=2000000000\.0: are more than 2147483647 steps"):
        train.fit(TINY, open_dataset(prepared), small_config(epochs=2e9), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_preset_is_within_its_bounds():
    for preset in PRESETS.values():
        dataclasses.replace(preset)
