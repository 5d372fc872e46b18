"""The first notebook as a student meets it: opened in JupyterLab, run, pruned, a node ablated."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.widgets.browser.hosts import Jupyter
from vitlens.cli.lab import notebooks

MINUTES = 240_000  # ms: the whole notebook runs, on a machine that others use too


def test_ten_minutes(lab: Jupyter) -> None:
    first, *_ = notebooks()
    # Curves of few steps: tests/test_notebooks.py runs all of them.
    text = first.read_text("utf-8").replace("progress=False", "q=(0.0, 0.1, 1.0), progress=False")
    assert text != first.read_text("utf-8")
    (lab.server.root / first.name).write_text(text, "utf-8")
    lab.share_kernel(first.name)
    lab.open(first.name)
    page = lab.page
    page.set_default_timeout(MINUTES)
    lab.command("notebook:run-all-cells")
    lab.wait("'kept' in globals() and len(kept) > 0", seconds=MINUTES / 1000)

    explorer = page.locator(".vl-explorer")
    slider = explorer.locator("input[data-rule=nodes_per_layer]")
    expect(slider).to_have_value("4")
    slider.scroll_into_view_if_needed()
    slider.fill("3")
    lab.wait("explorer.nodes_per_layer == 3 and plot.nodes_per_layer == 3")
    count = lab.ask("len(explorer.circuit.nodes)")
    expect(explorer.locator(".vl-diagram-count")).to_contain_text(f"{count} nodes")
    expect(page.locator(".vl-curve-plot .vl-curves-handle").first).to_have_attribute(
        "aria-valuenow", "3"
    )

    explorer.get_by_role("tab", name="Ablate").click()
    explorer.locator(".vl-ablation").get_by_role("button", name="Reset").click()
    lab.wait("explorer.ablations == ()")
    explorer.locator(".vl-ablation").get_by_role("button", name="Switch off").click()
    lab.wait("len(explorer.ablations) == 1 and explorer.outcome")
    expect(explorer.locator(".vl-ablation")).to_contain_text("before")
