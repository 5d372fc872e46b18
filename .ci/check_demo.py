"""Fail unless the demo of an installed vitlens wrote its figures and a circuit that opens."""

import sys
from pathlib import Path

import vitlens


def main() -> None:
    out, environment = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    if not Path(vitlens.__file__).resolve().is_relative_to(environment):
        sys.exit(f"vitlens was imported from {vitlens.__file__}, not from {environment}")
    for suffix in (".png", ".svg", ".safetensors"):
        files = list(out.rglob(f"*{suffix}"))
        if not files or any(file.stat().st_size == 0 for file in files):
            sys.exit(f"the demo left no {suffix} file, or an empty one, in {out}")
    circuit = vitlens.Circuit.load(next(out.rglob("*.safetensors")))
    if not circuit.nodes or not circuit.edges:
        sys.exit("the demo's circuit is empty")
    print(f"a circuit of {len(circuit.nodes)} nodes and {len(circuit.edges)} edges")


if __name__ == "__main__":
    main()
