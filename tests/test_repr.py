"""What is seen where a result is the last line of a cell."""

import pytest

import vitlens
from tests.builders import tiny_image, tiny_lens


@pytest.fixture(scope="module")
def results():
    lens, image = tiny_lens(), tiny_image()
    circuit = lens.circuit(image, select="walk")
    return [
        lens.vision,
        lens.baselines,
        lens.trace(image),
        lens.importances(image),
        circuit,
        lens.attribute(image),
        lens.faithfulness([image], progress=False),
        lens.run_with(image, vitlens.Ablate((1, 3))),
        lens.run_with([image, image], vitlens.Ablate((1, 3))),
        lens.verify(circuit, image, n=3),
    ]


def test_results_are_shown_in_a_line_and_not_by_all_their_numbers(results):
    for result in results:
        shown = repr(result)
        assert shown.startswith(f"{type(result).__name__}(") and "\n" not in shown, shown
        assert len(shown) < 600 and "tensor(" not in shown, shown


def test_shapes_and_short_values_are_shown(results):
    by_name = {type(result).__name__: repr(result) for result in results}
    assert (
        by_name["VisionModel"]
        == "VisionModel(VisionTransformer: 4 blocks, 10 tokens x 24, 24 x 24 pixels)"
    )
    assert "features=([10, 30], [10, 30], [10, 30])" in by_name["Baselines"]
    assert "nodes=24 × Node" in by_name["Circuit"] and "target='" in by_name["Circuit"]
