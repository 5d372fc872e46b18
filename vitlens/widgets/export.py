"""One self-contained page of a widget's state; it opens from disk, without a network."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any, Protocol

from vitlens.io import atomic_path, finite_values

#: The built bundles.
STATIC = Path(__file__).parent / "static"

_INTERNAL = ("_", "layout", "tabbable", "tooltip")  # prefixes of the traits of ipywidgets


class Exportable(Protocol):
    """What a page needs of a widget."""

    _esm: Any
    _css: Any
    keys: Any

    def get_state(self, key: str) -> dict[str, Any]:
        """Return the state that the browser receives."""
        ...

    def offline_answers(self) -> dict[str, list[tuple[Any, Any]]]:
        """Return the requests that a page can answer."""
        ...


def write_page(widget: Exportable, path: str | Path, *, title: str) -> None:
    """Write a page that shows the current state of the widget.

    Parameters
    ----------
    title
        Title of the page.

    Raises
    ------
    VitlensError
        When the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(page(widget, title=title), "utf-8")


def page(widget: Exportable, *, title: str) -> str:
    """Return the page of `write_page` as text."""
    values, buffers = state(widget)
    content = json.dumps(
        finite_values(
            {
                "values": values,
                "buffers": buffers,
                "answers": answers(widget),
                "module": str(widget._esm),
            }
        ),
        allow_nan=False,
    )
    content = content.replace("<", "\\u003c")  # it may contain neither </script> nor <!--
    program = (STATIC / "page.js").read_text("utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ margin: 1rem; font-family: system-ui, sans-serif }}
{_inside_element(str(widget._css))}
</style>
</head>
<body>
<div id="vl-page"></div>
<script type="application/json" id="vl-content">{content}</script>
<script type="module">
{_inside_element(program)}
</script>
</body>
</html>
"""


def state(widget: Exportable) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the traits that the browser receives: plain values, and bytes in base64."""
    values: dict[str, Any] = {}
    buffers: dict[str, str] = {}
    for name in sorted(widget.keys):
        if name.startswith(_INTERNAL):
            continue
        value = widget.get_state(name)[name]
        if isinstance(value, bytes | bytearray | memoryview):
            buffers[name] = base64.b64encode(value).decode()
        else:
            values[name] = value
    return {**values, "notice": "", "progress": {}}, buffers


def answers(widget: Exportable) -> dict[str, dict[str, Any]]:
    """Return the answers that a page gives without Python, by request and by payload as JSON."""
    return {
        what: {
            json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False): value
            for payload, value in known
        }
        for what, known in widget.offline_answers().items()
    }


def _inside_element(code: str) -> str:
    """Return code that neither ends its element nor opens a comment there."""
    return code.replace("</", "<\\/").replace("<!--", "<\\!--")
