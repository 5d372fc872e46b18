"""Images in groups, and the files they are read from."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from vitlens.debias import GroupedImages, load_groups, load_waterbirds
from vitlens.errors import GroupError


def write(folder: Path, name: str, rows: list[dict[str, object]], column: str) -> Path:
    """Write a CSV file, and a small image for each of its rows."""
    for row in rows:
        path = folder / str(row[column])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (10, 20, 30)).save(path)
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def waterbirds(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {
            "img_id": i + 1,
            "img_filename": f"001.Albatross/{i}.jpg",
            "y": i % 2,
            "split": i // 4 % 3,
            "place": i // 2 % 2,
            "place_filename": "/o/ocean/1.jpg",
        }
        for i in range(14)
    ]
    write(folder, "metadata.csv", rows, "img_filename")
    return rows


def test_load_waterbirds_reads_splits_labels_and_places(tmp_path: Path) -> None:
    waterbirds(tmp_path)
    found = load_waterbirds(tmp_path)
    assert list(found) == ["train", "validation", "test"]
    assert [len(groups) for groups in found.values()] == [6, 4, 4]
    test = found["test"]
    assert test.class_names == ("landbird", "waterbird")
    assert test.attribute_names == ("land", "water")
    assert test.labels.tolist() == [0, 1, 0, 1]
    assert test.attributes.tolist() == [0, 0, 1, 1]
    assert test.groups.tolist() == [0, 2, 1, 3]
    assert test.images[0] == tmp_path / "001.Albatross/8.jpg"
    assert "waterbird, land 1" in str(test)
    test.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": "2"}, r"line 3: 'y' must be one of 0, 1, not '2'"),
        ({"place": "sea"}, "'place' must be one of 0, 1, not 'sea'"),
        ({"split": ""}, "line 3: no value for 'split'"),
        ({"img_filename": "gone.jpg"}, r"1 images that do not exist.*gone.jpg"),
    ],
)
def test_load_waterbirds_names_the_wrong_line(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    rows = waterbirds(tmp_path)
    rows[1] |= change
    if "img_filename" in change:
        rows[0]["img_filename"] = rows[0]["img_filename"]
    path = tmp_path / "metadata.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(GroupError, match=message):
        load_waterbirds(tmp_path)


def test_load_waterbirds_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(GroupError, match="There is no file"):
        load_waterbirds(tmp_path)
    (tmp_path / "metadata.csv").write_text("img_file,y,place,split\n")
    with pytest.raises(GroupError, match="Did you mean 'img_file'"):
        load_waterbirds(tmp_path)
    (tmp_path / "metadata.csv").write_text("img_filename,y,place,split\n")
    with pytest.raises(GroupError, match="has no rows"):
        load_waterbirds(tmp_path)
    (tmp_path / "metadata.csv").write_bytes(b"\xff\xfe\x00 no text")
    with pytest.raises(GroupError, match="cannot be read as CSV"):
        load_waterbirds(tmp_path)


def test_load_groups_reads_any_table_with_a_group_column(tmp_path: Path) -> None:
    kinds = [("cat", "indoors"), ("cat", "outdoors"), ("dog", "indoors"), ("dog", "outdoors")]
    rows: list[dict[str, object]] = [
        {"file": f"{i}.png", "animal": animal, "where": place, "part": "ab"[i // 4]}
        for i, (animal, place) in enumerate(kinds * 2)
    ]
    path = write(tmp_path, "table.csv", rows, "file")
    names = {"image": "file", "label": "animal", "group": "where"}
    whole = load_groups(path, **names)
    assert isinstance(whole, GroupedImages)
    assert whole.group_names == ("cat, indoors", "cat, outdoors", "dog, indoors", "dog, outdoors")
    assert whole.counts.tolist() == [2, 2, 2, 2]
    parts = load_groups(path, split="part", **names)
    assert isinstance(parts, dict)
    assert {name: len(part) for name, part in parts.items()} == {"a": 4, "b": 4}
    assert parts["b"].images[0] == tmp_path / "4.png"
    turned = load_groups(path, class_names=("dog", "cat"), **names)
    assert isinstance(turned, GroupedImages)
    assert turned.labels.tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    with pytest.raises(GroupError, match="Did you mean 'where'"):
        load_groups(path, image="file", label="animal", group="were")
    with pytest.raises(GroupError, match="not in `class_names`"):
        load_groups(path, class_names=("dog", "cow"), **names)


def test_load_groups_reads_numbered_groups(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": f"{i}.png", "label": i // 2 % 2, "group": i % 4} for i in range(8)
    ]
    whole = load_groups(write(tmp_path, "table.csv", rows, "image"))
    assert isinstance(whole, GroupedImages)
    assert whole.attributes.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert whole.groups.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_an_attribute_equal_to_the_class_is_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": f"{i}.png", "label": i % 2, "group": ("x", "y")[i % 2]} for i in range(4)
    ]
    whole = load_groups(write(tmp_path, "table.csv", rows, "image"))
    assert isinstance(whole, GroupedImages)
    with pytest.raises(GroupError, match="attribute is identical to the class"):
        whole.check()


def test_subsets_and_wrong_labels_of_grouped_images() -> None:
    images = [torch.zeros(3, 4, 4)] * 4
    groups = GroupedImages(images, [0, 0, 1, 1], [0, 1, 0, 1], ("a", "b"), ("c", "d"))
    assert len(groups.subset(groups.labels == 1)) == 2
    assert groups.subset([3]).groups.tolist() == [3]
    assert len(list(groups.subset([0, 2]).images)) == 2
    for labels, attributes, message in (
        ([0, 0, 1], [0, 1, 0, 1], "labels must have one entry for each of the 4 images"),
        ([0, 0, 1, 2], [0, 1, 0, 1], "labels must be 0 to 1"),
        ([0, 0, 1, 1], [0, 1, 0, -1], "attributes must be 0 to 1"),
        ([0, 0, 1, 0.5], [0, 1, 0, 1], "labels must be whole numbers"),
    ):
        with pytest.raises(GroupError, match=message):
            GroupedImages(images, labels, attributes, ("a", "b"), ("c", "d"))
    with pytest.raises(GroupError, match="no images"):
        GroupedImages([], [], [], ("a", "b"), ("c", "d")).check()
