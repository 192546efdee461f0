"""The command, as a user calls it: processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "alexnet_jax.main"]
# A short run of the real demo network on tiny batches.
QUICK = ["--batch_size=2", "--epochs=0.4", "--log_every=1", "--checkpoint_every=2", "--crop_size=67"]


def call(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_help_lists_every_field_with_its_default_in_each_preset():
    out = " ".join(call("--help").stdout.split())
    assert "--batch_size: images a step, over all devices together (§5) (default: 32 in demo, 128 in paper)" in out
    assert "--momentum: momentum (§5) (default: 0.9)" in out
    assert "python -m alexnet_jax.main --workdir=DIR" in out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--preset=nonsense", "--preset=nonsense: value should be one of <demo|paper>"),
        ("--dataset=nowhere", "--dataset=nowhere: neither a folder nor the built-in data set"),
        ("--architecture=vgg", "--architecture=vgg: unknown; there are paper, demo"),
        ("--batch_size=many", "--batch_size=many"),
        ("--batch_size=0", "--batch_size=0: must be at least 1"),
        ("--learning_rate_drops=1,x", "--learning_rate_drops=1,x"),
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


def test_a_workdir_that_is_a_file_is_refused(tmp_path, prepared):
    (tmp_path / "file").write_text("")
    process = call(f"--workdir={tmp_path / 'file'}", f"--dataset={prepared}", "--crop_size=40", "--batch_size=2")
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1


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
    assert again.stderr == f"error: {folder / 'set'}: already exists; choose another output or delete it\n"
    return folder / "set"


def test_a_whole_run_leaves_its_results(tmp_path, photos):
    process = call(f"--workdir={tmp_path}", f"--dataset={photos}", *QUICK)
    assert process.returncode == 0, process.stderr
    assert "top-1 error" in process.stdout.splitlines()[-2]
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result) == {
        "top1_error", "top5_error", "nll", "examples", "steps", "images_per_second", "seed", "device"
    }  # fmt: skip
    assert (result["examples"], result["steps"]) == (2, 4)
    for name in ("curves.png", "conv1.png"):
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


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_continues_from_its_last_checkpoint(tmp_path, photos, sent):
    arguments = [f"--workdir={tmp_path}", f"--dataset={photos}", *QUICK, "--epochs=60"]
    first = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.time() + 100
    while not (tmp_path / "checkpoints" / "4").exists() and not (tmp_path / "checkpoints" / "6").exists():
        assert time.time() < deadline
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(sent)
    out, _ = first.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert first.returncode == 130
        assert "the same command continues from step" in out.splitlines()[-1]
    kept = sorted(int(name) for name in os.listdir(tmp_path / "checkpoints") if name.isdigit())
    steps = 540
    assert kept[-1] < steps, "the run was over before it was stopped"

    second = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert f"continuing from the checkpoint of step {kept[-1]} of {steps}" in second.stdout
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, steps + 1))
