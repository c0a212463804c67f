"""`python notebooks/pictures.py`: run every notebook, each in an empty folder, and keep its pictures in docs/."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells, which work in `folder`."""
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    return client.execute(env=env)


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    """The PNG files among its outputs, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        for number, picture in enumerate(pictures(notebook), 1):
            kept = ROOT / "docs" / f"{path.stem}-{number}.png"
            kept.write_bytes(picture)
            print(kept.relative_to(ROOT))
