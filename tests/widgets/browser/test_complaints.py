"""An error of ours fails a test: the hosts' own that are forgiven are only theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, Route

from tests.widgets.browser import hosts

OURS = "http://127.0.0.1:1/ours/"
THEIRS = "http://127.0.0.1:1/static/notebook/notebook_core.c9.js"


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page whose complaints the test itself looks at."""

    def answer(route: Route) -> None:
        if route.request.url == OURS:
            route.fulfill(body="<p>a page</p>", content_type="text/html")
        elif route.request.url == THEIRS:
            body = "const missing = undefined; missing.schema;"
            route.fulfill(body=body, content_type="text/javascript")
        else:
            route.fulfill(status=404)

    with hosts.new_page(context) as page:
        page.route(f"{OURS}**", answer)
        page.route(THEIRS, answer)
        page.goto(OURS)
        yield page


def complaints(page: Page) -> list[str]:
    page.wait_for_timeout(300)
    return hosts.complaints(page)


def test_nothing_happened(page: Page) -> None:
    assert complaints(page) == []


def test_a_file_of_ours_that_is_not_there(page: Page) -> None:
    page.evaluate("() => fetch('explorer.js').then(() => null)")
    (one,) = complaints(page)
    assert one.startswith("Failed to load resource")
    assert one.endswith(f"({OURS}explorer.js)")


@pytest.mark.parametrize(
    "text", ["ResizeObserver loop completed with undelivered notifications.", "no favicon"]
)
def test_whatever_we_log_as_an_error(page: Page, text: str) -> None:
    page.evaluate("(text) => console.error(text)", text)
    assert complaints(page)[0].startswith(text)


def test_an_error_like_one_of_notebook_7(page: Page) -> None:
    page.evaluate("() => setTimeout(() => { const missing = undefined; missing.schema; })")
    (one,) = complaints(page)
    assert one.startswith("Cannot read properties of undefined (reading 'schema')")


def test_a_request_that_leaves_the_machine(page: Page) -> None:
    page.evaluate("() => fetch('http://example.org/font.woff').catch(() => null)")
    assert complaints(page)[0] == "request to http://example.org/font.woff"


def test_those_of_notebook_7_are_forgiven(page: Page) -> None:
    page.add_script_tag(url=THEIRS)
    page.wait_for_timeout(300)
    assert [kind for kind, *_ in page.logs] == ["pageerror"]  # type: ignore[attr-defined]
    assert complaints(page) == []
