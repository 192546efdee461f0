"""A run's folder: it is one run's, and says which."""

import dataclasses
import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from typing import Any

import jax
import pytest
from conftest import TINY, small_config

from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.options import InputError
from alexnet_jax.paper.table import with_layers
from alexnet_jax.paper.written import to_json
from alexnet_jax.reading import read_json
from alexnet_jax.runs.workdir import Run, claim, held
from alexnet_jax.train import fit

CONFIG = small_config(learning_rate_drops=(3.0,))
RUN = Run(CONFIG, to_json(TINY), "colors", "fingerprint")


def of(**changes):
    """The same run with other settings."""
    return dataclasses.replace(RUN, config=dataclasses.replace(CONFIG, **changes))


def test_another_config_in_the_same_workdir_is_refused_and_the_fields_named(tmp_path):
    claim(tmp_path, RUN)
    others = {
        "cache": "device",
        "cache_budget": 1.0,
        "checkpoint_every": 3,
        "keep_checkpoints": 9,
        "stall_timeout": 2.0,
    }
    claim(tmp_path, of(**others))  # these decide nothing
    with pytest.raises(InputError, match=r"learning_rate_drops was \[3.0\], is \[\]; seed was 0, is 7"):
        claim(tmp_path, of(seed=7, learning_rate_drops=()))


def test_so_are_another_network_and_what_is_ones_own(tmp_path):
    claim(tmp_path, RUN)
    changed = dataclasses.replace(RUN, layers=to_json(with_layers(TINY, conv2={"groups": 1}, fc3={"std": 0.2})))
    with pytest.raises(InputError, match=r"\(conv2 groups was 2, is 1; fc3 std was 0.1, is 0.2\); give the old"):
        claim(tmp_path, changed)
    with pytest.raises(InputError, match="optimizer was the paper's, is one's own"):
        claim(tmp_path, dataclasses.replace(RUN, own=("optimizer",)))
    claim(tmp_path / "own", dataclasses.replace(RUN, own=("optimizer", "augment")))
    with pytest.raises(InputError, match="augment was one's own, is the paper's"):
        claim(tmp_path / "own", dataclasses.replace(RUN, own=("optimizer",)))


def test_a_run_of_a_version_that_did_not_know_a_field_yet_had_its_default(tmp_path):
    claim(tmp_path, RUN)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    del saved["config"]["reflect"]
    file.write_text(json.dumps(saved))
    claim(tmp_path, RUN)
    with pytest.raises(InputError, match="reflect was True, is False"):
        claim(tmp_path, of(reflect=False))


def test_a_workdir_that_only_another_host_sees_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not on a disk that all processes see"):
        claim(tmp_path, RUN, exists=True)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": 3}', '{"config": {}}'])
def test_a_damaged_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json: cannot be read \(.+\)$"):
        claim(tmp_path, RUN)


def test_the_data_set_may_move_but_not_change(tmp_path):
    elsewhere = dataclasses.replace(RUN, dataset="/elsewhere")
    claim(tmp_path, RUN)
    claim(tmp_path, elsewhere)
    with pytest.raises(InputError, match="dataset was colors with other images, is colors"):
        claim(tmp_path, dataclasses.replace(RUN, data="of others"))
    with pytest.raises(InputError, match="dataset was colors, is /elsewhere"):
        claim(tmp_path, dataclasses.replace(elsewhere, data="of others"))


HOLDS = """
import sys
from pathlib import Path
from alexnet_jax.runs.workdir import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_trains_in_a_workdir_and_a_dead_one_holds_it_no_longer(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"^--workdir={folder}: another process trains in it$"), held(folder):
            pass
        assert [*folder.iterdir()] == []  # it leaves nothing there
        claim(folder, RUN)
        read_json(folder / "config.json", dict[str, Any])
        other.kill()
    with held(folder), pytest.raises(InputError, match="another process trains in it"), held(folder):
        pass
    with held(folder):
        pass


def test_where_folders_cannot_be_locked_a_file_beside_is(tmp_path, monkeypatch):
    lock = fcntl.flock

    def of_nfs(handle, operation):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with (
        held(tmp_path / "run"),
        pytest.raises(InputError, match="another process trains in it"),
        held(tmp_path / "run"),
    ):
        pass
    assert sorted(tmp_path.iterdir()) == [tmp_path / "run", tmp_path / "run.lock"]
    with held(tmp_path / "run"):
        pass


def test_a_second_fit_in_the_same_workdir_is_refused(tmp_path, prepared):
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run"), pytest.raises(InputError, match="another process trains in it"):
        fit(TINY, open_dataset(prepared), small_config(), tmp_path / "run", devices=jax.devices()[:1])
    assert [*(tmp_path / "run").iterdir()] == []
