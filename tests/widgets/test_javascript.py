"""Functions of the browser, run by Node: bytes, colours, the walk over patches, undo, words."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import vitlens
from vitlens.plots.heatmap import colours
from vitlens.widgets.base import to_bytes
from vitlens.widgets.browser import plain

SOURCES = Path(vitlens.__file__).parent / "widgets" / "js" / "src"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")


def node(program: str, **given: object) -> object:
    """Run a module whose last line logs one JSON value; `given` are its constants."""
    constants = "".join(f"const {k} = {json.dumps(v)};\n" for k, v in given.items())
    result = subprocess.run(
        ["node", "--input-type=module", "-"],
        input=constants + program.replace("SRC", SOURCES.as_uri()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4])
def test_numbers_at_any_offset(offset: int) -> None:
    values = [0.0, 1.5, -2.25, 65504.0, 6e-8, -3.0]
    found = node(
        """
        import { floatsOf, halfsOf, intsOf } from "SRC/lib/model.js";
        const at = (bytes) => {
          const all = new Uint8Array(offset + bytes.length + 3);
          all.set(bytes, offset);
          return new DataView(all.buffer, offset, bytes.length);
        };
        console.log(JSON.stringify(
          [floatsOf(at(floats)), halfsOf(at(halfs)), intsOf(at(ints))].map((a) => [...a])));
        """,
        offset=offset,
        floats=list(to_bytes(values)),
        halfs=list(to_bytes(values, "float16")),
        ints=list(to_bytes([1, -2, 70000], "int32")),
    )
    assert isinstance(found, list)
    assert found[0] == np.float32(values).tolist()
    assert found[1] == np.float16(values).tolist()
    assert found[2] == [1, -2, 70000]


def test_colours_are_those_of_the_figures() -> None:
    heat = [-1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0]
    found = node(
        """
        import { offsetOf, table } from "SRC/lib/scale.js";
        const colours = table("heat");
        const colour = (x) => [...colours.subarray(offsetOf(x), offsetOf(x) + 4)];
        console.log(JSON.stringify(heat.map(colour)));
        """,
        heat=heat,
    )
    ground, opacity = 235, 0.8
    for x, (r, g, b, alpha) in zip(heat, found, strict=True):
        a = opacity * alpha / 255
        mixed = [ground * (1 - a) + c * a for c in (r, g, b)]
        wanted = [255 * c for c in colours()(0.5 + x / 2)[:3]]
        assert mixed == pytest.approx(wanted, abs=2)


def test_the_walk_over_patches_and_prefix_tokens() -> None:
    found = node(
        """
        import { nameOf, step, tokenOf } from "SRC/heatmap/cells.js";
        const layout = { grid: [2, 3], prefix: ["CLS", "register 1", "register 2"] };
        const bare = { grid: [2, 3], prefix: [] };
        console.log(JSON.stringify({
          steps: walks.map(([cell, key]) => step(layout, cell, key)),
          bare: step(bare, [1, 0], "ArrowLeft"),
          tokens: [[-1, 2], [0, 0], [1, 2]].map((cell) => tokenOf(layout, cell)),
          names: [[-1, 1], [1, 2]].map((cell) => nameOf(layout, cell)),
        }));
        """,
        walks=[
            [[0, 0], "ArrowRight"],
            [[0, 2], "ArrowRight"],
            [[1, 1], "ArrowDown"],
            [[1, 0], "ArrowLeft"],
            [[-1, 1], "ArrowDown"],
            [[-1, 2], "ArrowRight"],
            [[-1, 0], "ArrowUp"],
            [[1, 2], "Home"],
            [[0, 0], "x"],
        ],
    )
    assert isinstance(found, dict)
    assert found["steps"] == [
        [0, 1],
        [0, 2],
        [1, 1],
        [-1, 1],
        [-1, 2],
        [1, 0],
        [-1, 0],
        [1, 0],
        None,
    ]
    assert found["bare"] == [1, 0]
    assert found["tokens"] == [2, 3, 8]
    assert found["names"] == ["register 1", "row 2, column 3"]


def test_undo_takes_back_only_its_own_step() -> None:
    found = node(
        """
        import { createAnnotations } from "SRC/diagram/annotations.js";
        const traits = { labels: [], pinned: [], groups: [] };
        const set = (name, value) => { traits[name] = value; };
        const model = { get: (name) => traits[name], set, save_changes() {} };
        const [marks, other] = [createAnnotations(model), createAnnotations(model)];
        const seen = [];
        const undo = () => seen.push([marks.undo(), structuredClone(traits)]);

        marks.rename([8, 213], "fur");
        set("labels", [...traits.labels, [10, 348, "given in the card"]]);
        undo();
        marks.rename([8, 213], "fur");
        set("labels", [[8, 213, "hair"]]);
        undo();
        set("labels", []);

        marks.togglePins([[1, 1]]);
        other.togglePins([[2, 2]]);
        undo();

        marks.group("ears", [[1, 1], [1, 2]]);
        other.group("eyes", [[1, 2], [1, 3]]);
        marks.renameGroup("ears", "left ear");
        undo();
        undo();

        marks.rename([8, 213], "fur");
        marks.forget();
        undo();
        console.log(JSON.stringify(seen));
        """
    )
    named, pinned = [[10, 348, "given in the card"]], [[2, 2]]
    assert found == [
        [True, {"labels": named, "pinned": [], "groups": []}],
        [False, {"labels": [[8, 213, "hair"]], "pinned": [], "groups": []}],
        [True, {"labels": [], "pinned": pinned, "groups": []}],
        [
            True,
            {
                "labels": [],
                "pinned": pinned,
                "groups": [["ears", [[1, 1]]], ["eyes", [[1, 2], [1, 3]]]],
            },
        ],
        [True, {"labels": [], "pinned": pinned, "groups": [["eyes", [[1, 2], [1, 3]]]]}],
        [False, {"labels": [[8, 213, "fur"]], "pinned": pinned, "groups": found[-2][1]["groups"]}],  # type: ignore[index]
    ]


def test_undo_keeps_the_order_of_groups_and_members() -> None:
    found = node(
        """
        import { createAnnotations } from "SRC/diagram/annotations.js";
        const traits = { groups: [["ears", [[0, 1], [0, 2]]], ["eyes", [[1, 1]]]] };
        const set = (name, value) => { traits[name] = value; };
        const marks = createAnnotations({ get: (name) => traits[name], set, save_changes() {} });
        const before = structuredClone(traits.groups);
        marks.renameGroup("ears", "left ear");
        marks.undo();
        const renamed = structuredClone(traits.groups);
        marks.ungroup([[0, 1]]);
        marks.undo();
        console.log(JSON.stringify([before, renamed, traits.groups]));
        """
    )
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_numbers_of_tables_are_plain() -> None:
    values = [0, 0.00002, -0.00002, 0.001, 0.0045678, -0.12345, 1, 2.0, 1234.5, 123456.0]
    found = node(
        """
        import { fixed, percent, plain } from "SRC/lib/dom.js";
        console.log(JSON.stringify([plain, fixed, percent].map((say) => values.map(say))));
        """,
        values=values,
    )
    assert isinstance(found, list)
    assert found[0] == [
        *("0", "<0.001", ">−0.001", "0.001", "0.00457", "−0.123", "1", "2", "1230", "123000")
    ]
    assert found[0] == [plain(value) for value in values]
    assert found[1][:7] == ["0", "<0.001", ">−0.001", "0.001", "0.005", "−0.12", "1.00"]
    assert found[2][:4] == ["0%", "0.002%", "−0.002%", "0.1%"]


def test_a_point_of_the_map_tells_the_score_behind_its_kind() -> None:
    found = node(
        """
        import { describe } from "SRC/map/text.js";
        const columns = { curvature: [0.4], direction: [0.62] };
        const data = {
          layerNumbers: [0], layers: [0], starts: [0], kinds: [1], kindNames: ["none", "curve"],
          behind: { curve: "direction" }, chance: [{ curvature: 0.9, direction: 0.21 }],
          columns: new Map(Object.entries(columns)),
        };
        const words = ["kind", "curvature"].map((by) => describe(data, 0, "", by));
        console.log(JSON.stringify(words));
        """
    )
    assert found == [
        "0/0\ncurve\ndirection 0.62, chance 0.21",
        "0/0\ncurvature 0.40, chance 0.90",
    ]


def test_numbers_that_round_to_nothing_have_no_sign() -> None:
    found = node(
        """
        import { counted, decimals } from "SRC/lib/dom.js";
        import { points } from "SRC/debias/request.js";
        import { shareText } from "SRC/diagram/data.js";
        console.log(JSON.stringify([
          [-0.0004, -0.0006, 0.25, -0].map((x) => decimals(x, 3)), decimals(NaN, 3),
          [-0.0004, 0.0004, 0, -0.05].map(points),
          [-0.0002, 0.0002, -0.05, 0].map(shareText),
          [0, 1, 16950].map((n) => counted(n, "edge")),
        ]));
        """
    )
    assert found == [
        ["0.000", "−0.001", "0.250", "0.000"],
        "–",
        ["±0.0", "±0.0", "±0.0", "−5.0"],
        [">−0.1%", "<0.1%", "−5.0%", "0.0%"],
        ["0 edges", "1 edge", "16,950 edges"],
    ]


def test_a_name_written_from_the_right_leaves_the_words_around_it_in_place() -> None:
    found = node(
        """
        import { isolated } from "SRC/lib/dom.js";
        console.log(JSON.stringify(["bird", "\u0633\u064a\u0627\u0631\u0629"].map(isolated)));
        """
    )
    assert found == ["bird", "\u2068\u0633\u064a\u0627\u0631\u0629\u2069"]


def test_silence_is_not_called_the_lack_of_a_kernel() -> None:
    found = node(
        """
        import { ask } from "SRC/lib/ask.js";
        const model = (send) => ({ on() {}, send });
        const words = (send) =>
          ask(model(send), "card", {}, [], { wait: 5 }).catch((error) => error.message);
        const gone = () => { throw new Error("no comm"); };
        console.log(JSON.stringify([await words(() => {}), await words(gone)]));
        """
    )
    assert found == [
        "Python does not answer: it is busy, or no kernel is running.",
        "This needs a running kernel.",
    ]


@pytest.mark.parametrize(
    ("module", "trait", "figures", "requests"),
    [
        ("ablation", "ablations", "outcome", [[[1, 2, None]], [[1, 2, None], [1, 3, 0.5]]]),
        ("debias", "chosen", "report", [[[1, 2]], [[1, 2], [1, 3]]]),
    ],
)
def test_a_request_is_reverted_only_without_a_kernel(
    module: str, trait: str, figures: str, requests: list[list[object]]
) -> None:
    found = node(
        """
        const { request } = await import(`SRC/${module}/request.js`);
        const silences = [];
        globalThis.setTimeout = (end) => silences.push(end);
        globalThis.clearTimeout = () => {};
        const turn = () => new Promise((resolve) => setImmediate(resolve));
        const make = (send) => {
          const traits = { [trait]: [], [figures]: { [trait]: [] } };
          const set = (name, value) => { traits[name] = value; };
          return { traits, on() {}, get: (name) => traits[name], set, save_changes() {}, send };
        };
        const seen = {};
        const note = (when, { traits }) => { seen[when] = [traits[trait], traits.notice]; };

        const busy = make(() => {});
        request(busy, requests[0]);
        request(busy, requests[1]);
        silences[0]();
        await turn();
        note("first silence", busy);
        silences[1]();
        await turn();
        note("second silence", busy);

        const saved = make(() => { throw new Error("no comm"); });
        request(saved, requests[0]);
        await turn();
        note("saved page", saved);

        const ends = [];
        const dying = make(() => new Promise((_, reject) => ends.push(reject)));
        request(dying, requests[0]);
        request(dying, requests[1]);
        ends[0]();
        await turn();
        note("first lost", dying);
        ends[1]();
        await turn();
        note("second lost", dying);
        console.log(JSON.stringify(seen));
        """,
        module=module,
        trait=trait,
        figures=figures,
        requests=requests,
    )
    silence = "Python does not answer: it is busy, or no kernel is running."
    no_kernel = "This needs a running kernel."
    assert found == {
        "first silence": [requests[1], silence],
        "second silence": [requests[1], silence],
        "saved page": [[], no_kernel],
        "first lost": [requests[1], no_kernel],
        "second lost": [[], no_kernel],
    }
