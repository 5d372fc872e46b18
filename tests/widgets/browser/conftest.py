"""Widgets in real notebook programs, driven in Chromium.

`lab`, `notebook7` and `marimo` are each a `Host` (see hosts.py); `jupyter_host` is the first two,
`host` all three. `static_page(path)` opens a file without a network. When a test ends, its page
must have sent no request to the network and logged no error. Servers, kernels and caches are
shared by all tests of a session.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

NEEDED = ("playwright", "jupyterlab", "notebook", "marimo", "nbclient")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)

missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if not missing:
    import nbclient
    import nbformat
    from nbformat.sign import NotebookNotary
    from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

    from tests.widgets.browser import hosts

    if hosts.chromium() is None:
        missing.append("Chromium (apt-get install chromium, or set CHROMIUM)")
else:
    collect_ignore_glob = ["test_*.py"]

REQUIRED = os.environ.get("VITLENS_REQUIRE_BROWSER") == "1"
REASON = f"NOT TESTED IN A BROWSER: {', '.join(missing)} missing"
if missing and REQUIRED:
    raise RuntimeError(REASON)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    # Playwright's loop runs until the session ends, and where one runs widgets compute in the
    # background: tests that do not wait for it come first.
    items.sort(key=lambda item: here in item.path.parents)
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.browser)
        if missing:
            item.add_marker(pytest.mark.skip(reason=REASON))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if missing:
        terminalreporter.section(REASON, yellow=True, bold=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=hosts.chromium(), headless=True, args=FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(browser: Browser) -> Iterator[BrowserContext]:
    with hosts.new_context(browser) as context:
        yield context


@pytest.fixture(scope="session")
def offline_context(browser: Browser) -> Iterator[BrowserContext]:
    with hosts.new_context(browser, offline=True) as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    with hosts.new_page(context) as page:
        yield page
        assert hosts.complaints(page) == []


@pytest.fixture(scope="session")
def jupyter_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Server]:
    with hosts.jupyter(tmp_path_factory.mktemp("jupyter")) as server:
        yield server


@pytest.fixture(scope="session")
def lab_page(context: BrowserContext) -> Iterator[Page]:
    with hosts.new_page(context) as page:
        yield page


@pytest.fixture
def lab(lab_page: Page, jupyter_server: hosts.Server) -> Iterator[hosts.Host]:
    host = hosts.Jupyter(lab_page, jupyter_server, "lab")
    yield host
    # Before the notebook is dropped: while it disposes of one, JupyterLab logs errors of its own.
    # What closing does to a widget is checked in Notebook 7, whose page is new for every test.
    found = hosts.complaints(lab_page)
    host.close()
    hosts.forget(lab_page)
    assert found == []


@pytest.fixture
def notebook7(page: Page, jupyter_server: hosts.Server) -> Iterator[hosts.Host]:
    host = hosts.Jupyter(page, jupyter_server, "notebook7")
    yield host
    host.close()


@pytest.fixture(scope="session")
def marimo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Server]:
    with hosts.marimo(tmp_path_factory.mktemp("marimo")) as server:
        yield server


@pytest.fixture
def marimo(page: Page, marimo_server: hosts.Server) -> Iterator[hosts.Host]:
    host = hosts.Marimo(page, marimo_server, "marimo")
    yield host
    host.close()


@pytest.fixture
def notebook_with_state(jupyter_server: hosts.Server) -> Callable[[Sequence[str]], str]:
    """Write a notebook as it is stored: run, and with the widgets' state; gives its name."""

    def write(cells: Sequence[str]) -> str:
        notebook = hosts.notebook_of(cells)
        client = nbclient.NotebookClient(
            notebook, store_widget_state=True, resources={"metadata": {"path": hosts.REPOSITORY}}
        )
        client.execute()
        # Without a signature Jupyter shows the picture only.
        NotebookNotary(data_dir=str(jupyter_server.root / ".data")).sign(notebook)
        name = f"stored-{secrets.token_hex(4)}.ipynb"
        nbformat.write(notebook, jupyter_server.root / name)
        return name

    return write


@pytest.fixture(params=["lab", "notebook7"])
def jupyter_host(request: pytest.FixtureRequest) -> hosts.Host:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["lab", "notebook7", "marimo"])
def host(request: pytest.FixtureRequest) -> hosts.Host:
    return request.getfixturevalue(request.param)


@pytest.fixture
def static_page(offline_context: BrowserContext) -> Iterator[Callable[[Path], Page]]:
    with hosts.new_page(offline_context) as page:

        def show(path: Path) -> Page:
            page.goto(path.resolve().as_uri())
            return page

        yield show
        assert hosts.complaints(page) == []
