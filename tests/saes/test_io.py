"""SAEs of every kind, at any layers, come back from disk exactly; damaged files are refused."""

import errno
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tests.builders import KINDS, sae_of_kind, tiny_model
from vitlens.errors import CheckpointError, VitlensError
from vitlens.io import read_tensors, write_tensors
from vitlens.models.vision import VisionModel
from vitlens.saes import SAE, TopKSAE, load_sae, load_saes, save_sae, save_saes
from vitlens.saes.io import fingerprint_of_saes, resolve_saes

WIDTH = 6


def make_sae(n_features, k, width=WIDTH, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return TopKSAE.from_weights(
        W_enc=torch.randn(width, n_features, generator=generator, dtype=dtype),
        W_dec=torch.randn(n_features, width, generator=generator, dtype=dtype),
        b_dec=torch.randn(width, generator=generator, dtype=dtype),
        k=k,
    )


def make_saes():
    return [make_sae(4, 1), make_sae(9, 3, seed=1), make_sae(12, 2, seed=2)]


def assert_equal(first, second):
    assert type(first) is type(second)
    assert first.settings() == second.settings()
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_sae_round_trip(tmp_path, dtype):
    sae = make_sae(5, 2, dtype=dtype)
    save_sae(sae, tmp_path / "sae.safetensors", {"model": "tiny"})
    assert_equal(load_sae(tmp_path / "sae.safetensors", dtype=dtype), sae)


@pytest.mark.parametrize("normalization", ["layer", "none", "fixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_round_trip(tmp_path, kind, normalization):
    for b_enc, subtract_b_dec in ((True, False), (False, True)):
        sae = sae_of_kind(
            kind,
            normalization=normalization,
            b_enc=b_enc,
            subtract_b_dec=subtract_b_dec,
            dtype=torch.float64,
        )
        save_sae(sae, tmp_path / "sae.safetensors")
        loaded = load_sae(tmp_path / "sae.safetensors", dtype=torch.float64)
        assert_equal(loaded, sae)
        save_saes({3: sae}, tmp_path / "saes")
        assert_equal(load_saes(tmp_path / "saes", dtype=torch.float64)[3], sae)
        x = torch.randn(2, 10, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.equal(loaded.encode(x), sae.encode(x))


def test_folder_round_trip(tmp_path):
    saes = make_saes()
    save_saes(saes, tmp_path / "saes", metadata={"note": "µ"})
    for (layer, loaded), sae in zip(load_saes(str(tmp_path / "saes")).items(), saes, strict=True):
        assert_equal(loaded, sae)
        assert sae is saes[layer]
    assert sorted(path.name for path in (tmp_path / "saes").iterdir()) == [
        "layer_00.safetensors",
        "layer_01.safetensors",
        "layer_02.safetensors",
        "manifest.json",
    ]
    manifest = json.loads((tmp_path / "saes" / "manifest.json").read_text())
    assert manifest["metadata"] == {"note": "µ"}
    assert [(entry["layer"], entry["n_features"], entry["k"]) for entry in manifest["layers"]] == [
        (0, 4, 1),
        (1, 9, 3),
        (2, 12, 2),
    ]


def test_any_layers_can_be_saved(tmp_path):
    a, b, c = make_saes()
    save_saes({5: b, 2: a, 110: c}, tmp_path)
    loaded = load_saes(tmp_path)
    assert list(loaded) == [2, 5, 110]
    for found, sae in zip(loaded.values(), (a, b, c), strict=True):
        assert_equal(found, sae)
    for layers in ({-1: a}, {"2": a}, {True: a}, {1.5: a}):
        with pytest.raises(CheckpointError, match="A layer must be the number of a block"):
            save_saes(layers, tmp_path)


def test_half_precision_on_disk_is_single_precision_in_memory(tmp_path):
    saes = make_saes()
    save_saes(saes, tmp_path / "half", dtype=torch.float16)
    save_saes(saes, tmp_path / "single")
    for loaded, sae in zip(load_saes(tmp_path / "half").values(), saes, strict=True):
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
    (tmp_path / "layer_notes.txt").touch()
    save_saes(make_saes()[:2], tmp_path)
    assert list(load_saes(tmp_path)) == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "layer_00.safetensors",
        "layer_01.safetensors",
        "layer_notes.txt",
        "manifest.json",
    ]


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
    with pytest.raises(CheckpointError, match=r"different widths, by layer \{0: 6, 1: 7\}"):
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


def test_changed_settings_are_noticed(tmp_path):
    save_saes(make_saes(), tmp_path)
    path = tmp_path / "layer_01.safetensors"
    tensors, header = read_tensors(path)
    header["settings"]["k"] = 2
    write_tensors(path, tensors, header)
    with pytest.raises(CheckpointError, match="is not the file that manifest"):
        load_saes(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "gated"}, "no SAE of kind 'gated'; known kinds are topk, "),
        ({"kind": "topk", "k": 2, "colour": 1}, "do not fit an SAE of kind 'topk'"),
        ({"kind": "topk"}, "do not fit an SAE of kind 'topk'"),
        ({"kind": "topk", "k": "2"}, "whole number"),
        ({"kind": ["topk"], "k": 2}, "no SAE of kind"),
        ({"kind": "matryoshka", "groups": "abc"}, "missing: .'threshold'."),
        ({"kind": "jumprelu"}, "missing: .'threshold'."),
        ({"kind": "topk", "k": 2, "normalization": "batch"}, "normalization must be one of layer"),
        ([], "lacks the settings"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    path = tmp_path / "sae.safetensors"
    save_sae(make_sae(4, 1), path)
    tensors, header = read_tensors(path)
    write_tensors(path, tensors, {**header, "settings": settings})
    with pytest.raises(VitlensError, match=message):
        load_sae(path)


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
        (lambda path: save_file({"weight": torch.zeros(2)}, path), "does not hold an SAE"),
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


HEAD = '{"format": "vitlens-saes", "version": 1, '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a manifest"),
        ('{"format": "vitlens-saes", "layers": []}', "of format None; .* reads format 1"),
        (HEAD + '"layers": [], "metadata": {}}', "damaged"),
        (HEAD + '"layers": [{}], "metadata": {}}', "damaged"),
        (
            HEAD + '"layers": [{"layer": 0, "file": "../layer_00.safetensors",'
            ' "fingerprint": ""}], "metadata": {}}',
            "damaged",
        ),
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


def test_saes_of_a_model_in_every_form(tmp_path):
    vision = VisionModel(tiny_model(depth=4))
    a, b, c = (make_sae(5, 2, width=24, seed=seed) for seed in range(3))
    for given in ([a, b, c], (a, b, c), iter([a, b, c]), {2: c, 0: a, 1: b}):
        assert resolve_saes(given, vision) == ((0, 1, 2), (a, b, c))
    assert resolve_saes({3: b, 1: a}, vision) == ((1, 3), (a, b))
    save_saes({3: b, 1: a}, tmp_path)
    for folder in (tmp_path, str(tmp_path)):
        layers, saes = resolve_saes(folder, vision)
        assert layers == (1, 3)
        assert_equal(saes[1], b)
    assert resolve_saes({3: b, 1: a}, vision, [3]) == ((3,), (b,))
    assert resolve_saes([a, c], vision, (1, 3)) == ((1, 3), (a, c))
    for given, layers, message in [
        ({3: b, 1: a}, [2], r"no SAE for layer 2; there are SAEs for \[1, 3\]"),
        ([a, b, c], (1, 3), r"3 SAEs for the 2 layers \[1, 3\]"),
        ({3: b}, (3, 3), "must be ascending, each given once"),
        ([a, c], (3, 1), "must be ascending"),
        ({3: b}, (), "At least one layer"),
        ({3: b}, (4,), "no layer 4"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            resolve_saes(given, vision, layers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda sae, wide: [sae, sae], "4 blocks, so a list must hold 3 SAEs.*it holds 2"),
        (lambda sae, wide: sae, "must hold 3 SAEs.*it holds 1"),
        (lambda sae, wide: {0: sae, 4: sae}, "no layer 4: its 4 blocks are 0 to 3"),
        (lambda sae, wide: {}, "At least one SAE is needed"),
        (lambda sae, wide: [sae, "sae", sae], "got str instead of an SAE"),
        (lambda sae, wide: {1: None}, "got NoneType"),
        (lambda sae, wide: {1: sae, 3: wide}, "SAE of layer 3 has width 25, the model 24"),
    ],
)
def test_saes_that_do_not_fit_a_model(given, message):
    vision = VisionModel(tiny_model(depth=4))
    saes = given(make_sae(5, 2, width=24), make_sae(5, 2, width=25))
    with pytest.raises(CheckpointError, match=message):
        resolve_saes(saes, vision)


def test_the_fingerprint_covers_layers_kinds_settings_and_tensors():
    sae = make_sae(5, 2)
    tensors = sae.state_dict()
    others = [
        SAE.from_tensors(tensors, {"kind": "topk", "k": 3}),
        SAE.from_tensors(tensors, {"kind": "topk", "k": 2, "budget": 4}),
        SAE.from_tensors(tensors, {"kind": "relu"}),
        SAE.from_tensors(tensors, {"kind": "topk", "k": 2, "normalization": "none"}),
        make_sae(5, 2, seed=1),
    ]
    found = [fingerprint_of_saes((2,), (one,)) for one in (sae, *others)]
    found += [fingerprint_of_saes((3,), (sae,)), fingerprint_of_saes((2, 3), (sae, sae))]
    assert len(set(found)) == len(found)
    copy = SAE.from_tensors(tensors, sae.settings())
    assert fingerprint_of_saes((2,), (copy,)) == found[0]
