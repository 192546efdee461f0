"""The command, as a user calls it: processes of their own."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from alexnet_jax.paper.architectures import ARCHITECTURES

COMMAND = [sys.executable, "-m", "alexnet_jax.main"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as users have
# A short run of the real demo network on tiny batches.
QUICK = ["--batch_size=2", "--epochs=0.4", "--log_every=1", "--checkpoint_every=2", "--crop_size=67"]


def call(*arguments, **environment):
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT | environment)


def test_help_lists_every_field_with_its_default_in_each_preset():
    process = call("--help")
    assert process.returncode == 0
    out = " ".join(process.stdout.split())
    assert "--batch_size: images a step, over all devices together (§5) (default: 32; paper: 128; original: 128)" in out
    assert "from every patch, not each pixel's own mean (default: False; original: True)" in out
    assert all(name in out.partition("--architecture: ")[2].partition("--")[0] for name in ARCHITECTURES)
    assert "--momentum: momentum (§5) (default: 0.9)" in out
    assert "python -m alexnet_jax.main --workdir=DIR" in out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--preset=nonsense", "--preset=nonsense: must be one of demo, paper, original"),
        ("--dataset=nowhere", "--dataset=nowhere: neither a folder nor the built-in data set"),
        ("--architecture=vgg", "--architecture=vgg: must be one of paper, original, one_gpu"),
        ("--batch_size=many", "--batch_size=many"),
        ("--cache=disk", "--cache=disk: must be none or device"),
        ("--precision=float16", "--precision=float16: must be float32 or bfloat16"),
        ("--batch_size=0", "--batch_size=0: must be at least 1"),
        ("--learning_rate_drops=1,x", "--learning_rate_drops=1,x"),
        ("--plateau_patience=2", "--learning_rate_drops=3.0: cannot be with --plateau_patience=2; give --plateau_pat"),
        ("--decay_biases=perhaps", "--decay_biases=perhaps"),
        ("--bach_size=3", "Unknown command line flag 'bach_size'"),
        ("shapes", "shapes: not a flag"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(tmp_path, flag, message):
    process = call(f"--workdir={tmp_path / 'run'}", flag)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert message in process.stderr
    assert not (tmp_path / "run").exists()


def test_the_workdir_is_needed():
    process = call()
    assert (process.returncode, process.stderr) == (2, "error: --workdir=DIR is needed: the folder of the run\n")


def test_a_workdir_that_is_a_file_is_refused(tmp_path, photos):
    (tmp_path / "file").write_text("")
    process = call(f"--workdir={tmp_path / 'file'}", f"--dataset={photos}", *QUICK)
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: --workdir={tmp_path / 'file'}: cannot be used")
    assert process.stderr.count("\n") == 1


def test_a_workdir_where_nothing_can_be_made_is_refused(photos):
    process = call("--workdir=/proc/run", f"--dataset={photos}", *QUICK)
    assert process.returncode == 2
    assert process.stderr.startswith("error: --workdir=/proc/run: cannot be used")
    assert process.stderr.count("\n") == 1


@pytest.mark.slow
def test_debug_nans_ends_where_the_first_comes_from(tmp_path, photos):
    flags = ["--learning_rate=1e30", "--debug_nans"]
    # With oneDNN's convolution, as users run it.
    process = call(f"--workdir={tmp_path}", f"--dataset={photos}", *QUICK, *flags, JAX_COMPILATION_CACHE_DIR="")
    assert process.returncode == 1
    assert "FloatingPointError: invalid value (nan) encountered in" in process.stderr
    assert "in train_step" in process.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty pictures of 72×72, which the demo network can see, through the command that prepares them."""
    from conftest import picture
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("cat", "dog")):
        (folder / "source" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(picture(label, index, 80)).save(folder / "source" / name / f"{index}.png")
    command = [sys.executable, "-m", "alexnet_jax.prepare", f"--source={folder / 'source'}", "--size=72"]
    process = subprocess.run([*command, f"--output={folder / 'set'}"], capture_output=True, text=True, check=True)
    assert "2 classes, 18 train images, 2 validation images" in process.stdout
    again = subprocess.run([*command, f"--output={folder / 'set'}"], capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr == f"error: --output={folder / 'set'}: already exists; choose another output or delete it\n"
    return folder / "set"


def test_a_whole_run_leaves_its_results(tmp_path, photos):
    compiled = tmp_path / "compiled"
    process = call(f"--workdir={tmp_path}", f"--dataset={photos}", f"--compilation_cache={compiled}", *QUICK)
    assert process.returncode == 0, process.stderr
    assert list(compiled.iterdir())
    assert "top-1 error" in process.stdout.splitlines()[-2]
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result) == {
        "top1_error", "top5_error", "nll", "examples", "steps", "best_checkpoint", "images_per_second", "seed", "device"
    }  # fmt: skip
    assert (result["examples"], result["steps"]) == (2, 4)
    for name in ("curves.png", "conv1.png", "predictions.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 5000
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"validation/top1_error" in events.read_bytes()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["config"]["crop_size"] == 67
    assert {"jax", "python"} <= set(saved["versions"])

    other = call(f"--workdir={tmp_path}", f"--dataset={photos}", *QUICK, "--seed=3", "--momentum=0.5")
    assert other.returncode == 2
    assert "momentum was 0.9, is 0.5; seed was 0, is 3" in other.stderr

    again = call(f"--workdir={tmp_path}", f"--dataset={photos}", *QUICK)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "result.json").read_text())["top1_error"] == result["top1_error"]


@pytest.mark.slow
def test_the_presets_of_the_paper_and_of_2012_run_and_their_configs_tell_them_apart(tmp_path, photos):
    configs = {}
    for preset in ("paper", "original"):
        workdir = tmp_path / preset
        process = call(f"--workdir={workdir}", f"--dataset={photos}", f"--preset={preset}", *QUICK)
        assert process.returncode == 0, process.stderr
        losses = [json.loads(line).get("loss", 0) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert len(losses) == 5
        assert all(math.isfinite(loss) for loss in losses)
        configs[preset] = json.loads((workdir / "config.json").read_text())["config"]
    assert len({name for name, value in configs["paper"].items() if value != configs["original"][name]}) == 12


def checkpoints(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder.exists() else []


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_continues_from_its_last_checkpoint(tmp_path, photos, sent):
    arguments = [f"--workdir={tmp_path}", f"--dataset={photos}", *QUICK, "--epochs=25"]
    steps = 225
    first = running_until_a_checkpoint(tmp_path, arguments)
    first.send_signal(sent)
    out, _ = first.communicate(timeout=60)
    last = checkpoints(tmp_path)[-1]
    assert last < steps, "the run was over before it was stopped"
    if sent != signal.SIGKILL:
        assert first.returncode == 130
        assert out.splitlines()[-1] == f"stopped; the same command continues from step {last} of {steps}"

    second = call(*arguments)
    assert second.returncode == 0, second.stderr
    assert f"continuing from the checkpoint of step {last} of {steps}" in second.stdout
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, steps + 1))


def running_until_a_checkpoint(workdir, arguments):
    """A process that has written one."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.time() + 200
    while not any(step >= 4 for step in checkpoints(workdir)):
        assert time.time() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_a_full_disk_ends_the_run_with_one_line_and_with_room_it_continues(tmp_path, photos):
    """A limit on the size of files stands for the disk: the next checkpoint does not fit."""
    arguments = [f"--workdir={tmp_path}", f"--dataset={photos}", *QUICK, "--epochs=8"]
    process = running_until_a_checkpoint(tmp_path, arguments)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    # TensorStore's threads may print before it, and be in the middle of a line.
    assert f"error: {tmp_path}/checkpoints: the checkpoint cannot be written" in err.splitlines()[-1]
    assert checkpoints(tmp_path)[-1] >= 4

    again = call(*arguments)
    assert again.returncode == 0, again.stderr
    assert "continuing from the checkpoint of step" in again.stdout
    assert checkpoints(tmp_path)[-1] == 72
