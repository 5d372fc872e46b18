"""Notebook programs with a browser: how tests run cells in them and talk to their kernels.

Starting is slow (a kernel imports PyTorch, a page loads a notebook program), so servers, kernels
and browser caches are shared by all tests: after each test its names are deleted from the kernel
and its widgets are closed. A test that changes modules sets `Host.discard_kernel`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, BrowserContext, Page, Route

REPOSITORY = Path(__file__).parents[3]
PATIENCE = 90_000  # ms: these programs share two cores with whatever else runs
NOISE = (  # Notebook 7's own errors, seen without any widget: how they begin, and who logs them
    ("Cannot read properties of undefined (reading 'schema')", "/notebook_core."),
    ("Command 'filebrowser:open-path' not registered", "/notebook_core."),
)


def chromium() -> str | None:
    """Return the browser's path, if there is one; CHROMIUM overrides."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@contextmanager
def new_context(browser: Browser, *, offline: bool = False) -> Iterator[BrowserContext]:
    """A context whose pages share a cache."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=offline)
    try:
        yield context
    finally:
        context.close()


@contextmanager
def new_page(context: BrowserContext) -> Iterator[Page]:
    """A page that records requests leaving the machine (`outside`), and its console (`logs`).

    An entry of the log is its kind, its text, and the address of the script.
    """
    page = context.new_page()
    page.outside, page.logs = [], []  # type: ignore[attr-defined]

    def gate(route: Route) -> None:
        url = route.request.url
        if url.startswith(("http://127.0.0.1:", "http://localhost:", "blob:", "data:", "file:")):
            route.continue_()
        else:
            page.outside.append(url)  # type: ignore[attr-defined]
            route.abort()

    def note(kind: str, text: str, url: str) -> None:
        page.logs.append((kind, text, url))  # type: ignore[attr-defined]

    page.route("**/*", gate)
    page.on("console", lambda entry: note(entry.type, entry.text, entry.location["url"]))
    page.on("pageerror", lambda error: note("pageerror", str(error), first_url(error.stack or "")))
    page.set_default_timeout(PATIENCE)
    try:
        yield page
    finally:
        page.close()


def complaints(page: Page) -> list[str]:
    """Return the problems of a page: requests that leave the machine, and errors."""
    errors = [
        f"{text} ({url})"
        for kind, text, url in page.logs  # type: ignore[attr-defined]
        if kind in ("error", "pageerror") and not is_noise(text, url)
    ]
    return [*(f"request to {url}" for url in page.outside), *errors]  # type: ignore[attr-defined]


def forget(page: Page) -> None:
    """Make a page that another test used as good as new."""
    page.wait_for_timeout(300)  # views send some changes with a delay, the last ones to nobody
    page.outside.clear()  # type: ignore[attr-defined]
    page.logs.clear()  # type: ignore[attr-defined]
    page.set_default_timeout(PATIENCE)
    page.mouse.move(0, 0)


def is_noise(text: str, url: str) -> bool:
    """Whether a host logs this error without any widget."""
    return any(text.startswith(start) and part in url for start, part in NOISE)


def first_url(stack: str) -> str:
    """Return where an error was thrown: the first address in its stack."""
    found = re.search(r"\w+:/[^\s)]+", stack)
    return found.group() if found else ""


@dataclass
class Server:
    """A running notebook server, and the kernel that its notebooks share ("" before the first)."""

    base: str
    token: str
    root: Path
    kernel: str = ""

    def request(self, method: str, path: str, content: object = None) -> Any:
        """Call the REST API of a Jupyter server, and return what it answers."""
        request = urllib.request.Request(
            f"{self.base}/api/{path}",
            data=None if content is None else json.dumps(content).encode(),
            headers={"Authorization": f"token {self.token}"},
            method=method,
        )
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@contextmanager
def jupyter(root: Path) -> Iterator[Server]:
    """Start one server for JupyterLab and Notebook 7."""
    token, port = secrets.token_hex(8), free_port()
    folders = {
        "JUPYTER_CONFIG_DIR": ".cfg",
        "JUPYTER_DATA_DIR": ".data",
        "JUPYTERLAB_SETTINGS_DIR": ".lab",
        "JUPYTERLAB_WORKSPACES_DIR": ".ws",
        "IPYTHONDIR": ".ipy",
    }
    quiet = root / ".lab" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True})
    )
    arguments = [
        *("jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"),
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
        "--ServerApp.port_retries=0",
        "--LabApp.expose_app_in_browser=True",
        "--JupyterNotebookApp.expose_app_in_browser=True",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    base = f"http://127.0.0.1:{port}"
    environment = {name: str(root / folder) for name, folder in folders.items()}
    with served(arguments, root, environment, f"{base}/api/status?token={token}"):
        yield Server(base, token, root)


@contextmanager
def marimo(root: Path) -> Iterator[Server]:
    """Start one server for all marimo apps: every page reads the file of the app again."""
    settings = root / "config" / "marimo"
    settings.mkdir(parents=True)
    (settings / "marimo.toml").write_text('[display]\ntheme = "system"\n')
    app = root / "app.py"
    app.write_text("import marimo\napp = marimo.App()\n")
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    arguments = ["marimo", "-q", "run", "--headless", "--no-token", f"--port={port}", str(app)]
    with served(arguments, root, {"XDG_CONFIG_HOME": str(root / "config")}, base):
        yield Server(base, "", root)


@contextmanager
def served(
    arguments: Sequence[str], root: Path, environment: dict[str, str], url: str
) -> Iterator[None]:
    """Run a Python module as a server until the block ends."""
    log = root / "server.log"
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    } | environment
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=environment, cwd=root, stdout=file, stderr=file
        )
        try:
            wait_for(url, log)
            yield
        finally:
            process.terminate()
            process.wait(20)


def wait_for(url: str, log: Path) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"no server at {url}:\n{log.read_text()}")


def notebook_of(cells: Sequence[str]) -> nbformat.NotebookNode:
    """Return a notebook of these cells."""
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Host:
    """A notebook program: `drive` runs cells in it, `ask` and `run` talk to its kernel.

    Attributes
    ----------
    discard_kernel
        Whether the next test needs a new kernel: this one changes modules.
    """

    page: Page
    server: Server
    name: str
    discard_kernel: bool = False

    def drive(self, cells: Sequence[str]) -> Page:
        """Open a new notebook of these cells and run them all."""
        raise NotImplementedError

    def ask(self, expression: str) -> object:
        """Return the value an expression has in the kernel (as text where it is no literal)."""
        raise NotImplementedError

    def run(self, code: str) -> None:
        """Run a statement in the kernel; no cell shows it."""
        raise NotImplementedError

    def dark(self) -> None:
        """Change to the dark theme."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what the test left."""
        raise NotImplementedError

    def wait(self, expression: str, *, seconds: float = 20) -> None:
        """Wait until an expression is true in the kernel."""
        end = time.monotonic() + seconds
        while not self.ask(f"bool({expression})"):
            assert time.monotonic() < end, f"never true in the kernel: {expression}"
            time.sleep(0.1)


_READY = """async () => {
  const app = window.jupyterapp; await app.restored;
  const panel = app.shell.currentWidget;
  await panel.context.ready; await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
}"""
_OPEN = """async (path) => {
  const app = window.jupyterapp;
  const panel = await app.commands.execute("docmanager:open", { path });
  app.shell.activateById(panel.id);
}"""
_CLOSE = """() => {
  for (const panel of [...window.jupyterapp.shell.widgets("main")]) panel.dispose();
}"""
_ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap(cell =>
  (cell.model.toJSON().outputs ?? []).filter(o => o.output_type === "error")
    .map(o => o.traceback.join("\\n")))"""
_EXECUTE = """async ([code, expression]) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const request = {code, silent: true, store_history: false};
  if (expression) request.user_expressions = {r: expression};
  const reply = (await kernel.requestExecute(request).done).content;
  if (reply.status !== "ok") return ["error", `${reply.ename}: ${reply.evalue}`];
  if (!expression) return ["ok", ""];
  const value = reply.user_expressions.r;
  return value.status === "ok" ? ["ok", value.data["text/plain"]] : ["error", value.evalue];
}"""


@dataclass
class Jupyter(Host):
    """JupyterLab or Notebook 7."""

    darkened: bool = False

    def drive(self, cells: Sequence[str]) -> Page:
        """Open a new notebook of these cells and run them all."""
        name = f"{self.name}-{secrets.token_hex(4)}.ipynb"
        nbformat.write(notebook_of(cells), self.server.root / name)
        self.share_kernel(name)
        self.open(name)
        self.command("notebook:run-all-cells")
        self.ask("None")
        errors = self.page.evaluate(_ERRORS)
        assert not errors, "\n".join(errors)
        return self.page

    def share_kernel(self, name: str) -> None:
        """Let a notebook use the kernel that all notebooks share."""
        server = self.server
        server.kernel = server.kernel or server.request("POST", "kernels")["id"]
        session = {"path": name, "name": name, "type": "notebook", "kernel": {"id": server.kernel}}
        server.request("POST", "sessions", session)

    def open(self, name: str) -> None:
        """Open a notebook that exists, and wait for its kernel."""
        if self.page.url.startswith(f"{self.server.base}/lab"):  # another notebook was open there
            self.page.evaluate(_OPEN, name)
        else:
            folder = {"lab": "lab/tree", "notebook7": "notebooks"}[self.name]
            self.page.goto(f"{self.server.base}/{folder}/{name}?token={self.server.token}&reset")
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")
        self.page.evaluate(_READY)

    def command(self, name: str, **arguments: object) -> None:
        """Run a command of the application."""
        self.page.evaluate(
            "([c, a]) => window.jupyterapp.commands.execute(c, a).then(() => null)",
            [name, arguments],
        )

    def ask(self, expression: str) -> object:
        """Return the value an expression has in the kernel (as text where it is no literal)."""
        return literal(self._execute("", expression))

    def run(self, code: str) -> None:
        """Run a statement in the kernel; no cell shows it."""
        self._execute(code, "")

    def dark(self) -> None:
        """Change to the dark theme."""
        self.darkened = True
        self.command("apputils:change-theme", theme="JupyterLab Dark")
        self.page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")

    def close(self) -> None:
        """Empty the shared kernel, end all others, close notebooks, restore the light theme."""
        if self.darkened:
            self.command("apputils:change-theme", theme="JupyterLab Light")
            self.page.wait_for_selector("body[data-jp-theme-light=true]", state="attached")
        self.darkened = False
        server = self.server
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(400)  # views send what is hovered with a delay
        if server.kernel and not self.discard_kernel:
            self.run(_EMPTY)
        self.page.evaluate(_CLOSE)
        kept = "" if self.discard_kernel else server.kernel
        for kernel in server.request("GET", "kernels"):
            if kernel["id"] != kept:
                server.request("DELETE", f"kernels/{kernel['id']}")
        server.kernel = kept

    def _execute(self, code: str, expression: str) -> str:
        status, text = self.page.evaluate(_EXECUTE, [code, expression])
        assert status == "ok", f"{code or expression}: {text}"
        return str(text)


#: Closes all widgets of a kernel and deletes the names of its notebook.
_EMPTY = """
import ipywidgets
ipywidgets.Widget.close_all()
for _name in set(get_ipython().user_ns) - set(get_ipython().user_ns_hidden):
    if not _name.startswith("_"):
        del get_ipython().user_ns[_name]
"""
_CELL = "@app.cell\ndef _():\n{}\n    return\n"
_ASKING = (
    "import marimo as mo",
    "question = mo.ui.text(label='question', full_width=True)\nquestion",
    """
answer = "ready"
if question.value:
    kind, _, text = question.value.partition(":")[2].partition(":")
    try:
        answer = repr(eval(text, globals())) if kind == "ask" else repr(exec(text, globals()))
    except Exception as error:
        answer = f"error {error!r}"
mo.Html(f"<pre data-testid='answer' data-question='{question.value.partition(':')[0]}'></pre>"
        f"<pre data-testid='answer-text'>{answer.replace('&', '&amp;').replace('<', '&lt;')}</pre>")
""",
)


@dataclass
class Marimo(Host):
    """A marimo app; its last cells evaluate what is typed into a field, which takes the focus."""

    asked: int = 0

    def drive(self, cells: Sequence[str]) -> Page:
        """Write an app of these cells, serve and open it."""
        root = self.server.root
        lines = [
            "\n".join(f"    {line}" for line in cell.strip().splitlines())
            for cell in (*cells, *_ASKING)
        ]
        (root / "app.py").write_text(
            "import marimo\napp = marimo.App()\n\n" + "\n".join(map(_CELL.format, lines))
        )
        self.page.goto(self.server.base)
        self.page.get_by_test_id("answer-text").wait_for()
        return self.page

    def ask(self, expression: str) -> object:
        """Return the value an expression has in the kernel (as text where it is no literal)."""
        return literal(self._send("ask", expression))

    def run(self, code: str) -> None:
        """Run a statement in the kernel."""
        self._send("run", code)

    def dark(self) -> None:
        """Ask for the dark theme as the system does."""
        self.page.emulate_media(color_scheme="dark")

    def close(self) -> None:
        """Nothing is left to close: the session ends with its page."""

    def _send(self, kind: str, text: str) -> str:
        self.asked += 1
        box = self.page.get_by_label("question")
        box.fill(f"{self.asked}:{kind}:{text}")
        box.press("Enter")
        self.page.locator(f"[data-testid=answer][data-question='{self.asked}']").wait_for(
            state="attached"
        )
        answer = self.page.get_by_test_id("answer-text").inner_text()
        assert not answer.startswith("error "), f"{text}: {answer}"
        return answer


def literal(text: str) -> object:
    """Return what a repr says, where it is a plain value."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
