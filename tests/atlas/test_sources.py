"""Images from folders, lists, data sets, iterables and shards; what cannot be read is reported."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.atlas_by_hand import photograph
from tests.builders import tiny_image, tiny_lens
from vitlens.atlas.build import build_state
from vitlens.atlas.image_store import decode
from vitlens.errors import ImageError, TargetError


@pytest.fixture(scope="module")
def lens():
    return tiny_lens()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for number, name in enumerate(["bird/a.png", "bird/b.jpg", "fruit/a.png", "fruit/deep/c.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number).save(path)
    return root


def build(lens, images, **options):
    return build_state(lens, images, **{"batch_size": 4, "progress": False} | options)


def records(state):
    return {record.key: record for record in state.images.values()}


def test_a_folder_of_class_folders(lens, folder):
    state = build(lens, folder)
    assert state.labels_from == "data"
    assert state.class_names == lens.class_names
    found = {key: (r.label, r.path) for key, r in records(state).items()}
    assert found == {
        "bird/a.png": (0, str(folder / "bird/a.png")),
        "bird/b.jpg": (0, str(folder / "bird/b.jpg")),
        "fruit/a.png": (2, str(folder / "fruit/a.png")),
        "fruit/deep/c.png": (2, str(folder / "fruit/deep/c.png")),
    }
    assert state.per_class.tolist() == [2, 0, 2, 0, 0]


def test_class_folders_the_model_does_not_know(lens, folder):
    (folder / "fruit").rename(folder / "apple")
    state = build(lens, folder)
    assert state.class_names == ("apple", "bird")
    assert state.per_class.tolist() == [2, 2]


def test_a_folder_without_classes_takes_predictions(lens, folder):
    photograph(9).save(folder / "loose.png")
    state = build(lens, folder)
    assert state.labels_from == "predictions"
    for record in state.images.values():
        assert lens.class_names[record.label] == lens.predict(record.path)[0][0]
    assert build(lens, folder / "bird").labels_from == "predictions"


def test_predictions_can_be_asked_for(lens, folder):
    assert build(lens, folder, labels="predictions").labels_from == "predictions"


def test_labels_given_in_any_way(lens, folder):
    names = {"bird/a.png": "mammal", "bird/b.jpg": None, "fruit/a.png": "vehicle"}
    by_key = build(lens, folder, labels=names)
    assert by_key.class_names == lens.class_names
    expected = {"bird/a.png": 1, "bird/b.jpg": -1, "fruit/a.png": 4, "fruit/deep/c.png": -1}
    assert {key: r.label for key, r in records(by_key).items()} == expected
    for given in (names.get, ["mammal", None, "vehicle", None], [1, None, 4, None]):
        assert {
            k: r.label for k, r in records(build(lens, folder, labels=given)).items()
        } == expected
    own = build(lens, folder, labels=["x", "y", "x", None])
    assert (own.class_names, own.per_class.tolist()) == (("x", "y"), [2, 1])


def test_a_list_of_files_and_folders(lens, folder):
    state = build(lens, [folder / "fruit", str(folder / "bird/a.png"), folder / "fruit/a.png"])
    assert set(records(state)) == {"bird/a.png", "fruit/a.png", "fruit/deep/c.png"}
    assert state.skipped == (("fruit/a.png", "listed more than once"),)
    assert state.labels_from == "predictions"


def test_images_of_every_kind(lens, tmp_path):
    """The features are those of `lens.trace`, which is tested on these kinds itself."""
    wide = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(1).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    clear = photograph(2)
    clear.putalpha(128)
    kinds = [
        photograph(3, mode="CMYK"),
        photograph(4, mode="L"),
        photograph(5, mode="P"),
        photograph(6, (300, 20)),
        photograph(6, (1, 1)),
        wide,
        clear,
        tmp_path / "turned.jpg",
        np.asarray(photograph(7)),
        torch.from_numpy(np.asarray(photograph(8)).copy()).permute(2, 0, 1),
        tiny_image(9),
    ]
    state = build(lens, kinds, groups=lambda key: key)
    assert state.skipped == ()
    for layer, found in enumerate(state.layer_states):
        peaks = torch.stack([lens.trace(kind).features[layer].amax(0) for kind in kinds])
        assert torch.allclose(found.top.peak[:, 0], peaks.amax(0), rtol=1e-4, atol=1e-5)
    by_key = records(state)
    assert (by_key["7"].width, by_key["7"].height) == (30, 40)
    assert (by_key["3"].width, by_key["3"].height) == (300, 20)
    for key, kind in enumerate(kinds[:-1]):
        stored = np.asarray(decode(by_key[str(key)].thumbnail), dtype=float)
        seen = lens.pixels(kind).numpy().astype(float)
        assert stored.shape == seen.shape
        assert abs(stored - seen).mean() < 12


def test_unreadable_images_are_skipped_and_listed(lens, folder):
    (folder / "bird/empty.jpg").touch()
    (folder / "bird/text.png").write_text("no image")
    whole = (folder / "bird/b.jpg").read_bytes()
    (folder / "fruit/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "fruit/notes.txt").write_text("not listed: no image by name")
    state = build(lens, folder)
    assert state.n_images == 4
    assert [key for key, _ in state.skipped] == ["bird/empty.jpg", "bird/text.png", "fruit/cut.jpg"]
    assert "is empty" in state.skipped[0][1]
    assert "not an image" in state.skipped[1][1]
    assert "cannot be read" in state.skipped[2][1]
    assert str(folder) not in str(state.skipped)  # an atlas may travel


def test_a_skipped_image_changes_no_other(lens, folder, tmp_path):
    plain = build(lens, folder)
    (folder / "bird/aa.png").touch()
    holed = build(lens, folder)
    for one, other in zip(plain.layer_states, holed.layer_states, strict=True):
        assert torch.equal(one.sums.position, other.sums.position)
        assert torch.equal(one.top.peak, other.top.peak)


@pytest.mark.parametrize("images", ["nothing", [], (), np.zeros((0, 8, 8, 3), np.uint8)])
def test_no_images_is_an_error(lens, images, tmp_path):
    if isinstance(images, str):
        images = tmp_path / images
        images.mkdir()
    with pytest.raises(ImageError, match="no image"):
        build(lens, images)


def test_empty_streams_are_an_error(lens):
    with pytest.raises(ImageError, match="iterable is empty"):
        build(lens, iter([]))


def test_what_is_no_source(lens, tmp_path):
    with pytest.raises(ImageError, match="no file or folder"):
        build(lens, tmp_path / "missing")
    with pytest.raises(ImageError, match="not int"):
        build(lens, 3)


def test_a_folder_of_which_nothing_can_be_read(lens, tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageError, match=r"None of the 1 images could be read. The first, a.jpg"):
        build(lens, tmp_path)


def test_tensors_of_another_size_are_refused(lens):
    with pytest.raises(ImageError, match=r"\[3, 24, 24\]"):
        build(lens, [torch.zeros(3, 32, 32)])


class Shapes(Dataset):
    """A map-style data set of images with labels, one of which cannot be read."""

    classes = ("fruit", "bird")
    scenes = ("x", "x", "y", "y", "z")

    def __len__(self):
        return 5

    def __getitem__(self, number):
        if not 0 <= number < 5:
            raise IndexError(number)
        if number == 3:
            raise OSError("the disk is gone")
        return photograph(number), torch.tensor(number % 2)


class Stream(IterableDataset):
    def __iter__(self):
        for number in range(5):
            yield {"image": photograph(number), "label": np.int64(number % 2)}


def test_a_data_set(lens):
    state = build(lens, Shapes(), groups="scenes", credits=lambda key: f"by {key}")
    assert {key: r.label for key, r in records(state).items()} == {"0": 2, "1": 0, "2": 2, "4": 2}
    assert state.skipped == (("3", "OSError: the disk is gone"),)
    assert records(state)["2"].credit == "by 2"
    assert len({r.group for r in state.images.values()}) == 3
    with pytest.raises(ImageError, match="no attribute"):
        build(lens, Shapes(), groups="rooms")


def test_iterables_and_loaders(lens):
    expected = build(lens, [(photograph(n), n % 2) for n in range(5)])
    tensors = [(lens.tensor(photograph(n)), n % 2) for n in range(5)]
    loader = DataLoader(tensors, batch_size=2)
    batch = torch.stack([tensor for tensor, _ in tensors])
    for images in (Stream(), ((photograph(n), n % 2) for n in range(5)), loader):
        state = build(lens, images)
        assert (state.n_images, state.labels_from) == (5, "data")
        assert torch.equal(state.per_class, expected.per_class)
        for one, other in zip(state.layer_states, expected.layer_states, strict=True):
            assert torch.equal(one.top.peak, other.top.peak)
    assert torch.equal(
        build(lens, batch).layer_states[0].top.peak, expected.layer_states[0].top.peak
    )


def test_pairs_of_path_and_label_have_the_path_as_key(lens, folder):
    pairs = [(folder / "bird/a.png", "bird"), (str(folder / "fruit/a.png"), "fruit")]
    assert {k: r.label for k, r in records(build(lens, pairs)).items()} == {
        "bird/a.png": 0,
        "fruit/a.png": 2,
    }


def test_labels_out_of_range_are_refused(lens):
    with pytest.raises(TargetError, match="class 7, but there are 5"):
        build(lens, [(photograph(0), 7)])
    with pytest.raises(TargetError, match="Did you mean 'bird'"):
        build(lens, [(photograph(0), "brid")])


def write_shard(path, samples):
    with tarfile.open(path, "w") as archive:
        for name, data in samples:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(seed):
    buffer = io.BytesIO()
    photograph(seed).save(buffer, "PNG")
    return buffer.getvalue()


def test_shards(lens, tmp_path):
    write_shard(
        tmp_path / "a-000.tar",
        [("s1.png", png(1)), ("s1.cls", b"2"), ("dir/s2.png", png(2)), ("dir/s2.cls", b"0")],
    )
    write_shard(
        tmp_path / "a-001.tar",
        [
            ("s1.seg.png", png(3)),
            ("s1.json", json.dumps({"label": "fruit"}).encode()),
            ("s9.txt", b"no image"),
            ("s2.jpg", b"broken"),
            ("s3.png", png(4)),
        ],
    )
    for given in (tmp_path, [tmp_path / "a-000.tar", tmp_path / "a-001.tar"]):
        state = build(lens, given)
        assert {key: r.label for key, r in records(state).items()} == {
            "a-000.tar/s1": 2,
            "a-000.tar/dir/s2": 0,
            "a-001.tar/s1": 2,
            "a-001.tar/s3": -1,
        }
        assert [key for key, _ in state.skipped] == ["a-001.tar/s2"]
    plain = build(lens, [photograph(n) for n in (1, 2, 3)] + [photograph(0)])
    assert plain.layer_states[0].top.peak[:, 0].shape == state.layer_states[0].top.peak[:, 0].shape
    peaks = [lens.trace(photograph(n)).features[0].amax(0) for n in (1, 2, 3, 4)]
    assert torch.allclose(
        state.layer_states[0].top.peak[:, 0], torch.stack(peaks).amax(0), rtol=1e-4
    )


def test_damaged_shards(lens, tmp_path):
    whole = write_shard(tmp_path / "a.tar", [(f"s{n}.png", png(n)) for n in range(4)]).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2 - 700])
    state = build(lens, cut)
    assert 0 < state.n_images < 4
    assert state.skipped
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ImageError, match="uncompressed tar"):
        build(lens, tmp_path / "no.tar")
    with pytest.raises(ImageError, match="cannot be mixed"):
        photograph(0).save(tmp_path / "b.png")
        build(lens, [tmp_path / "a.tar", tmp_path / "b.png"])
    with pytest.raises(ImageError, match="contain no image"):
        build(lens, write_shard(tmp_path / "empty.tar", [("a.txt", b"")]))


def test_a_model_without_classes(folder):
    from timm.models import VisionTransformer

    from vitlens.images import Transform
    from vitlens.lens import Lens

    tower = VisionTransformer(
        img_size=24, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=0
    )
    like = tiny_lens()
    lens = Lens(tower.eval(), like.saes, transform=Transform((24, 24), (0.5,) * 3, (0.5,) * 3))
    (folder / "loose.png").write_bytes((folder / "bird/a.png").read_bytes())
    state = build(lens, folder)
    assert (state.labels_from, state.class_names) == ("none", ("any",))
    assert state.per_class.tolist() == [5]
