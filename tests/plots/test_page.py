"""The page: measuring and flowing text."""

from vitlens.plots.page import flow, text_width


def test_legend_items_flow_over_lines() -> None:
    assert flow([2, 2, 2, 5, 1], room=5, gap=0.5) == [[0, 1], [2], [3], [4]]
    assert flow([], room=5, gap=1) == [[]]
    assert text_width("two words", 10) > text_width("words", 10) > text_width("", 10) == 0
