"""The browser's shared functions, run by Node: bytes, colours, and the walk over patches."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import vitlens
from vitlens.plots.heat import colours
from vitlens.widgets.buffers import to_bytes

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
        import { place, table } from "SRC/lib/scale.js";
        const colours = table("heat");
        console.log(JSON.stringify(heat.map((x) => [...colours.subarray(place(x), place(x) + 4)])));
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
