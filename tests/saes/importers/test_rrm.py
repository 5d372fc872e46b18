import os
import pickle
import sys
import zipfile

import pytest
import torch

from vitlens.errors import CheckpointError, NetworkError
from vitlens.saes import load_saes
from vitlens.saes.importers.rrm import RELEASES, load_rrm

WIDTH = 8


def weights(ratio, width=WIDTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = round(ratio * width)
    return {
        "b_dec": torch.randn(width, generator=generator),
        "b_enc": torch.full((size,), torch.nan),  # must not be used
        "W_enc": torch.randn(width, size, generator=generator),
        "W_dec": torch.randn(size, width, generator=generator),
    }


def write(folder, k, ratio, layer, epoch=50, **changes):
    path = folder / f"K{k}_R{float(ratio)}" / f"L{layer}" / f"epoch{epoch}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "epoch": epoch,
        "model_state_dict": weights(ratio, seed=100 * layer + epoch),
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{}]},
    }
    torch.save({**content, **changes}, path)
    return path


def test_each_layer_comes_from_its_own_folder_and_last_epoch(tmp_path):
    write(tmp_path, 2, 0.5, 0)
    write(tmp_path, 3, 1, 1, epoch=9)
    write(tmp_path, 3, 1, 1, epoch=10)
    write(tmp_path, 2, 0.5, 2)
    for saes in (load_rrm(tmp_path), load_saes(tmp_path)):
        assert {layer: (sae.d_model, sae.n_features, sae.k) for layer, sae in saes.items()} == {
            0: (8, 4, 2),
            1: (8, 8, 3),
            2: (8, 4, 2),
        }
        expected = [weights(0.5, seed=50), weights(1, seed=110), weights(0.5, seed=250)]
        for layer, sae in saes.items():
            for name in ("W_enc", "W_dec", "b_dec"):
                assert torch.equal(getattr(sae, name), expected[layer][name])
            assert sae.b_enc is None
    assert load_saes(tmp_path, dtype=torch.float64)[0].W_enc.dtype == torch.float64


@pytest.mark.parametrize("model", RELEASES)
def test_tables_of_the_paper(tmp_path, model):
    release = RELEASES[model]
    assert len(release.k) == len(release.ratio) == 11
    for layer, (k, ratio) in enumerate(zip(release.k, release.ratio, strict=True)):
        content = {"model_state_dict": weights(ratio, width=160)}
        path = tmp_path / f"K{k}_R{float(ratio)}" / f"L{layer}" / "epoch50.pth"
        path.parent.mkdir(parents=True)
        torch.save(content, path)
    write(tmp_path, 5, 1, 3)  # another run of layer 3
    saes = load_rrm(tmp_path, model=model)
    assert [sae.k for sae in saes.values()] == list(release.k)
    assert [sae.n_features / 160 for sae in saes.values()] == list(release.ratio)
    with pytest.raises(CheckpointError, match="several SAEs for layer 3"):
        load_rrm(tmp_path)
    named = tmp_path.parent / release.hub_name.split("/")[1]
    tmp_path.rename(named)  # a folder named like the repository needs no model=
    assert len(load_saes(named)) == 11
    named.rename(tmp_path)


def test_paper_figures_are_typed_in_right():
    """(K, R) of ViT-B/16, typed in once more, layer by layer."""
    release = RELEASES["vit_base_patch16_224"]
    assert list(zip(release.k, release.ratio, strict=True)) == [
        (4, 0.25), (32, 0.5), (64, 1), (96, 2), (96, 2), (128, 2),
        (128, 4), (160, 4), (160, 4), (160, 4), (128, 2),
    ]  # fmt: skip


def test_a_release_must_be_complete_and_other_folders_give_the_layers_they_have(tmp_path):
    write(tmp_path, 2, 0.5, 0)
    write(tmp_path, 2, 0.5, 2)
    assert list(load_rrm(tmp_path)) == list(load_saes(tmp_path)) == [0, 2]
    with pytest.raises(CheckpointError, match=r"lacks K4_R0\.25/L0, K16_R0\.25/L1"):
        load_rrm(tmp_path, model="dinov2_vitb14_reg_lc")


def test_wrong_layout(tmp_path):
    (tmp_path / "K4/L0").mkdir(parents=True)
    torch.save({}, tmp_path / "K4/L0/epoch1.pth")
    with pytest.raises(CheckpointError, match=r"expected K\{K\}_R\{R\}/L\{layer\}/epoch\{n\}\.pth"):
        load_rrm(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected manifest\.json .*K\{K\}_R\{R\}"):
        load_saes(tmp_path)


def test_unknown_model(tmp_path):
    write(tmp_path, 2, 0.5, 0)
    with pytest.raises(CheckpointError, match="Did you mean 'vit_base_patch16_224'"):
        load_rrm(tmp_path, model="vit_base_patch16_244")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def code_in_a_zip(path):
    """Put code into a file that otherwise looks as `torch.save` wrote it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(
                name, pickle.dumps(Bomb(), protocol=2) if name.endswith("data.pkl") else data
            )


def change(**changes):
    def damage(path):
        content = torch.load(path, weights_only=True)
        content["model_state_dict"].update(changes)
        torch.save(content, path)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps(Bomb(), protocol=2)), "could run any code"),
        (code_in_a_zip, "could run any code"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"GIF89a, certainly"), "damaged"),
        (lambda path: torch.save({"weight": torch.zeros(2)}, path), "expected 'model_state_dict'"),
        (lambda path: torch.save([torch.zeros(2)], path), "expected 'model_state_dict'"),
        (change(W_enc=None), "expected 'model_state_dict'"),
        (change(W_enc=torch.zeros(3, 4)), r"Expected W_enc \[D, F\]"),
        (change(b_dec=torch.full((WIDTH,), torch.inf)), "not finite"),
        (change(**weights(1)), r"has 8 features at width 8, but its folder says R0\.5"),
        (change(**weights(0.5, width=6)), "different widths"),
    ],
)
def test_damaged_and_foreign_files(tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "release"
    write(folder, 2, 0.5, 0)
    damage(write(folder, 2, 0.5, 1))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_saes(folder)
    assert "different widths" in message or "L1/epoch50.pth" in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("load", [load_saes, load_rrm])
def test_hub_name_without_network(load):
    with pytest.raises(NetworkError, match="pass a local folder"):
        load("timespt/topksae-vit-base-patch16-224")


def test_hub_name_without_the_hub_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(NetworkError, match=r"pip install 'vitlens\[hub\]'`, or pass a local"):
        load_saes("timespt/topksae-vit-base-patch16-224")


def test_hub_downloads_only_what_is_needed_and_once(tmp_path, monkeypatch):
    import huggingface_hub

    model = "dinov2_vitb14_reg_lc"
    release, listed = RELEASES[model], ["README.md", "K5_R1.0/L3/epoch50.pth"]
    for layer, (k, ratio) in enumerate(zip(release.k, release.ratio, strict=True)):
        path = tmp_path / f"K{k}_R{float(ratio)}" / f"L{layer}" / "epoch50.pth"
        path.parent.mkdir(parents=True)
        torch.save({"model_state_dict": weights(ratio, width=160)}, path)
        listed += [f"K{k}_R{float(ratio)}/L{layer}/epoch{n}.pth" for n in (10, 50)]
    fetched = []

    def download(name, path):
        assert name == release.hub_name
        fetched.append(path)
        return str(tmp_path / path)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: listed)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert [sae.k for sae in load_saes(release.hub_name).values()] == list(release.k)
    assert len(fetched) == 11

    def offline(name):
        raise TimeoutError

    def cached(name, *, local_files_only):
        assert local_files_only
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert len(load_saes(release.hub_name)) == 11
    assert len(fetched) == 11
    assert all(path.endswith("epoch50.pth") for path in fetched)


@pytest.mark.parametrize("name", ["nothing-here", "a/b/c", "./a/b", "a b/c"])
def test_neither_folder_nor_hub_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="There is no folder"):
        load_saes(name)
