"""Several hosts: processes on this machine, with two CPU devices each, that exchange over gloo."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import TINY, small_config, without_compilation_cache

from alexnet_jax import open_dataset, train
from alexnet_jax.device import hosts, onednn
from alexnet_jax.networks.loading import load
from alexnet_jax.options import InputError
from alexnet_jax.runs.workdir import held

PROGRAM = """
from alexnet_jax import Conv, Dense, dropout, lrn, main, pool, relu, train
SMALL = (
    Conv(8, 5, stride=2, padding=(0, 1), std=0.02, then=(relu, lrn, pool)),
    Conv(8, 3, padding=1, groups=2, std=0.1, then=(relu, pool)),
    Dense(16, std=0.1, then=(relu, dropout)),
    Dense(3, std=0.1),
)
fit = train.fit
train.fit = lambda layers, *others: fit(SMALL, *others)
main.main()
"""
FLAGS = ["--crop_size=32", "--batch_size=16", "--log_every=1", "--learning_rate=0.002"]
# Gloo's words: it writes from several threads at once, so that its lines can lie in one another.
GLOO = {"Gloo", "Rank", "is", "connected", "to", "peer", "ranks", "Expected", "number", "of"}
LONG = ["--epochs=3000", "--checkpoint_every=5", "--evaluate_every=1000"]


def start(workdir, prepared, *flags, processes=1, last=(), come=None, devices=2, **variables):
    """The processes of a run; `last`: flags that only the last of them has. come: those that do, by default all."""
    devices_of_each = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment = {**os.environ, **devices_of_each, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", **variables}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, f"--workdir={workdir}", f"--dataset={prepared}", *FLAGS, *flags]
    hosts = [
        [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={number}"]
        for number in range(processes)
    ]
    hosts[-1] += last
    return [
        subprocess.Popen(
            [*command, *(host if processes > 1 else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        for number, host in enumerate(hosts) if come is None or number in come
    ]  # fmt: skip


def ends(running, timeout=200):
    """(exit code, stdout, stderr) of each."""
    try:
        found = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(running, found, strict=True)]


def lines(workdir, split="train"):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def wait_for_checkpoint(workdir, step, running):
    deadline = time.time() + 100
    while not any(int(name) >= step for name in names(workdir) if name.isdigit()):
        assert time.time() < deadline
        assert all(process.poll() is None for process in running), ends(running)
        time.sleep(0.02)


def names(workdir):
    folder = workdir / "checkpoints"
    return os.listdir(folder) if folder.exists() else []


@pytest.mark.parametrize("convolution", ["XLA", pytest.param("oneDNN", marks=pytest.mark.slow)])
def test_two_processes_give_the_loss_curve_of_one(quickly_compiled, undrawn, tmp_path, prepared, convolution):
    if convolution == "oneDNN":
        with without_compilation_cache():
            if reason := onednn.missing():
                pytest.skip(reason)
    cache = {"JAX_COMPILATION_CACHE_DIR": ""} if convolution == "oneDNN" else {}
    found = ends(start(tmp_path / "two", prepared, "--epochs=4", processes=2, **cache))
    assert [code for code, _, _ in found] == [0, 0], found
    assert ("without oneDNN" in found[0][1]) == (convolution == "XLA")
    assert "top-1 error" in found[0][1]
    assert set(re.findall("[A-Za-z]+", found[1][1])) <= GLOO, found[1][1]
    config = small_config(log_every=1, learning_rate_drops=(3.0,))  # what FLAGS and the preset say
    train.fit(TINY, open_dataset(prepared), config, tmp_path / "one", devices=jax.devices()[:4])
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in two] == list(range(1, 13))
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-4)
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert two["device"] == one["device"] == "4 × cpu"
    assert (two["examples"], two["top1_error"]) == (23, one["top1_error"])


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "devices"), [("--dense_parallel", 2), ("--columns_parallel", 1)])
def test_two_processes_that_hold_columns_give_the_parameters_of_one(undrawn, tmp_path, prepared, flag, devices):
    flags = ["--epochs=4", "--plateau_patience=1", "--learning_rate_drops=", "--evaluate_every=3", flag]
    found = ends(start(tmp_path / "two", prepared, *flags, processes=2, devices=devices))
    assert [code for code, _, _ in found] == [0, 0], found
    config = small_config(log_every=1, plateau_patience=1, evaluate_every=3)
    train.fit(TINY, open_dataset(prepared), config, tmp_path / "one", devices=jax.devices()[:1])
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-4)
    assert [line["learning_rate"] for line in two] == [line["learning_rate"] for line in one]
    assert two[-1]["learning_rate"] < 0.002
    params = (jax.tree.leaves(load(tmp_path / name).params) for name in ("one", "two"))
    for of_one, of_two in zip(*params, strict=True):
        assert np.linalg.norm(of_one - of_two) <= 1e-4 * np.linalg.norm(of_one)


def the_line(found):
    """What the others say where one is missing: they end, each with this line alone."""
    for code, _, err in found:
        assert code == 2, found
        *bar, line = err.splitlines()
        assert re.fullmatch(
            r"error: --coordinator=.*: another process has not come, .*--host_timeout=.* seconds\)", line
        )
        assert all(text.startswith("step ") or not text.strip() for text in bar), err


@pytest.mark.parametrize(
    ("come", "processes"),
    [([1], 2), pytest.param([0], 2, marks=pytest.mark.slow), pytest.param([0, 2], 3, marks=pytest.mark.slow)],
)
def test_where_one_never_comes_the_others_end(tmp_path, prepared, come, processes):
    began = time.time()
    running = start(tmp_path, prepared, "--host_timeout=3", processes=processes, come=come)
    the_line(ends(running, timeout=60))
    assert time.time() - began < 40  # most of it to import
    assert not os.listdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "number", "processes"),
    [
        (signal.SIGKILL, 0, 3),
        (signal.SIGKILL, 2, 3),
        (signal.SIGSTOP, 0, 2),
        (signal.SIGSTOP, 1, 2),
        (signal.SIGSTOP, 1, 3),
    ],
)
def test_where_one_ends_or_stands_still_in_the_middle_the_others_end(tmp_path, prepared, sent, number, processes):
    flags = [*LONG, "--host_timeout=8", f"--batch_size={12 if processes == 3 else 16}"]
    running = start(tmp_path, prepared, *flags, processes=processes)
    wait_for_checkpoint(tmp_path, 10, running)
    gone = running.pop(number)
    gone.send_signal(sent)
    began = time.time()
    try:
        the_line(ends(running, timeout=60))
        assert time.time() - began < 12  # seconds of grace for a busy machine
    finally:
        gone.kill()
        gone.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("seconds", [4, 6])
def test_where_one_dies_while_it_starts_the_other_ends(tmp_path, prepared, number, seconds):
    running = start(tmp_path, prepared, *LONG, "--host_timeout=5", processes=2)
    time.sleep(seconds)
    gone = running.pop(number)
    gone.kill()
    gone.communicate()
    the_line(ends(running, timeout=60))


@pytest.mark.slow
def test_another_data_set_on_one_host_is_named(tmp_path, prepared, photo_folder):
    other = tmp_path / "other"
    command = [
        sys.executable,
        "-m",
        "alexnet_jax.prepare",
        f"--source={photo_folder}",
        f"--output={other}",
        "--size=40",
    ]
    subprocess.run(command, check=True, capture_output=True)
    flags = ["--epochs=4", "--host_timeout=5", "--batch_size=4"]
    found = ends(start(tmp_path / "run", prepared, *flags, processes=2, last=[f"--dataset={other}"]), timeout=100)
    assert found[1][0] == 2
    assert re.search(
        rf"^error: .*dataset was {re.escape(str(prepared))}, is {re.escape(str(other))}", found[1][2], re.M
    )
    assert "Traceback" not in found[1][2]
    the_line(found[:1])


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_process_dies_the_other_ends_and_one_process_continues(tmp_path, prepared, killed):
    running = start(tmp_path, prepared, *LONG, processes=2)
    wait_for_checkpoint(tmp_path, 10, running)
    gone = running.pop(killed)
    gone.kill()
    gone.communicate()
    began = time.time()
    the_line(ends(running, timeout=60))
    assert time.time() - began < 60

    (alone,) = start(tmp_path, prepared, *LONG)
    time.sleep(1)
    wait_for_checkpoint(tmp_path, max(int(name) for name in names(tmp_path) if name.isdigit()) + 5, [alone])
    alone.send_signal(signal.SIGTERM)
    ((code, out, _),) = ends([alone])
    assert code == 130
    assert "continuing from the checkpoint of step" in out
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_once_and_all_go_on_from_the_one_before(tmp_path, prepared):
    flags = ["--epochs=4", "--checkpoint_every=5"]
    ends(start(tmp_path, prepared, *flags, processes=2))
    newest = max(int(name) for name in names(tmp_path))
    files = [path for path in (tmp_path / "checkpoints" / str(newest)).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))
    found = ends(start(tmp_path, prepared, *flags, processes=2))
    assert [code for code, _, _ in found] == [0, 0], found
    assert "is damaged (" in found[0][2]
    assert f"{newest}.damaged" in names(tmp_path)
    assert str(newest) in names(tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_where_one_process_is_told_to_stop_all_save_and_stop(tmp_path, prepared, told):
    running = start(tmp_path, prepared, *LONG, processes=2)
    wait_for_checkpoint(tmp_path, 10, running)
    running[told].send_signal(signal.SIGTERM)
    found = ends(running, timeout=60)
    assert [code for code, _, _ in found] == [130, 130], found
    last = max(int(name) for name in names(tmp_path) if name.isdigit())
    assert found[0][1].splitlines()[-1] == f"stopped; the same command continues from step {last} of 9375"


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (RuntimeError("UNAVAILABLE: failed to connect to all addresses"), "another process has gone"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "it cannot be"),  # "temporarily unavailable"
        (RuntimeError("of something else"), "it cannot be"),
        (None, "it cannot be"),
    ],
)
def test_whose_end_an_error_is_of(monkeypatch, cause, told):
    monkeypatch.setattr(hosts, "started", "another process has gone")
    with pytest.raises(InputError, match=f"^{told}$"), hosts.needed():
        raise InputError("it cannot be") from cause


@pytest.mark.slow
def test_where_another_process_trains_all_hosts_are_refused(tmp_path, prepared):
    with held(tmp_path):
        found = ends(start(tmp_path, prepared, "--host_timeout=20", processes=2), timeout=100)
        assert [code for code, _, _ in found] == [2, 2], found
        assert found[0][2] == f"error: --workdir={tmp_path}: another process trains in it\n"
        assert found[1][2] == "error: another process of this run has ended; its own line says why\n"
        assert not os.listdir(tmp_path)
    assert [code for code, _, _ in ends(start(tmp_path, prepared, "--epochs=1", processes=2))] == [0, 0]


@pytest.mark.slow
def test_a_run_of_several_hosts_holds_its_folder(tmp_path, prepared):
    running = start(tmp_path, prepared, *LONG, processes=2)
    wait_for_checkpoint(tmp_path, 5, running)
    ((code, _, err),) = ends(start(tmp_path, prepared, *LONG), timeout=60)
    assert (code, err) == (2, f"error: --workdir={tmp_path}: another process trains in it\n")
    assert [process.poll() for process in running] == [None, None]
    running[0].send_signal(signal.SIGTERM)
    assert [code for code, _, _ in ends(running, timeout=60)] == [130, 130]


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(tmp_path, prepared):
    running = start(tmp_path, prepared, "--epochs=4", processes=2, last=["--seed=3"])
    found = ends(running, timeout=100)
    assert found[1][0] == 2
    assert "seed was 0, is 3" in found[1][2]
    the_line(found[:1])


@pytest.mark.slow
def test_where_one_process_alone_holds_columns_all_are_refused(tmp_path, prepared):
    found = ends(start(tmp_path, prepared, "--epochs=4", processes=2, last=["--dense_parallel"]), timeout=100)
    assert [code for code, _, _ in found] == [2, 2], found
    assert all("error: the processes differ in their flags" in err for _, _, err in found)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=localhost:1234"], "--coordinator=localhost:1234: needs --num_processes and --process_id"),
        (["--coordinator=localhost:1234", "--num_processes=2", "--process_id=2"], "is from 0 to one less"),
        (["--num_processes=2"], "--num_processes and --process_id need --coordinator=HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(tmp_path, flags, message):
    command = [sys.executable, "-m", "alexnet_jax.main", f"--workdir={tmp_path / 'run'}", *flags]
    process = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert process.returncode == 2
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
