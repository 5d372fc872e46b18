"""Draw the README's picture: ``python -m recipes.readme_picture out/demo/circuit.safetensors``."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from vitlens import Circuit
from vitlens.plots import circuit_figure, save_figure

OUT = Path(__file__).parents[1] / "docs" / "circuit.png"
_DPI = 120


def main() -> None:
    figure = circuit_figure(Circuit.load(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "circuit.png"
        save_figure(figure, path, dpi=2 * _DPI)
        large = Image.open(path).convert("RGB")
    small = large.resize((large.width // 2, large.height // 2), Image.Resampling.BOX)
    # 256 colours, of which the few strong ones must survive: a third of the size, no loss to see.
    few = small.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    OUT.parent.mkdir(exist_ok=True)
    few.save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
