"""Install the last commit from binder/ alone, run the notebooks, and report their peak memory.

``python -m recipes.binder`` takes some minutes and 6 GB of disk: it installs all packages again.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
LIMIT = 2048  # MiB that Binder allows
_MEASURE = """
import json, resource, sys, time
import nbformat
from nbclient import NotebookClient
start = time.monotonic()
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
seconds = time.monotonic() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({"seconds": round(seconds), "peak_mib": round(peak)}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="vitlens-binder-") as name:
        folder = Path(name)
        checkout, home = folder / "checkout", folder / "home"
        subprocess.run(
            ["git", "clone", "--quiet", "--depth=1", REPOSITORY.as_uri(), checkout], check=True
        )
        home.mkdir()
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        environment = {
            **os.environ,
            "HOME": str(home),
            "PATH": f"{folder / 'env' / 'bin'}:{os.environ['PATH']}",
        }
        environment.pop("PYTHONPATH", None)

        def run(*command: str) -> None:
            subprocess.run(command, cwd=checkout, env=environment, check=True)

        run("python", "-m", "pip", "install", "--quiet", "-r", "binder/requirements.txt")
        run("binder/postBuild")
        run("python", "-m", "pip", "check")
        # From another folder, so that the installed package is imported.
        for notebook in sorted((checkout / "notebooks").glob("*.ipynb")):
            measured = subprocess.run(
                ["python", "-c", _MEASURE, shutil.copy(notebook, home)],
                cwd=home,
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
            print(f"{notebook.name}: {measured.stdout.strip()} ({LIMIT} MiB allowed)", flush=True)


if __name__ == "__main__":
    main()
