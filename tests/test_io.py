"""Complete files or none: failures of every kind leave nothing half-written behind."""

import errno
import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vitlens.errors import CheckpointError, NetworkError, VitlensError, near_matches
from vitlens.io import (
    ResumableRun,
    atomic_folder,
    atomic_path,
    check_folder,
    fingerprint,
    partial_path,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

FAILURES = [KeyboardInterrupt(), RuntimeError("no"), OSError(errno.ENOSPC, "No space left")]


@contextmanager
def small_disk():
    """No file may grow beyond 4 kB, which fails a write as a full disk does.

    The limit holds for pytest's own output too, so nothing but the write goes into the block.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_path_writes_and_replaces(tmp_path):
    for text in ("first", "second"):
        with atomic_path(tmp_path / "new" / "note.svg") as temporary:
            temporary.write_text(text)
            assert temporary.suffix == ".svg"
        assert (tmp_path / "new" / "note.svg").read_text() == text
    assert names(tmp_path / "new") == ["note.svg"]


def test_atomic_path_follows_links_and_keeps_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
def test_a_failure_leaves_the_old_and_nothing_else(tmp_path, atomic, failure):
    path = tmp_path / "kept"
    if atomic is atomic_folder:
        path.mkdir()
    else:
        path.write_text("old")
    expected = VitlensError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught, atomic(path) as temporary:
        (temporary / "part" if temporary.is_dir() else temporary).write_text("half")
        raise failure
    if isinstance(failure, OSError):
        assert str(caught.value) == f"Could not write {path}: No space left."
    assert names(tmp_path) == ["kept"]
    assert path.is_dir() or path.read_text() == "old"


def test_our_own_errors_pass_unchanged(tmp_path):
    with pytest.raises(NetworkError, match="offline"), atomic_path(tmp_path / "file"):
        raise NetworkError("offline")


def test_atomic_folder_replaces_its_own_files_only(tmp_path):
    folder = tmp_path / "saes"
    for layers in (2, 2, 3):
        with atomic_folder(folder) as temporary:
            for layer in range(layers):
                (temporary / f"layer_{layer}").write_text(str(layers))
        assert names(folder) == [f"layer_{layer}" for layer in range(layers)]
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(VitlensError, match=r"thesis\.tex"), atomic_folder(folder) as temporary:
        for layer in range(3):
            (temporary / f"layer_{layer}").write_text("new")
    assert names(tmp_path) == ["saes"]
    assert (folder / "thesis.tex").read_text() == "precious"
    assert (folder / "layer_0").read_text() == "3"


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old(tmp_path, monkeypatch):
    folder, rename = tmp_path / "saes", Path.rename
    with atomic_folder(folder) as temporary:
        (temporary / "layer").write_text("old")

    def failing(self, target):
        if (self / "layer").read_text() == "new":
            raise OSError(errno.ENOSPC, "No space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(VitlensError, match="No space left"), atomic_folder(folder) as temporary:
        (temporary / "layer").write_text("new")
    assert (folder / "layer").read_text() == "old"
    assert names(tmp_path) == ["saes"]


def test_atomic_folder_on_a_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(VitlensError, match="is a file"), atomic_folder(tmp_path / "file"):
        pass
    assert names(tmp_path) == ["file"]


def test_full_disk(tmp_path):
    tensors = {"weights": torch.zeros(10_000)}
    for write in (
        lambda path: write_tensors(path, tensors, {}),
        lambda path: write_json(path, list(range(10_000))),
    ):
        with small_disk(), pytest.raises(VitlensError, match=r"Could not write .*big"):
            write(tmp_path / "big")
        assert names(tmp_path) == []


def test_full_disk_noticed_only_when_flushing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda path: write_tensors(path, {}, {}), lambda path: write_json(path, 1)):
        with pytest.raises(VitlensError, match="No space left on device"):
            write(tmp_path / "file")
        assert names(tmp_path) == []


def test_interrupt_from_the_keyboard(tmp_path):
    program = (
        "import signal, sys, time; from vitlens.io import atomic_path\n"
        # A shell's background job, as these tests may be, has its children ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "file"], stdout=subprocess.PIPE, stderr=-1
    )
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert names(tmp_path) == []


def test_tensors_and_metadata_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "double": torch.randn(2, 3, dtype=torch.float64),
        "view": base[:, 1:3],
        "transposed": base.T,
        "row": base[0],
        "tied": base,
        "tied too": base,
        "scalar": torch.tensor(3, dtype=torch.int8),
        "none": torch.zeros(0, 4),
        "brain": torch.randn(3).to(torch.bfloat16),
        "leaf": torch.nn.Parameter(torch.ones(2)),
    }
    metadata = {"k": [1, 2], "name": "é", "nested": {"x": None}}
    write_tensors(tmp_path / "file.safetensors", tensors, metadata)
    read, read_metadata = read_tensors(tmp_path / "file.safetensors")
    assert read_metadata == metadata
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_metadata_that_json_cannot_hold_writes_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_tensors(tmp_path / "file", {}, {"tensor": torch.zeros(1)})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", torch.zeros(1))
    assert names(tmp_path) == []


def test_safetensors_of_another_program(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "foreign.safetensors", {"format": "pt"})
    tensors, metadata = read_tensors(tmp_path / "foreign.safetensors")
    assert torch.equal(tensors["w"], torch.ones(2))
    assert metadata == {}


@pytest.mark.parametrize("metadata", ["not json", "[1]"])
def test_damaged_metadata(tmp_path, metadata):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "file", {"vitlens": metadata})
    with pytest.raises(CheckpointError, match="metadata"):
        read_tensors(tmp_path / "file")


def test_pickles_are_named_as_such(tmp_path):
    path = tmp_path / "model.pth"
    for save in (
        lambda: torch.save({"w": torch.ones(3)}, path),
        lambda: torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps({"w": [1.0, 2.0]})),
    ):
        save()
        with pytest.raises(CheckpointError, match=r"model\.pth is a pickle.*safetensors instead"):
            read_tensors(path)


@pytest.mark.parametrize(
    ("keep", "message"),
    [(0, "is empty"), (5, "is not a safetensors"), (30, "header is cut off"), (-3, "truncated")],
)
def test_truncated_safetensors(tmp_path, keep, message):
    path = tmp_path / "cut.safetensors"
    write_tensors(path, {"w": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world, this is text", "not a safetensors"),
        ((2).to_bytes(8, "little") + b"{]", "damaged header"),
        ((16).to_bytes(8, "little") + b'{"w": {"x": 12}}', "damaged header"),
        ((10).to_bytes(8, "little") + b'{"w": "a"}', "damaged header"),
    ],
)
def test_foreign_and_damaged_files(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / "file")


def test_missing_files(tmp_path):
    for read in (read_tensors, read_json):
        with pytest.raises(CheckpointError, match="There is no file"):
            read(tmp_path / "nowhere")
        with pytest.raises(CheckpointError, match="There is no file"):
            read(tmp_path)


def test_json(tmp_path):
    write_json(tmp_path / "file.json", {"name": "é", "values": [1, 2.5, None]})
    assert read_json(tmp_path / "file.json") == {"name": "é", "values": [1, 2.5, None]}
    for damaged in (b'{"name": ', b"\xff\xfe"):
        (tmp_path / "file.json").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read as JSON"):
            read_json(tmp_path / "file.json")


def test_fingerprint_is_the_hash_of_names_dtypes_shapes_and_bytes():
    tensors = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(7, dtype=torch.int16)}
    by_hand = b"a|torch.int16|()|\x07\x00b|torch.float32|(2,)|\x00\x00\x80\x3f\x00\x00\x00\x40"
    assert fingerprint(tensors) == hashlib.sha256(by_hand).hexdigest()[:16]
    assert fingerprint(dict(reversed(tensors.items()))) == fingerprint(tensors)


def test_fingerprint_with_facts_adds_them_as_json():
    tensors = {"a": torch.tensor(7, dtype=torch.int16)}
    by_hand = b'a|torch.int16|()|\x07\x00{"k": 3, "z": [null]}'
    found = fingerprint(tensors, {"z": [None], "k": 3})
    assert found == hashlib.sha256(by_hand).hexdigest()[:16]
    assert found != fingerprint(tensors)


def test_fingerprint_sees_every_change():
    weights = torch.arange(6.0).reshape(2, 3)
    variants = [
        {"w": weights},
        {"v": weights},
        {"w": weights.double()},
        {"w": weights.reshape(3, 2)},
        {"w": weights.T},
        {"w": weights + torch.tensor([0, 0, 1e-6])},
        {"w": weights, "none": torch.zeros(0)},
        {"w": weights.to(torch.bfloat16)},
    ]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mamal", " Did you mean 'Mammal'?"),
        ("flour", " Did you mean 'floor' or 'flower'?"),
        ("zzz", ""),
    ],
)
def test_near_matches(name, expected):
    assert near_matches(name, ["Mammal", "flower", "floor", "bird"]) == expected


def test_near_matches_names_three():
    assert near_matches("aaa", ["aaa1", "aaa2", "aaa3"]).count("'aaa") == 3


def test_written_tensors_can_be_read_by_others(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "a.safetensors").stat().st_mode == expected


def test_checking_a_folder_loads_nothing_slow():
    program = "import sys; from vitlens.io import check_folder; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "False"


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(VitlensError, match="file is a file"):
            check_folder(path)
    check_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == ["file"]


IDENTITY = {
    "model": "0123",
    "settings": {"rate": 0.1, "size": None},
    "number of images": 14,
    "first image": None,
}


def a_run(out, **changes):
    return ResumableRun(out, "test run", {**IDENTITY, **changes})


def test_a_run_finds_its_state_again(tmp_path):
    run = a_run(tmp_path / "out")
    assert run.load() is None
    run.save({"x": torch.arange(3)}, {"step": 2, "seen": [1, 5]})
    assert names(tmp_path) == ["out.partial"]
    tensors, state = a_run(tmp_path / "out", **{"first image": "known now"}).load()
    assert torch.equal(tensors["x"], torch.arange(3)) and state == {"step": 2, "seen": [1, 5]}
    run.remove()
    run.remove()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "4567"}, r"belongs to another test run. What differs: model\. Choose"),
        ({"settings": {"rate": 0.2, "size": None}}, r"differs: rate 0\.1 \(now 0\.2\)\."),
        ({"settings": {"rate": 0.1, "size": 3}}, r"differs: size None \(now 3\)\."),
        ({"settings": {"rate": 0.1, "size": None, "more": 1}}, r"differs: more None \(now 1\)"),
        ({"number of images": 13, "model": "4"}, r"model, number of images 14 \(now 13\)"),
    ],
)
def test_a_state_or_result_of_another_run_is_refused(tmp_path, changes, message):
    mine, other = a_run(tmp_path / "out"), a_run(tmp_path / "out", **changes)
    mine.save({}, {})
    with pytest.raises(CheckpointError, match=message):
        other.load()
    with pytest.raises(CheckpointError, match=message):
        other.check(mine.stamp(), "result")
    mine.check(mine.stamp(), "result")


def test_a_state_of_another_kind_of_run_is_refused(tmp_path):
    a_run(tmp_path / "out").save({}, {})
    other = ResumableRun(tmp_path / "out", "other run", IDENTITY)
    with pytest.raises(CheckpointError, match="was made by test run, not by other run"):
        other.load()
    for nothing in (None, [], {"kind": "other run"}):
        with pytest.raises(CheckpointError, match=r"result was (not )?made by"):
            other.check(nothing, "result")
    write_tensors(other.path, {}, {"format": "something else"})
    with pytest.raises(CheckpointError, match="does not hold the state of a run"):
        other.load()
    other.path.write_bytes(b"nothing of use")
    with pytest.raises(CheckpointError, match=r"out\.partial is not a safetensors"):
        other.load()


def test_a_run_saves_when_due_and_when_it_is_cut_short(tmp_path):
    run = ResumableRun(tmp_path / "out", "test run", IDENTITY, seconds=0.0)
    saved, steps = [], []
    run.save = lambda tensors, state: saved.append(state["step"])

    def state():
        return ({}, {"step": steps[-1]}) if steps else None

    with run.saving(state) as save_if_due:
        save_if_due()  # nothing to save yet
        for step in range(3):
            steps.append(step)
            save_if_due()
    assert saved == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt), run.saving(state) as save_if_due:
        steps.append(3)
        raise KeyboardInterrupt
    assert saved == [0, 1, 2, 3]
    late = a_run(tmp_path / "late")
    with late.saving(state) as save_if_due:
        save_if_due()  # not yet
    assert names(tmp_path) == []


def test_two_runs_do_not_write_one_output(tmp_path):
    with a_run(tmp_path / "out").writing():
        with (
            pytest.raises(VitlensError, match="Another run is writing"),
            a_run(tmp_path / "out").writing(),
        ):
            pass
        with a_run(tmp_path / "other").writing():
            pass
    with a_run(tmp_path / "out").writing():
        pass
    assert names(tmp_path) == []


def test_the_state_lies_next_to_its_output(tmp_path, monkeypatch):
    assert partial_path("a/saes") == partial_path("a/saes/") == Path("a/saes.partial")
    monkeypatch.chdir(tmp_path)
    assert partial_path(".") == tmp_path.with_name(f"{tmp_path.name}.partial")
    with pytest.raises(VitlensError, match="is a file"):
        (tmp_path / "file").write_text("")
        a_run(tmp_path / "file" / "out")
