"""A diagram of 300 nodes and 3,000 edges in Chromium: layout, and frames while it is used.

Printed by `make bench`. Frame times are the browser's own, from requestAnimationFrame; they need
idle cores. What the main thread computes for a frame, from the browser's trace, does not.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import torch
from playwright.sync_api import Browser, Page, Route, sync_playwright

from tests.widgets.browser.conftest import FLAGS
from tests.widgets.browser.hosts import chromium
from vitlens.circuits.graph import AttributionGraph
from vitlens.widgets import CircuitDiagram

LAYERS, NODES, MOST, EDGES = 10, 30, 40, 3000
FRAMES = 300
SOURCES = Path(__file__).parents[2] / "vitlens" / "widgets" / "js" / "src"

LAYOUT = """async (data) => {
  const { globalOrder, tidy } = await import("http://sources.test/diagram/order.js");
  const { prune } = await import("http://sources.test/diagram/prune.js");
  const { buildScene } = await import("http://sources.test/diagram/scene.js");
  data.offsets = data.counts.reduce((all, n) => [...all, all[all.length - 1] + n], [0]);
  data.blocks = data.counts.map((_, l) => data.counts.slice(0, l).reduce(
    (sum, n, i) => sum + n * data.counts[i + 1], 0));
  data.weights = Float32Array.from(data.weights);
  data.columns = data.counts.flatMap((n, column) => Array(n).fill(column));
  data.layers = data.columns;
  data.layerNumbers = data.counts.map((_, layer) => layer);
  data.shares = data.importances;
  const times = [];
  for (let turn = 0; turn < 7; turn++) {
    const start = performance.now();
    const rank = globalOrder(data);
    const kept = prune(data, { count: data.count });
    tidy(rank, kept);
    const scene = buildScene(data, kept, rank, { groups: new Map(), pitch: 100 });
    times.push(performance.now() - start);
    if (!turn) console.log(`${scene.nodes} nodes, ${scene.edges} edges`);
  }
  return times.sort((a, b) => a - b);
}"""

#: Does something in every frame, and returns how long each frame took.
FRAME_TIMES = """async ([what, frames]) => {
  const nodes = [...document.querySelectorAll(".vl-node")];
  const rules = { count: "nodes_per_layer", nodes: "node_share", edges: "edge_share" };
  const slider = document.querySelector(`input[data-rule=${rules[what]}]`);
  const act = (i) => {
    if (what === "hover") {
      // Three frames a node: quicker than a hand that means a node.
      nodes[(7 * Math.floor(i / 3)) % nodes.length].dispatchEvent(
        new PointerEvent("pointerover", { bubbles: true, composed: true }));
    } else {
      const wave = Math.sin(i / 20);
      slider.value = what === "count" ? 30 + Math.round(10 * wave) : 60 + Math.round(50 * wave);
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    }
  };
  const times = [];
  await new Promise((done) => {
    let last = 0;
    const step = (now) => {
      if (last) times.push(now - last);
      last = now;
      if (times.length >= frames) return done();
      act(times.length);
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  });
  return times;
}"""


def candidates() -> AttributionGraph:
    """Random nodes and edges: `NODES` a layer leave about `EDGES` edges."""
    torch.manual_seed(0)
    part = EDGES / ((LAYERS - 1) * NODES**2)
    nodes = tuple(torch.rand(MOST) ** 3 for _ in range(LAYERS))
    edges = tuple(
        torch.randn(MOST, MOST).abs() ** 3 * (torch.rand(MOST, MOST) < part) * 0.01
        for _ in range(LAYERS - 1)
    )
    edges = tuple(torch.where(torch.rand_like(block) < 0.2, -block, block) for block in edges)
    return AttributionGraph(
        features=tuple(tuple(range(MOST)) for _ in range(LAYERS)),
        nodes=nodes,
        edges=edges,
        tokens=tuple(torch.randn(197, MOST) * layer for layer in nodes),
        activations=None,
        positive=tuple(float(layer.sum()) for layer in nodes),
        n_features=None,
        at_most=MOST,
        layers=tuple(range(LAYERS)),
        grid=(14, 14),
        prefix_names=("CLS",),
        target="bench",
        target_index=None,
        target_value=1.0,
        prediction=("bench", 1.0),
        image=torch.randint(0, 255, (224, 224, 3), dtype=torch.uint8),
    )


def measure(browser: Browser, page: Page, given: AttributionGraph) -> None:
    """Print the layout's time and the frames' times."""
    page.route("http://sources.test/**", source)
    page.on("console", lambda message: print(f"layout of {message.text}"))
    times = page.evaluate(
        LAYOUT,
        {
            "counts": [len(features) for features in given.features],
            "features": [f for features in given.features for f in features],
            "importances": torch.cat(given.nodes).tolist(),
            "weights": torch.cat([block.flatten() for block in given.edges]).tolist(),
            "positive": list(given.positive),
            "total": LAYERS * MOST,
            "count": NODES,
        },
    )
    print(f"layout: {times[len(times) // 2]:.0f} ms (median of 7, longest {times[-1]:.0f} ms)")
    for what, name in (
        ("hover", "hover, another node every third frame"),
        ("edges", "slider of the edge share, a step a frame"),
        ("nodes", "slider of the node share, a step a frame"),
        ("count", "slider of nodes a layer, 20 to 40"),
    ):
        browser.start_tracing(page=page, categories=["devtools.timeline", "cc"])
        frames = sorted(page.evaluate(FRAME_TIMES, [what, FRAMES]))
        computed = main_thread(browser.stop_tracing())
        rate = 1000 * len(frames) / sum(frames)
        on_time = sum(time < 18 for time in frames) / len(frames)
        print(
            f"{name}: {rate:.1f} frames a second, {on_time:.0%} within 18 ms, "
            f"median {frames[len(frames) // 2]:.1f} ms, longest {frames[-1]:.0f} ms; "
            f"main thread {sum(computed) / FRAMES:.1f} ms of CPU a frame, "
            f"19 of 20 below {computed[int(0.95 * len(computed))]:.1f} ms"
        )


def main_thread(trace: bytes) -> list[float]:
    """Return the CPU time of every frame's work on the page's main thread, in ms, ascending.

    That is animation callbacks, style, layout, paint, the canvases' drawing, and the commit.
    """
    events = json.loads(trace)["traceEvents"]
    return sorted(
        event["tdur"] / 1000
        for event in events
        if event["name"] == "ProxyMain::BeginMainFrame" and "tdur" in event
    )


def source(route: Route) -> None:
    """Answer a request for one of our modules from the disk."""
    path = urlsplit(route.request.url).path
    route.fulfill(
        body=(SOURCES / path.lstrip("/")).read_text("utf-8"),
        content_type="text/javascript",
        headers={"Access-Control-Allow-Origin": "*"},
    )


def main() -> None:
    given = candidates()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "diagram.html"
        CircuitDiagram(given, nodes_per_layer=NODES).to_html(path)
        browser = playwright.chromium.launch(
            executable_path=chromium(), headless=True, args=list(FLAGS)
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_selector(".vl-node-target")
        page.wait_for_timeout(1500)
        measure(browser, page, given)
        browser.close()


if __name__ == "__main__":
    main()
