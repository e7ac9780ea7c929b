"""Each notebook of examples/ runs from start to finish in a fresh kernel, and reaches what its text promises."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
PROMISES = {
    "convert": """
assert accuracy(dense) > 0.97
assert fewer_macs.macs_after <= 0.5 * fewer_macs.macs_before
assert before > accuracy(dense) - 0.08
assert accuracy(student) > accuracy(dense) - 0.03
assert accuracy(less_time.model) > accuracy(dense) - 0.08
rows = less_time.comparison.rows
assert not any(row.problem for row in rows)
assert less_time.dense_ms == min(row.ms for row in rows if row.network == "dense")
assert sum(row.examples for row in found.classes) == 500
assert (accelerated - expected).abs().max() < 1e-3
assert abs(in_onnxruntime - accuracy(student)) < 0.005
"""  # no time is promised: the machine of a test may be busy
}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_runs_from_start_to_finish(notebook, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for needed in ("ipykernel", "onnxruntime", "sklearn"):
        pytest.importorskip(needed)
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    book.cells.append(nbformat.v4.new_code_cell(PROMISES[notebook.stem]))
    run = nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    run.execute()  # raises, with the cell and its error, where one fails


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_holds_no_outputs_of_another_machine(notebook):
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_is_small(notebook):
    assert notebook.stat().st_size < 1 << 16
