"""Intervals of differences, and logs that are older than what they measured."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import intervals
import measured
import record
import tables


def test_a_difference_has_the_interval_of_welchs_test():
    after, before = [0.40, 0.43, 0.41, 0.47], [0.35, 0.36, 0.31]
    expected = stats.ttest_ind(after, before, equal_var=False).confidence_interval()
    found = intervals.difference(after, before)
    np.testing.assert_allclose(found[1:3], expected)
    assert found.resolved == (stats.ttest_ind(after, before, equal_var=False).pvalue < 0.05)
    assert not intervals.difference([0.40, 0.50], [0.39, 0.49]).resolved
    assert intervals.difference([2.0, 2.0], [1.0, 1.0])[:3] == (1, 1, 1)


def test_the_interval_of_a_ratio_holds_it_in_95_of_100_repetitions():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = intervals.ratio(rng.normal(30, 2, 5).tolist(), rng.normal(10, 1, 5).tolist())
        held += found.low <= 3 <= found.high
    assert 0.92 <= held / 400 <= 0.98
    assert not intervals.ratio([9.0, 11.0, 10.0], [10.0, 10.5, 9.5]).resolved  # its null is 1


def test_a_ratio_of_pairs_does_not_see_what_both_had_in_common():
    rng = np.random.default_rng(1)
    machine = rng.uniform(1, 2, 9)  # its rate, turn by turn
    ours, theirs = (machine * of * rng.normal(1, 0.01, 9) for of in (1.1, 1.0))
    found = intervals.paired_ratio(ours.tolist(), theirs.tolist())
    test = stats.ttest_rel(np.log(ours), np.log(theirs))
    np.testing.assert_allclose(np.log(found[1:3]), test.confidence_interval())
    apart = intervals.paired_difference(ours.tolist(), theirs.tolist())
    np.testing.assert_allclose(apart[1:3], stats.ttest_rel(ours, theirs).confidence_interval())
    assert found.low < 1.1 < found.high < 1.15
    assert found.resolved
    assert not intervals.ratio(ours.tolist(), theirs.tolist()).resolved


def test_differences_of_the_same_images_are_narrower_than_as_of_others():
    found = intervals.of_other_images((0.33, 0.30, 0.36), (0.36, 0.33, 0.39))
    assert found.value == pytest.approx(-0.03)
    assert found.high - found.low == pytest.approx(0.06 * 2**0.5)


def test_a_log_is_marked_where_a_file_that_it_measured_has_changed(tmp_path, monkeypatch):
    for name in ("a.py", "experiments/some.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    monkeypatch.setitem(measured.MEASURED, "some", ("a.py",))
    made = {"date": "D", "commit": "c0ffee", "measured": measured.digests("some")}
    training = {"date": "D", "commit": "c0ffee", "measured": measured.digests("some")}
    values = {**made, "results": {"one": [training]}}
    assert measured.outdated(values) == ""
    (tmp_path / "a.py").write_text("x = 2\n")
    assert measured.outdated(values) == "code before a.py changed"
    made["measured"] = measured.digests("some")  # the trainings in it are of the code before
    assert measured.outdated({**made, "results": values["results"]}) == "code before a.py changed"
    assert measured.outdated({**made, "commit": "c0ffee-dirty"}) == ""  # it was another file
    assert measured.outdated({"date": "D", "commit": "c0ffee-dirty"}) == "code that was not committed"
    assert measured.outdated({"date": "D", "commit": "c0ffee"}) == "older code"

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setitem(tables.TABLES, "one", lambda: str(record.log("some")["date"]))
    for log, mark in ((made, ""), ({"date": "D", "commit": "c0ffee"}, "`some`: of older code")):
        (tmp_path / "some.json").write_text(json.dumps(log))
        page = tables.rendered("<!-- table: one -->\nold\n<!-- end -->")
        assert "old\n" not in page
        assert mark in page
        assert ("<sub>" in page) == bool(mark)


def test_the_declared_files_exist():
    root = Path(__file__).parents[2]
    missing = [file for files in measured.MEASURED.values() for file in files if not (root / file).exists()]
    assert not missing
    assert all((root / "experiments" / f"{name}.py").exists() for name in measured.MEASURED)


def test_every_experiment_that_writes_a_log_is_declared():
    scripts = (Path(__file__).parents[2] / "experiments").glob("*.py")
    writing = {of.stem for of in scripts if "from record import" in (text := of.read_text()) and "    save(" in text}
    assert len(writing) > 15
    assert writing - {"cifar"} <= set(measured.MEASURED)  # cifar.py writes for those that import it
    for experiment in measured.MEASURED:
        assert all(measured.digests(experiment).values()), experiment  # there is such a file
