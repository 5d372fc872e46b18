"""One line for objects that hold tensors, where Python would print all their values."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

_LONGEST = 60


class ShapeRepr:
    """Shows the fields of a dataclass, with shapes instead of values.

    The dataclass is one with ``repr=False``, which would otherwise write its own repr.
    """

    def __repr__(self) -> str:
        parts = [
            f"{field.name}={_short(getattr(self, field.name))}"
            for field in fields(self)  # type: ignore[arg-type]  # it is a dataclass
            if field.repr and not field.name.startswith("_")
        ]
        return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"[{', '.join(map(str, value.shape))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{{{len(value)} keys}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        each = [_short(item) for item in value]
        text = f"({', '.join(each)})"
        if len(text) <= _LONGEST:
            return text
        return f"{len(each)} × {each[0] if len(set(each)) == 1 else type(value[0]).__name__}"
    text = repr(value)
    return text if len(text) <= _LONGEST else type(value).__name__
