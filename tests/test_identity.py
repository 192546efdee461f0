"""A network is its table: written down and read again it is the same, and another one is refused by layer and field."""

import contextlib
import copy
import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import CROP, TINY, picture, small_config
from hypothesis import given, settings, strategies as st
from PIL import Image

from alexnet_jax import InputError, fit, load, open_dataset
from alexnet_jax.networks import one_file, transfer
from alexnet_jax.networks.ensemble import evaluate_networks
from alexnet_jax.paper.architectures import ARCHITECTURES
from alexnet_jax.paper.layers import average_pool, dropout, lrn, max_pool, pool, relu, spatial_response_norm, takes_key
from alexnet_jax.paper.model import AlexNet, summary
from alexnet_jax.paper.table import Conv, Dense, Local, Step, named, with_layers, with_steps
from alexnet_jax.paper.train_state import shapes_of_params
from alexnet_jax.paper.written import differences, from_json, to_json
from alexnet_jax.runs import workdir

pytestmark = pytest.mark.usefixtures("quickly_compiled", "undrawn")
ONE = jax.devices()[:1]
STEPS = 2
CONFIG = small_config(epochs=STEPS / 3.125)


def through_text(rows):
    return json.loads(json.dumps(rows, allow_nan=False))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_table_comes_back_from_its_written_form(name):
    table = ARCHITECTURES[name]
    back = from_json(through_text(to_json(table)))
    assert back == table
    assert hash(back) == hash(table)
    assert to_json(back) == through_text(to_json(back)) == to_json(table)
    assert differences(to_json(table), to_json(back)) == []


def test_no_two_architectures_have_the_same_written_form():
    written = [json.dumps(to_json(table)) for table in ARCHITECTURES.values()]
    assert len(set(written)) == len(ARCHITECTURES) == 9


def test_a_table_is_written_with_all_fields_and_all_keywords():
    assert to_json(TINY)[:1] == [
        {
            "kind": "conv", "features": 8, "window": 5, "stride": 2, "padding": [0, 1], "groups": 1, "std": 0.02,
            "bias": 0.0,
            "then": [
                {"step": "relu"},
                {"step": "lrn", "size": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75, "groups": 2},
                {"step": "pool", "window": 3, "stride": 2, "ceil_mode": False},
            ],
        }
    ]  # fmt: skip
    assert to_json(TINY)[2:] == [
        {"kind": "dense", "features": 16, "std": 0.1, "bias": 0.0,
         "then": [{"step": "relu"}, {"step": "dropout", "rate": 0.5, "inverted": False}]},
        {"kind": "dense", "features": 3, "std": 0.1, "bias": 0.0, "then": []},
    ]  # fmt: skip


def test_what_means_the_same_is_equal_however_it_was_given():
    spelt_out = functools.partial(dropout, inverted=False, rate=0.5)
    assert (*TINY[:2], dataclasses.replace(TINY[2], then=(relu, spelt_out)), *TINY[3:]) == TINY
    assert Step.of(functools.partial(max_pool, stride=2, window=3)) == Step.of(pool)
    assert with_layers(TINY, conv1={"std": 1}) == from_json(to_json(with_layers(TINY, conv1={"std": 1})))


# Each way to change a table, and how it is named: from what was, to what is.
CHANGES = {
    "alpha": (with_steps(TINY, {lrn: functools.partial(lrn, alpha=1e-3)}), "conv1:lrn alpha was 0.0001, is 0.001"),
    "k": (with_steps(TINY, {lrn: functools.partial(lrn, k=1.0)}), "conv1:lrn k was 2.0, is 1.0"),
    "groups of a step": (with_steps(TINY, {lrn: functools.partial(lrn, groups=1)}), "conv1:lrn groups was 2, is 1"),
    "std": (with_layers(TINY, conv2={"std": 0.2}), "conv2 std was 0.1, is 0.2"),
    "bias": (with_layers(TINY, fc3={"bias": 1.0}), "fc3 bias was 0.0, is 1.0"),
    "groups": (with_layers(TINY, conv2={"groups": 1}), "conv2 groups was 2, is 1"),
    "padding": (with_layers(TINY, conv1={"padding": (1, 0)}), "conv1 padding was [0, 1], is [1, 0]"),
    "order": (
        with_layers(TINY, conv1={"then": (lrn, relu, pool)}),
        "conv1 steps were relu, lrn, pool, are lrn, relu, pool",
    ),
    "a step less": (with_steps(TINY, {lrn: None}), "conv1 steps were relu, lrn, pool, are relu, pool"),
    "function": (
        with_layers(TINY, fc3={"then": (jnp.tanh, dropout)}), "fc3 steps were relu, dropout, are tanh, dropout",
    ),
    "function with the same keywords": (
        with_layers(TINY, conv2={"then": (relu, functools.partial(average_pool, window=3, stride=2))}),
        "conv2 steps were relu, pool, are relu, average_pool",
    ),
    "rate": (with_steps(TINY, {dropout: functools.partial(dropout, rate=0.25)}), "fc3:dropout rate was 0.5, is 0.25"),
    "two at once": (
        with_layers(with_steps(TINY, {lrn: functools.partial(lrn, beta=0.5, size=3)}), fc4={"bias": 0.5}),
        "conv1:lrn size was 5, is 3; conv1:lrn beta was 0.75, is 0.5; fc4 bias was 0.0, is 0.5",
    ),
    "kind": ((TINY[0], Local(8, 3, padding=1, std=0.1, then=TINY[1].then), *TINY[2:]),
             "the layers were conv1, conv2, fc3, fc4, are conv1, local2, fc3, fc4"),
    "a layer more": (
        (*TINY[:2], *TINY[1:]), "the layers were conv1, conv2, fc3, fc4, are conv1, conv2, conv3, fc4, fc5",
    ),
}  # fmt: skip
changes = pytest.mark.parametrize(("changed", "named_so"), CHANGES.values(), ids=CHANGES)


@changes
def test_differences_are_named_by_layer_and_field(changed, named_so):
    assert "; ".join(differences(to_json(TINY), to_json(changed))) == named_so
    assert changed != TINY


@pytest.fixture(scope="module")
def dataset(prepared):
    return open_dataset(str(prepared))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """Of two steps, with a table that has no name in the program."""
    assert TINY not in ARCHITECTURES.values()
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(TINY, dataset, CONFIG, folder, devices=ONE)
    return folder


@pytest.fixture(scope="module")
def file(run):
    one_file.save(load(run), run.parent / "run.safetensors")
    return run.parent / "run.safetensors"


@contextlib.contextmanager
def edited(run, changed):
    """Its config.json, as if somebody had edited the table there."""
    config = run / "config.json"
    before = config.read_bytes()
    config.write_text(json.dumps({**json.loads(before), "layers": to_json(changed)}))
    try:
        yield run
    finally:
        config.write_bytes(before)


def refused(message):
    """With these words at the end."""
    return pytest.raises(
        InputError,
        match=re.escape(message) + r"\)?(, in config\.json)?(; give the old settings or another folder, .*)?$",
    )


@changes
def test_a_run_is_not_continued_with_another_table(run, dataset, changed, named_so):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with refused(f"--workdir={run}: holds a run with other settings ({named_so}"):
        fit(changed, dataset, CONFIG, run, devices=ONE)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("change", ["alpha", "order", "function", "std"])
def test_a_checkpoint_of_another_table_is_not_continued_from(run, dataset, change):
    changed, named_so = CHANGES[change]
    with edited(run, changed), refused(f"{run}/checkpoints/{STEPS}: is of another network: {named_so}"):
        fit(changed, dataset, CONFIG, run, devices=ONE)


@changes
def test_a_run_whose_table_was_edited_is_not_used(run, tmp_path, dataset, changed, named_so):
    with edited(run, changed):
        message = f"{run}/checkpoints/{STEPS}: is of another network: {named_so}"
        with refused(message):
            load(run)
        with refused(message):
            evaluate_networks([str(run)], tmp_path / "out", dataset=dataset.name)
        begun = dataclasses.replace(CONFIG, init_from=str(run))
        with refused(f"--init_from={run}: {message}"):
            fit(TINY, dataset, begun, tmp_path / "begun", devices=ONE)
        with refused(f"--init_from={run}: {message}"):
            fit(changed, dataset, begun, tmp_path / "begun", devices=ONE)
    assert not [*tmp_path.iterdir()]
    assert load(run).step == STEPS


@changes
def test_whoever_expects_another_table_is_told(run, file, changed, named_so):
    for source in (run, file):
        with refused(f"{source}: is of another network: {named_so}"):
            load(source, layers=changed)
        assert load(source, layers=TINY).net.layers == TINY


@changes
def test_a_file_whose_card_was_edited_is_not_used(file, tmp_path, dataset, changed, named_so):
    edited_file = tmp_path / "edited.safetensors"
    with safetensors.safe_open(file, framework="numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    card = {**json.loads(metadata["card"]), "layers": to_json(changed)}
    edited_file.write_bytes(safetensors.numpy.save(tensors, {**metadata, "card": json.dumps(card)}))
    message = f"{edited_file}: its card is of another network: {named_so}"
    with refused(message):
        load(edited_file)
    with refused(message):
        evaluate_networks([str(edited_file)], tmp_path / "out", dataset=dataset.name)
    with refused(f"--init_from={edited_file}: {message}"):
        fit(TINY, dataset, dataclasses.replace(CONFIG, init_from=str(edited_file)), tmp_path / "begun", devices=ONE)
    assert [*tmp_path.iterdir()] == [edited_file]


def test_the_commands_end_in_a_line_that_names_layer_and_field(call_here, run, tmp_path):
    Image.fromarray(picture(0, 1)).save(tmp_path / "a.png")
    changed, named_so = CHANGES["alpha"]
    with edited(run, changed):
        asked = [
            call_here("predict", f"--workdir={run}", tmp_path / "a.png"),
            call_here("main", "--mode=evaluate", f"--workdir={run}", f"--output={tmp_path / 'out'}"),
        ]
    for process in asked:
        assert (process.returncode, process.stdout) == (2, "")
        assert (
            process.stderr == f"error: {run}/checkpoints/{STEPS}: is of another network: {named_so}, in config.json\n"
        )


def test_a_run_is_used_whose_architecture_the_program_does_not_have(run, tmp_path, dataset, monkeypatch):
    """The command knows neither this file nor conftest's table."""
    monkeypatch.setattr(workdir, "ARCHITECTURES", {})
    network = load(run)
    assert network.net.layers == TINY
    pixels = picture(0, 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "alexnet_jax.predict", f"--workdir={run}", "--json", "--top=3"]
    process = subprocess.run([*command, tmp_path / "a.png"], capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    told = {of["class"]: of["probability"] for of in json.loads(process.stdout)["top"]}
    expected = dict(zip(dataset.class_names, np.asarray(network.probabilities(pixels[None]))[0].tolist(), strict=True))
    assert told == pytest.approx(expected, abs=2e-6)


# Steps of one's own.


def scaled(x, *, by, bounds=(-1e9, 1e9)):
    return jnp.clip(by * x, *bounds)


@takes_key
def noisy(x, key, *, scale=1.0):
    return x if key is None else x + scale * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(key)


OWN = with_layers(
    TINY,
    conv1={"then": (relu, functools.partial(scaled, by=0.5, bounds=(0.0, 200.0)), pool)},
    fc3={"then": (relu, noisy)},
)


def test_a_run_with_steps_of_ones_own_is_used_where_they_are_given(dataset, tmp_path):
    run, begun = tmp_path / "run", tmp_path / "begun"
    fit(OWN, dataset, CONFIG, run, devices=ONE)
    file = tmp_path / "run.safetensors"
    one_file.save(load(run, steps={"scaled": scaled, "noisy": noisy}), file)
    images = np.stack([picture(label, 7) for label in range(3)])
    answers = []
    for source in (run, file):
        with pytest.raises(
            InputError,
            match=r"its step test_identity\.scaled is not known here; in code of one's own, give load\(…",
        ):
            load(source)
        with pytest.raises(InputError, match=r"its step test_identity\.noisy is not known here"):
            load(source, steps={"scaled": scaled})
        for steps in (
            {"scaled": scaled, "noisy": noisy},
            {"test_identity.scaled": scaled, "test_identity.noisy": noisy},
        ):
            network = load(source, layers=OWN, steps=steps)
            assert network.net.layers == OWN
        answers.append(network.probabilities(images))
    np.testing.assert_array_equal(*answers)
    assert through_text(to_json(OWN))[0]["then"][1] == {
        "step": "test_identity.scaled", "by": 0.5, "bounds": [0.0, 200.0],
    }  # fmt: skip
    # Who trains on with the same table has them; another value of a keyword is another network.
    config = dataclasses.replace(CONFIG, init_from=str(run))
    assert transfer.find_origin(config, begun, AlexNet(OWN), dataset).new == []
    other = with_layers(OWN, conv1={"then": (relu, functools.partial(scaled, by=0.5, bounds=(0.0, 100.0)), pool)})
    with pytest.raises(InputError, match=re.escape("conv1:scaled bounds was [0.0, 200.0], is [0.0, 100.0]")):
        fit(other, dataset, CONFIG, run, devices=ONE)


def test_nothing_that_is_written_is_imported(run, tmp_path, monkeypatch):
    (tmp_path / "bomb.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("bomb.step", "bomb", "os.system", "builtins.eval", "jax.numpy.tanh", "alexnet_jax.paper.layers.relu"):
        rows = to_json(TINY)
        rows[1]["then"][0] = {"step": name}
        with pytest.raises(ValueError, match=rf"^layer 2: its step {re.escape(name)} is not known here"):
            from_json(rows, {"other": scaled})
        content = json.loads((run / "config.json").read_text())
        copied = tmp_path / "copied"
        shutil.copytree(run, copied, ignore=shutil.ignore_patterns("tensorboard", "figures"))
        (copied / "config.json").write_text(json.dumps({**content, "layers": rows}))
        with pytest.raises(InputError, match=rf"layer 2: its step {re.escape(name)} is not known here"):
            load(copied)
        shutil.rmtree(copied)
    assert "bomb" not in sys.modules


def relu_of_ones_own(x):
    return jnp.maximum(x, 0.1 * x)


relu_of_ones_own.__qualname__ = "relu"


class Doubling:
    def __call__(self, x):
        return 2 * x


def test_a_step_of_ones_own_is_not_taken_for_a_public_one_of_its_name():
    table = with_layers(TINY, conv2={"then": (relu_of_ones_own, pool)})
    rows = through_text(to_json(table))
    assert differences(to_json(TINY), rows) == ["conv2 steps were relu, pool, are test_identity.relu, pool"]
    with pytest.raises(ValueError, match=r"^layer 2: its step test_identity\.relu is not known here"):
        from_json(rows)
    assert from_json(rows, {"relu": relu_of_ones_own}) == table  # and the others keep theirs


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            lambda x: x,
            r"fc4: the step test_identity\.<lambda> has no name of its own; define it at the top of a module",
        ),
        (
            Doubling(),
            r"fc4: the step test_identity\.<Doubling> has no name of its own; define it at the top of a module",
        ),
        (functools.partial(scaled, by=jnp.float32(2)), r"fc4:scaled by is .*; a number, text, or a tuple of these can"),
        (functools.partial(scaled, by=float("nan")), r"fc4:scaled by is nan; it must be a finite number of 32 bits"),
    ],
)
def test_what_cannot_be_written_down_is_refused_before_a_run_starts(dataset, tmp_path, step, message):
    table = with_layers(TINY, fc4={"then": (step,)})
    with pytest.raises(ValueError, match=rf"^{message}"):
        to_json(table)
    with pytest.raises(InputError, match=f"the network cannot be written down: {message}"):
        fit(table, dataset, CONFIG, tmp_path / "run", devices=ONE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Dense(3, std=1e39), "fc1 std is 1e+39; it must be a finite number of 32 bits"),
        (Dense(3, then=(functools.partial(scaled, by=-1e39),)), "fc1:scaled by is -1e+39; it must be a finite number"),
        (Dense(3, then=(functools.partial(scaled, by=2**63),)), "fc1:scaled by is 9223372036854775808; it must be"),
        (Dense(3, then=(functools.partial(lrn, size=5.0),)), "layer 1:lrn size is 5.0; it must be of type int"),
    ],
)
def test_what_could_not_be_read_is_not_written(layer, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        to_json((layer,))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (functools.partial(lrn, 5), "arguments of a step are given by name"),
        (max_pool, "the step pool needs window=…"),
        (functools.partial(max_pool, window=3), "the step pool needs stride=…"),
        (functools.partial(pool, strides=2), "the step pool has no strides"),
        (functools.partial(dropout, key=1), "the step dropout has no key"),
        (lambda x, key: x, "has a parameter 'key'; mark it with layers.takes_key"),
    ],
)
def test_a_step_that_could_not_be_called_is_refused_in_the_table(step, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Dense(3, then=(step,))


# All that is written, with every kind of layer and step.
EVERYTHING = (
    Conv(8, 5, stride=2, padding=(0, 1), std=0.02, then=(relu, lrn, pool)),
    Conv(8, 3, padding=1, groups=2, then=(functools.partial(spatial_response_norm, size=3, alpha=1e-4, beta=0.75),)),
    Local(4, 2, padding=1, then=(jax.nn.gelu, functools.partial(average_pool, window=2, stride=2))),
    Dense(16, std=0.1, then=(jax.nn.leaky_relu, dropout)),
    Dense(3, std=0.1),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([0, -1, 10**400]) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
A_LAYER = re.compile(r"(layer [1-5]|(conv|local|fc)[1-5])\b")


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # of a number above float32's
@settings(max_examples=10 * settings().max_examples)
@given(st.data())
def test_a_damaged_row_is_refused_by_its_layer_or_is_another_table(data):
    rows = through_text(to_json(EVERYTHING))
    number = data.draw(st.integers(0, len(rows) - 1), "layer")
    steps = rows[number]["then"]
    inside = steps and data.draw(st.booleans(), "in a step")
    row = steps[data.draw(st.integers(0, len(steps) - 1))] if inside else rows[number]
    how = data.draw(st.sampled_from(["value"] * 6 + ["missing", "one more", "row"]), "how")
    if how == "one more":
        row[data.draw(st.text(max_size=5) | st.sampled_from(["self", "function", "func", "x", "key", "operation"]))] = 1
    elif how == "row":
        holder = steps if inside else rows
        holder[holder.index(row)] = data.draw(anything, "row")
    else:
        field = data.draw(st.sampled_from([*row]), "field")
        if how == "value":
            row[field] = data.draw(st.integers(-2, 40) | st.floats(-2, 2) | anything, "value")
        else:
            del row[field]
    before = copy.deepcopy(rows)
    layers, problem = outcome(from_json, rows)
    assert repr(rows) == repr(before)
    if layers is None:
        assert A_LAYER.match(problem)
        return
    assert len(named(layers)) == len(EVERYTHING)
    assert from_json(through_text(to_json(layers))) == layers
    assert (differences(to_json(EVERYTHING), to_json(layers)) == []) == (layers == EVERYTHING)
    for built in (summary, lambda layers, size: shapes_of_params(AlexNet(layers), size)):
        shapes, problem = outcome(built, layers, CROP)
        assert shapes is not None or A_LAYER.match(problem)


def outcome(function, *arguments):
    """What it returns, or the words of its ValueError; others come through."""
    try:
        return function(*arguments), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize(
    ("number", "step", "changed", "message"),
    [
        (0, None, {"std": 10**400}, "layer 1 std is 1000"),
        (0, None, {"std": True}, "layer 1 std is True; it must be a finite number"),
        (0, None, {"std": 1e39}, "layer 1 std is 1e+39; it must be a finite number of 32 bits"),
        (0, None, {"window": 5.0}, "layer 1 window is 5.0; it must be a whole number"),
        (0, None, {"padding": [0, 1, 2]}, "layer 1 padding is [0, 1, 2]; it must be a whole number"),
        (0, None, {"then": {"step": "relu"}}, "layer 1: then is {'step': 'relu'}; it must be a list of steps"),
        (4, None, {"window": 3}, "layer 5: a dense layer has no window"),
        (0, 1, {"alpha": "1e-4"}, "layer 1:lrn alpha is '1e-4'; it must be of type float"),
        (0, 1, {"alpha": -1e39}, "layer 1:lrn alpha is -1e+39; it must be a finite number of 32 bits"),
        (0, 1, {"size": 5.0}, "layer 1:lrn size is 5.0; it must be of type int"),
        (0, 2, {"ceil_mode": 1}, "layer 1:pool ceil_mode is 1; it must be of type bool"),
        (0, 2, {"strides": 2}, "layer 1: the step pool has no strides"),
        (3, 1, {"rate": float("nan")}, "layer 4:dropout rate is nan; it must be a finite number of 32 bits"),
        (0, None, {"stride": 2**63}, "layer 1 stride is 9223372036854775808; it must be a whole number of 64 bits"),
    ],
)
def test_what_is_wrong_in_a_row_is_named(number, step, changed, message):
    rows = to_json(EVERYTHING)
    (rows[number] if step is None else rows[number]["then"][step]).update(changed)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        from_json(rows)


@pytest.mark.parametrize(("layers", "steps"), [(2001, 0), (1, 2000), (1001, 1)])
def test_more_layers_and_steps_than_anybody_writes_are_refused_at_once(layers, steps):
    row = {"kind": "dense", "features": 3, "then": [{"step": "relu"}] * steps}
    with pytest.raises(ValueError, match=r"^layers: they have 2,00\d layers and steps; 2,000 are the most$"):
        from_json([row] * layers)
    with pytest.raises(ValueError, match=r"; 2,000 are the most$"):
        to_json((Dense(3, then=(relu,) * steps),) * layers)


@pytest.mark.parametrize("rows", [None, [], {}, "conv", 3, [[]], [None], [{"kind": ["conv"]}], [{"kind": {}}]])
def test_what_is_no_table_is_refused(rows):
    with pytest.raises(
        ValueError, match=r"^(a network is written as a list of layers|layer 1: its kind must be one of)"
    ):
        from_json(rows)
