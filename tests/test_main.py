"""The command, as a user calls it: most of it in processes of their own."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest

import alexnet_jax
from alexnet_jax.config import ARCHITECTURE_NAMES
from alexnet_jax.device import parallel
from alexnet_jax.networks.loading import load
from alexnet_jax.paper.architectures import DEMO
from alexnet_jax.paper.table import with_classes
from alexnet_jax.paper.written import to_json

COMMAND = [sys.executable, "-m", "alexnet_jax.main"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as users have
ENVIRONMENT["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # as `quickly_compiled`
_compiled = tempfile.TemporaryDirectory(prefix="compiled-")  # as --compilation_cache in one test, and then in all
COMPILED = ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
# A short run of the real demo network on tiny batches.
QUICK = ["--batch_size=2", "--epochs=0.4", "--log_every=1", "--checkpoint_every=2", "--crop_size=67"]


def call(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=300, env=ENVIRONMENT | environment
    )


def test_help_lists_every_field_with_its_default_in_each_preset():
    process = call("--help")
    assert process.returncode == 0
    out = " ".join(process.stdout.split())
    batch_sizes = "default: 32; paper: 128; original: 128; one_weird_trick: 1024; lars: 8192"
    assert f"--batch_size: images a step, over all devices together (§5) ({batch_sizes})" in out
    assert "from every patch, not each pixel's own mean (default: False; original: True)" in out
    assert f"--architecture: the network: one of {', '.join(ARCHITECTURE_NAMES)}; none: " in out
    assert "--momentum: momentum (§5) (default: 0.9)" in out
    assert "python -m alexnet_jax.main --workdir=DIR" in out


IMPORTED = """
import atexit, runpy, sys
heavy = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "matplotlib")
atexit.register(lambda: print("imported:", [name for name in heavy if name in sys.modules]))
name = sys.argv.pop(1)
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", ["main", "prepare", "predict", "features", "weights"])
def test_help_and_version_wait_for_no_jax(name):
    for flag, said in (
        ("--help", f"python -m alexnet_jax.{name}"),
        ("--version", f"alexnet_jax {alexnet_jax.__version__}"),
    ):
        command = [sys.executable, "-c", IMPORTED, f"alexnet_jax.{name}", flag]
        process = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert (process.returncode, process.stderr) == (0, "")
        assert said in process.stdout
        assert process.stdout.endswith("\nimported: []\n")


def test_help_takes_less_than_half_a_second():
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert call("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--preset=nonsense", "--preset=nonsense: must be one of demo, paper, original"),
        ("--architecture=vgg", "--architecture=vgg: must be one of paper, original, one_gpu"),
        ("--batch_size=many", "--batch_size=many"),
        ("--cache=disk", "--cache=disk: must be none or device"),
        ("--precision=float16", "--precision=float16: must be float32 or bfloat16"),
        ("--batch_size=0", "--batch_size=0: must be at least 1"),
        ("--seed=99999999999999999999", "--seed=99999999999999999999: must be below 9223372036854775808"),
        ("--learning_rate_drops=1,x", "--learning_rate_drops=1,x"),
        ("--plateau_patience=2", "--learning_rate_drops=3.0: cannot be with --plateau_patience=2; give --plateau_pat"),
        ("--decay_biases=perhaps", "--decay_biases=perhaps"),
        ("--bach_size=3", "Unknown command line flag 'bach_size'"),
        ("shapes", "shapes: not a flag"),
        ("--coordinator=somewhere", "--coordinator=somewhere: must be HOST:PORT"),
        ("--coordinator=:1", "--coordinator=:1: must be HOST:PORT"),
        ("--coordinator=[::1]:99999", "--coordinator=[::1]:99999: must be HOST:PORT"),
        ("--num_processes=1000000000", "--num_processes=1000000000: must be at most 65536"),
        ("--stderrthreshold=low", "flags: --stderrthreshold must be one of"),
        ("--logger_levels=a:low", "flags: Unknown level: 'low'"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"--workdir=\xff\n", "--flagfile: names a file that is no text in UTF-8 (invalid start byte)"),
        (b"--workdir=a\0b\n", "--workdir=a\\u0000b: must be without the character 0, which no name of a file has"),
        (b"--flagfile=none\n", "Unable to open flagfile: [Errno 2] No such file or directory: 'none'"),
    ],
)
def test_a_flag_file_that_is_amiss_is_one_line(tmp_path, content, message):
    (tmp_path / "flags").write_bytes(content)
    process = call(f"--flagfile={tmp_path / 'flags'}")
    assert (process.returncode, process.stdout, process.stderr) == (2, "", f"error: {message}\n")


def test_the_workdir_is_needed():
    process = call()
    assert (process.returncode, process.stderr) == (2, "error: --workdir=DIR is needed: the folder of the run\n")


def test_a_data_set_that_is_not_there_is_one_line_and_starts_nothing(call_here, tmp_path):
    process = call_here("main", f"--workdir={tmp_path / 'run'}", "--dataset=nowhere")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: --dataset=nowhere: neither a folder nor the built-in data set")
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file_or_where_nothing_can_be_made_is_refused(call_here, tmp_path, photos):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", "/proc/run"):
        process = call_here("main", f"--workdir={workdir}", f"--dataset={photos}", *QUICK, "--batch_size=4")
        assert process.returncode == 2
        assert process.stderr.startswith(f"error: --workdir={workdir}: cannot be used")
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
    return folder / "set"


def test_what_is_prepared_is_not_written_over(call_here, photos):
    process = call_here("prepare", f"--source={photos.parent / 'source'}", f"--output={photos}")
    message = f"error: --output={photos}: already exists; choose another output or delete it\n"
    assert (process.returncode, process.stderr) == (2, message)


@pytest.fixture(scope="module")
def whole_run(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs")
    flags = [f"--workdir={workdir}", f"--dataset={photos}", f"--compilation_cache={COMPILED}"]
    process = call(*flags, *QUICK, JAX_COMPILATION_CACHE_DIR="")
    assert process.returncode == 0, process.stderr
    return workdir, process.stdout


def test_a_whole_run_leaves_its_results(whole_run, photos):
    workdir, out = whole_run
    assert os.listdir(COMPILED)
    first, fast, *_ = out.splitlines()
    assert first.endswith(f"{photos}: 18 training images, 2 classes; 1 × cpu")
    assert fast.startswith(
        "slower than it could be, without oneDNN's convolutions and products (a compilation cache cannot"
    )
    assert "top-1 error" in out.splitlines()[-2]
    result = json.loads((workdir / "result.json").read_text())
    assert set(result) == {
        "top1_error", "top5_error", "nll", "examples", "steps", "best_checkpoint", "images_per_second", "seed", "device"
    }  # fmt: skip
    assert (result["examples"], result["steps"]) == (2, 4)
    for name in ("curves.png", "conv1.png", "predictions.png"):
        assert (workdir / "figures" / name).stat().st_size > 5000
    (events,) = (workdir / "tensorboard").iterdir()
    assert b"validation/top1_error" in events.read_bytes()
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["config"]["crop_size"] == 67
    assert saved["layers"] == to_json(with_classes(DEMO, 2))
    assert saved["dataset"] == str(photos)
    assert {"jax", "python"} <= set(saved["versions"])


def test_a_run_goes_on_with_the_same_flags_only(call_here, whole_run, photos, quickly_compiled, monkeypatch):
    workdir, _ = whole_run
    flags = [f"--workdir={workdir}", f"--dataset={photos}", *QUICK]
    monkeypatch.setattr(parallel, "all_devices", lambda: jax.devices()[:1])  # as that run had
    other = call_here("main", *flags, "--seed=3", "--momentum=0.5", "--num_classes=3")
    assert other.returncode == 2
    assert "momentum was 0.9, is 0.5; seed was 0, is 3; fc8 features was 2, is 3" in other.stderr
    result = (workdir / "result.json").read_text()
    again = call_here("main", *flags)
    assert again.returncode == 0, again.stderr
    assert json.loads((workdir / "result.json").read_text())["top1_error"] == json.loads(result)["top1_error"]


def test_the_outputs_of_a_layer_as_features(call_here, whole_run, photos, tmp_path):
    workdir, _ = whole_run
    pictures = sorted((photos.parent / "source" / "cat").iterdir())
    process = call_here("features", f"--workdir={workdir}", f"--output={tmp_path / 'f.npy'}", *pictures)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{tmp_path / 'f.npy'}: fc7:relu of 10 pictures, 1024 each\n"
    expected = load(workdir).features(pictures, ["fc7:relu"])["fc7:relu"]
    found = np.load(tmp_path / "f.npy")
    assert (found.shape, found.dtype) == ((10, 1024), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for flags, message in (
        ([f"--workdir={workdir}", f"--output={tmp_path / 'f.txt'}", pictures[0]], "f.txt: must end in .npz or .npy"),
        ([f"--workdir={workdir}", f"--output={tmp_path / 'g.npy'}"], "give pictures, or --dataset=PREPARED: "),
    ):
        process = call_here("features", *flags)
        assert (process.returncode, process.stdout) == (2, "")
        assert message in process.stderr
        assert process.stderr.count("\n") == 1


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
        content = json.loads((workdir / "config.json").read_text())
        configs[preset] = {**content["config"], "layers": content["layers"]}
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
    arguments = [f"--workdir={tmp_path}", f"--dataset={photos}", *QUICK, "--epochs=8"]
    steps = 72
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


@pytest.mark.slow
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
