"""The experiment on fine-tuning: halves of the classes, a few of the photographs, and it goes on where it stopped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CROP, SIZE, TINY, picture
from PIL import Image

from alexnet_jax import open_dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import fine_tuning
import photo_tables
import record
import training


@pytest.fixture
def photographs(tmp_path):
    """Four classes: 20 to train and 5 to validate of each."""
    for label, name in enumerate(("ash", "birch", "cedar", "dogwood")):
        for split, count in (("train", 20), ("val", 5)):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(label % 3, 100 * label + number)).save(folder / f"{number}.png")
    return tmp_path / "photographs"


def test_the_halves_of_the_classes(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "SIZE", SIZE)
    fine_tuning.prepare_halves(str(photographs), tmp_path)
    for half, names in ((fine_tuning.OTHERS, ("ash", "birch")), (fine_tuning.OWN, ("cedar", "dogwood"))):
        data = open_dataset(tmp_path / half)
        assert data.class_names == names
        assert {split: len(records) for split, records in data.splits.items()} == {"train": 40, "validation": 10}
        for records in data.splits.values():
            found = [records[number] for number in range(len(records))]
            assert all(f"/{names[of['label']]}/" in of["name"] for of in found)
        few = training.one_in(10, data).splits["train"]  # they lie class by class, so that each has its share
        assert [few[number]["label"] for number in range(len(few))] == [0, 0, 1, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
def test_all_ways_are_trained_alike_and_kept(photographs, tmp_path, monkeypatch):
    for name, value in (("DEMO", TINY), ("SIZE", SIZE), ("CROP", CROP), ("BATCH", 4), ("FEW", {"few": 4})):
        monkeypatch.setattr(fine_tuning, name, value)
    monkeypatch.setattr(fine_tuning, "STEPS", {"others": 2, "few": 3})
    ran, fit = [], fine_tuning.fit
    monkeypatch.setattr(fine_tuning, "fit", lambda *given: (ran.append(given), fit(*given))[1])
    for of in (record, photo_tables):
        monkeypatch.setattr(of, "RESULTS", tmp_path)
    workdir = tmp_path / "work"
    command = ["fine_tuning.py", f"--source={photographs}", f"--workdir={workdir}", "--seeds=3,4"]
    monkeypatch.setattr(sys, "argv", command)
    fine_tuning.main()
    assert len(ran) == 2 * (1 + 3)
    of_others, new, taken, at_whole = (config for _, _, config, _ in ran[:4])
    assert (new.init_from, Path(taken.init_from)) == ("", ran[0][3])
    assert {**new.to_json(), "init_from": taken.init_from} == taken.to_json()
    assert {**taken.to_json(), "taken_rate_scale": 1.0} == at_whole.to_json()
    assert of_others.seed == new.seed == taken.seed == 3
    origin, result = (json.loads((ran[2][3] / name).read_text()) for name in ("init.json", "result.json"))
    assert origin["new"] == ["fc4/bias", "fc4/kernel"]
    assert result["steps"] == 3
    values = json.loads((tmp_path / "fine_tuning.json").read_text())
    assert [run["result"]["images"] for run in values["results"]["few"]["taken"]] == [10, 10]
    errors = np.array([[run["result"]["top1_error"] for run in of["new"]] for of in values["results"].values()])
    assert errors.shape == (1, 2)
    page = photo_tables.fine_tuning()
    assert all(f"| 10 | 1 | {rate} |" in page for rate in ("a tenth", "the whole"))
    fine_tuning.main()
    assert len(ran) == 8  # nothing is trained twice
