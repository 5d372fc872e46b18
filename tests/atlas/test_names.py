"""People's names of features: kept apart, merged by date, never lost."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest

from vitlens.atlas.names import Name, Names
from vitlens.errors import CheckpointError, FeatureError, VitlensError

N_FEATURES = dict(enumerate((4, 6)))


def test_a_name_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "names.jsonl"
    entry = Names(path, n_features=N_FEATURES, author="Ada").set(
        1, 5, " beak,\n side view ", note="seldom"
    )
    assert (entry.name, entry.author, entry.note) == ("beak, side view", "Ada", "seldom")
    assert entry.date.endswith("+00:00")
    names = Names(path, n_features=N_FEATURES)
    assert names.entries == (entry,)
    assert names.get(1, 5) == "beak, side view"
    assert names.get(0, 0) == ""
    assert names.labels == {(1, 5): "beak, side view"}
    assert len(names) == 1


def test_the_latest_name_is_shown_and_all_are_kept(tmp_path: Path) -> None:
    names = Names(tmp_path / "names.jsonl", author="Ada")
    names.set(0, 1, "sky", date="2026-01-02")
    names.set(0, 1, "blue", author="Bo", date="2026-01-01T23:59:59")
    assert [name.name for name in names.of(0, 1)] == ["sky", "blue"]
    assert names.get(0, 1) == "sky"
    names.set(0, 1, "sea", author="Bo")
    assert names.labels == {(0, 1): "sea"}
    assert [name.author for name in names] == ["Ada", "Bo"]


def test_dates_are_compared_across_time_zones() -> None:
    names = Names()
    names.set(0, 0, "later", author="Ada", date="2026-01-01T12:00:00+00:00")
    names.set(0, 0, "earlier", author="Bo", date="2026-01-01T13:30:00+02:00")
    assert names.get(0, 0) == "later"


def test_what_is_said_last_counts_even_against_a_clock_that_is_ahead() -> None:
    names = Names(author="Ada")
    names.set(0, 0, "old", date="2999-01-01")
    assert names.set(0, 0, "new").date.startswith("2999-01-01T00:00:00.001")
    assert names.get(0, 0) == "new"


def test_a_withdrawn_name_does_not_come_back(tmp_path: Path) -> None:
    mine, theirs = (Names(tmp_path / "names.jsonl", author="Ada") for _ in range(2))
    entry = mine.set(0, 0, "sky")
    theirs.reload()
    mine.remove(0, 0)
    theirs.update([entry])
    assert theirs.get(0, 0) == ""
    assert len(theirs) == 0


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "names.jsonl"

    def write(author: str) -> None:
        names = Names(path, author=author)
        for feature in range(12):
            names.set(0, feature, f"{author} {feature}")

    threads = [threading.Thread(target=write, args=(author,)) for author in ("Ada", "Bo")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Names(path)) == 24


def test_the_later_date_wins_whoever_writes_last(tmp_path: Path) -> None:
    path = tmp_path / "names.jsonl"
    one, other = Names(path, author="Ada"), Names(path, author="Ada")
    one.set(0, 0, "later", date="2026-02-01")
    other.set(0, 0, "earlier", date="2026-01-01")
    assert Names(path).get(0, 0) == "later"
    assert other.get(0, 0) == "later"


def test_unknown_features_are_reported_and_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "names.jsonl"
    everything = Names(path, author="Ada")
    everything.set(0, 3, "known")
    everything.set(0, 4, "beyond the layer")
    everything.set(2, 0, "beyond the layers")
    names = Names(path, n_features=N_FEATURES, author="Ada")
    assert [(n.layer, n.feature) for n in names.unknown] == [(0, 4), (2, 0)]
    assert names.labels == {(0, 3): "known"}
    names.set(1, 1, "more")
    assert len(Names(path)) == 4
    with pytest.raises(FeatureError, match="no feature 2/0"):
        names.set(2, 0, "again")


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_export_and_import(tmp_path: Path, kind: str) -> None:
    names = Names(tmp_path / "names.jsonl", author="Ada")
    names.set(0, 0, 'a "quoted", name; ünïcode \u2028 鳥', note="first line\nsecond, line")
    names.set(1, 9, "beyond", date="2026-01-01")
    names.set(1, 0, "withdrawn")
    names.remove(1, 0)
    file = tmp_path / f"out.{kind}"
    names.export(file)
    others = Names(n_features=N_FEATURES)
    unknown = others.read(file)
    assert others.entries == names.entries
    assert [(n.layer, n.feature) for n in unknown] == [(1, 9)]


def test_a_table_of_a_spreadsheet(tmp_path: Path) -> None:
    file = tmp_path / "names.CSV"
    file.write_bytes("\ufefflayer,feature,name\r\n0,3,beak\r\n".encode())
    names = Names(n_features=N_FEATURES)
    assert names.read(file) == ()
    assert names.entries == (Name(0, 3, "beak"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<<<<<<< HEAD\n", r"Line 1 .*left by a merge"),
        ('{"layer": 0, "feature": 0, "name": "x"}\n{"layer"', "Line 2 .* is not JSON"),
        ('{"layer": 0, "feature": 0}\n', "Line 1 .* must be text"),
        ('{"layer": -1, "feature": 0, "name": "x"}\n', "whole numbers from 0, not -1"),
        ('{"layer": true, "feature": 0, "name": "x"}\n', "whole numbers"),
        ('{"layer": 0, "feature": 1.5, "name": "x"}\n', "whole numbers"),
        ('{"feature": 1, "name": "x"}\n', "'layer' is missing"),
        ('{"layer": 0, "feature": 1, "name": "x", "date": "soon"}\n', "isoformat"),
        ("[1]\n", "not a feature name"),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.jsonl"
    good = Names(path, author="Ada")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        Names(path)
    with pytest.raises(CheckpointError, match=message):
        good.set(0, 0, "x")
    assert path.read_text(encoding="utf-8") == text


def test_a_bad_import_changes_nothing(tmp_path: Path) -> None:
    names = Names(tmp_path / "names.jsonl")
    file = tmp_path / "in.json"
    file.write_text(json.dumps([{"layer": 0, "feature": 0, "name": "good"}, {"layer": "x"}]))
    with pytest.raises(CheckpointError, match="Entry 2"):
        names.read(file)
    assert len(names) == 0
    for missing in ("in.csv", "in.jsonl", "other.json"):
        with pytest.raises(CheckpointError, match="There is no file"):
            names.read(tmp_path / missing)
    with pytest.raises(CheckpointError, match=r"\.csv, \.json or \.jsonl"):
        names.export(tmp_path / "names.txt")


def test_two_branches_merge_in_git(tmp_path: Path) -> None:
    path = tmp_path / "names.jsonl"

    def git(*args: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *who, *args], cwd=tmp_path, check=True, capture_output=True)

    base = Names(path, author="Ada")
    for feature in range(0, 40, 10):
        base.set(0, feature, f"name {feature}")
    git("init")
    git("add", "names.jsonl")
    git("commit", "-m", "base")
    git("checkout", "-b", "other")
    Names(path, author="Bo").set(0, 5, "five")
    git("commit", "-am", "five")
    git("checkout", "main")
    Names(path, author="Ada").set(0, 25, "twenty-five")
    git("commit", "-am", "twenty-five")
    git("merge", "other")
    assert [name.feature for name in Names(path)] == [0, 5, 10, 20, 25, 30]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VitlensError, match="Could not write"):
        Names(tmp_path / "file" / "names.jsonl").set(0, 0, "x")
