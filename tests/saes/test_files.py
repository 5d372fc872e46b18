import errno
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from vitlens.errors import CheckpointError, VitlensError
from vitlens.saes import TopKSAE, load_sae, load_saes, save_sae, save_saes

WIDTH = 6


def make_sae(size, k, width=WIDTH, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return TopKSAE.from_weights(
        W_enc=torch.randn(width, size, generator=generator, dtype=dtype),
        W_dec=torch.randn(size, width, generator=generator, dtype=dtype),
        b_dec=torch.randn(width, generator=generator, dtype=dtype),
        k=k,
    )


def make_saes():
    return [make_sae(4, 1), make_sae(9, 3, seed=1), make_sae(12, 2, seed=2)]


def assert_equal(first, second):
    assert first.k == second.k
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_sae_round_trip(tmp_path, dtype):
    sae = make_sae(5, 2, dtype=dtype)
    save_sae(sae, tmp_path / "sae.safetensors", {"model": "tiny"})
    assert_equal(load_sae(tmp_path / "sae.safetensors", dtype=dtype), sae)


def test_folder_round_trip(tmp_path):
    saes = make_saes()
    save_saes(saes, tmp_path / "saes", metadata={"note": "µ"})
    for loaded, sae in zip(load_saes(str(tmp_path / "saes")), saes, strict=True):
        assert_equal(loaded, sae)
    assert sorted(path.name for path in (tmp_path / "saes").iterdir()) == [
        "layer_00.safetensors",
        "layer_01.safetensors",
        "layer_02.safetensors",
        "manifest.json",
    ]
    manifest = json.loads((tmp_path / "saes" / "manifest.json").read_text())
    assert manifest["metadata"] == {"note": "µ"}
    assert [(entry["size"], entry["k"]) for entry in manifest["layers"]] == [
        (4, 1),
        (9, 3),
        (12, 2),
    ]


def test_half_precision_on_disk_is_single_precision_in_memory(tmp_path):
    saes = make_saes()
    save_saes(saes, tmp_path / "half", dtype=torch.float16)
    save_saes(saes, tmp_path / "single")
    for loaded, sae in zip(load_saes(tmp_path / "half"), saes, strict=True):
        assert loaded.W_enc.dtype == torch.float32
        assert torch.equal(loaded.W_enc, sae.W_enc.half().float())
    sizes = [
        (tmp_path / name / "layer_02.safetensors").stat().st_size for name in ("half", "single")
    ]
    assert sizes[0] < sizes[1]


def test_overflow_in_half_precision_is_refused(tmp_path):
    sae = make_sae(4, 1)
    sae.W_enc[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="W_enc has values too large"):
        save_saes([sae], tmp_path / "saes", dtype=torch.float16)
    assert not list(tmp_path.rglob("*.*"))


def test_saving_again_replaces(tmp_path):
    save_saes(make_saes(), tmp_path)
    save_saes(make_saes()[:2], tmp_path)
    assert len(load_saes(tmp_path)) == 2


def test_disk_full_leaves_what_was_there(tmp_path, monkeypatch):
    save_saes(make_saes(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full_after_two(*args):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_after_two)
    with pytest.raises(VitlensError, match="No space left"):
        save_saes([make_sae(8, 2, seed=9) for _ in range(3)], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_mixed_widths(tmp_path):
    with pytest.raises(CheckpointError, match=r"different widths, layer by layer \[6, 7\]"):
        save_saes([make_sae(4, 1), make_sae(4, 1, width=7)], tmp_path / "mixed")
    with pytest.raises(CheckpointError, match="at least one"):
        save_saes([], tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_mixed_widths_on_disk(tmp_path):
    save_saes([make_sae(4, 1), make_sae(4, 1)], tmp_path / "a")
    save_saes([make_sae(4, 1, width=7)], tmp_path / "b")
    (tmp_path / "b/layer_00.safetensors").rename(tmp_path / "a/layer_01.safetensors")
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    other = json.loads((tmp_path / "b/manifest.json").read_text())
    manifest["layers"][1]["fingerprint"] = other["layers"][0]["fingerprint"]
    (tmp_path / "a/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="different widths"):
        load_saes(tmp_path / "a")


def test_exchanged_file(tmp_path):
    save_saes(make_saes(), tmp_path)
    (tmp_path / "layer_00.safetensors").replace(tmp_path / "layer_01.safetensors")
    with pytest.raises(CheckpointError, match=r"There is no file .*layer_00"):
        load_saes(tmp_path)
    save_saes(make_saes(), tmp_path)
    (tmp_path / "layer_02.safetensors").replace(tmp_path / "layer_01.safetensors")
    with pytest.raises(CheckpointError, match="is not the file that manifest"):
        load_saes(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "truncated"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"GIF89a, certainly"), "not a safetensors file"),
        (lambda path: path.write_bytes(pickle.dumps(Bomb())), "pickle"),
        (lambda path: torch.save({"W_enc": torch.zeros(2)}, path), "pickle"),
        (lambda path: save_file({"weight": torch.zeros(2)}, path), "not an SAE.*found weight"),
    ],
    ids=["truncated", "empty", "foreign", "pickle", "torch file", "other tensors"],
)
def test_damaged_layer(tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    save_saes(make_saes(), tmp_path / "saes")
    damage(tmp_path / "saes" / "layer_01.safetensors")
    with pytest.raises(CheckpointError, match=rf"layer_01\.safetensors.*{message}"):
        load_saes(tmp_path / "saes")
    with pytest.raises(CheckpointError, match=message):
        load_sae(tmp_path / "saes" / "layer_01.safetensors")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a manifest"),
        ('{"format": "vitlens-saes", "layers": [], "metadata": {}}', "damaged"),
        ('{"format": "vitlens-saes", "layers": [{}], "metadata": {}}', "damaged"),
    ],
)
def test_damaged_manifest(tmp_path, text, message):
    save_saes(make_saes(), tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_saes(tmp_path)


def test_no_such_place(tmp_path):
    with pytest.raises(CheckpointError, match="holds no SAEs: expected manifest"):
        load_saes(tmp_path)
    with pytest.raises(CheckpointError, match="There is no folder"):
        load_saes(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        load_saes(tmp_path / "file")
