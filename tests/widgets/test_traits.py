"""Trait types: one form in Python, another in the browser, and clear words for anything else."""

import pytest
import traitlets as t

from vitlens.widgets.base import Groups, ImageTraits, MeasuredEdges, NodeList, NodeTraits


class Everything(NodeTraits, ImageTraits):
    groups = Groups()
    pinned = NodeList()
    measured = MeasuredEdges()


@pytest.fixture
def traits() -> Everything:
    return Everything(grid=(3, 4), prefix_names=("CLS",))


@pytest.mark.parametrize(
    ("name", "given", "kept", "sent"),
    [
        ("selected", [1, 2], (1, 2), (1, 2)),
        ("selected", (4, -2), (4, -2), (4, -2)),
        ("selected", None, None, None),
        ("pinned", [[1, 2], (1, 2), (0, -1)], ((1, 2), (0, -1)), ((1, 2), (0, -1))),
        ("patches", [(2, 3), [-1, 0]], ((2, 3), (-1, 0)), ((2, 3), (-1, 0))),
        ("labels", {(1, 2): " eye ", (1, 3): ""}, {(1, 2): "eye"}, [[1, 2, "eye"]]),
        ("groups", {"face": [(1, 2)], "none": []}, {"face": ((1, 2),)}, [["face", ((1, 2),)]]),
        (
            "measured",
            {((0, 2), (1, -1)): [1, 0.5]},
            {((0, 2), (1, -1)): (1.0, 0.5)},
            [[(0, 2), (1, -1), 1.0, 0.5]],
        ),
    ],
)
def test_one_form_in_python_and_one_in_the_browser(
    traits: Everything, name: str, given: object, kept: object, sent: object
) -> None:
    setattr(traits, name, given)
    assert getattr(traits, name) == kept
    trait = traits.traits()[name]
    assert trait.to_json(kept, traits) == sent
    setattr(traits, name, trait.from_json(sent, traits))
    assert getattr(traits, name) == kept


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("selected", 5),
        ("selected", (1,)),
        ("selected", (1, 2, 3)),
        ("selected", (-1, 0)),
        ("selected", (0, -3)),
        ("selected", ("0", "1")),
        ("selected", (0.5, 1)),
        ("selected", (True, 1)),
        ("pinned", "12"),
        ("pinned", {(1, 2): 3}),
        ("patches", [(3, 0)]),
        ("patches", [(0, 4)]),
        ("patches", [(-1, 1)]),
        ("patches", [(-2, 0)]),
        ("labels", [(1, 2)]),
        ("labels", {(1, 2): 3}),
        ("groups", {"a": [(1, 2)], "b": [(1, 2)]}),
        ("groups", {1: [(1, 2)]}),
        ("groups", {"a": [(1, 2)], "a ": [(1, 3)]}),
        ("groups", {" ": [(1, 2)]}),
        ("grid", (0, 3)),
        ("measured", [(1, 2)]),
        ("measured", {(1, 2): (1, 2)}),
        ("measured", {((0, 2), (1, 1)): (1, float("nan"))}),
    ],
)
def test_nonsense_is_refused(traits: Everything, name: str, given: object) -> None:
    before = getattr(traits, name)
    with pytest.raises(t.TraitError) as caught:
        setattr(traits, name, given)
    assert len(str(caught.value)) > 20
    assert getattr(traits, name) == before


def test_the_message_says_what_is_wanted(traits: Everything) -> None:
    with pytest.raises(t.TraitError, match=r"Everything.selected is \(layer, feature\) or None"):
        traits.selected = "3/5"


def test_dictionaries_are_not_shared() -> None:
    first, second = Everything(), Everything()
    first.labels = {(0, 1): "a"}
    assert second.labels == {}
    assert second.groups == {}
