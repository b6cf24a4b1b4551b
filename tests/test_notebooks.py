"""The notebooks keep the course's rhythm, carry the outputs of one run in order, and type no result into prose."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob("0*_*/*.ipynb"))


def load(path: Path) -> list[dict]:
    cells = json.loads(path.read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def output_text(cell: dict) -> str:
    return json.dumps(cell.get("outputs", []))


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.relative_to(ROOT).as_posix())
def cells(request):
    return load(request.param)


def test_there_are_notebooks_in_every_part():
    assert {p.parent.name for p in NOTEBOOKS} == {
        "01_supervised_finetuning", "02_reward_modeling", "03_ppo_alignment", "04_evaluation",
    }  # fmt: skip


def test_rhythm(cells):
    code = [c for c in cells if c["cell_type"] == "code"]
    prose = [c for c in cells if c["cell_type"] == "markdown"]
    lines = [len([line for line in c["source"].split("\n") if line.strip()]) for c in code]
    assert 35 <= len(cells) <= 60
    assert 1.2 <= len(prose) / len(code) <= 1.8
    assert statistics.median(lines) <= 10 and max(lines) <= 35
    assert statistics.median(len(c["source"].split()) for c in prose) >= 25
    kinds = "".join("c" if c["cell_type"] == "code" else "m" for c in cells)
    assert "ccc" not in kinds


def test_executed_once_in_order_without_errors_warnings_paths_or_debris(cells):
    code = [c for c in cells if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    for cell in code:
        text = output_text(cell)
        assert not any(o["output_type"] == "error" for o in cell["outputs"])
        assert not any(o.get("name") == "stderr" for o in cell["outputs"]), text[:300]
        assert not re.search(r"/(root|work|tmp|home|Users)/", text)
        assert not re.search(r"\d+%\|", text)


def test_outputs_are_those_of_a_full_run(cells):
    setup = next(c for c in cells if "start(RECIPE)" in c["source"])
    assert "scale full" in output_text(setup)


def test_at_least_two_fifths_of_the_printing_cells_are_strict(cells):
    printing = [c for c in cells if c["cell_type"] == "code" and c["outputs"]]
    strict = [c for c in printing if "nbval-ignore-output" not in c["metadata"].get("tags", [])]
    assert len(strict) >= 0.4 * len(printing)


def test_no_result_is_typed_into_prose(cells):
    """Decimals and percentages stand in toy sections and citations only."""
    section = ""
    for cell in cells:
        if cell["cell_type"] != "markdown":
            continue
        if heading := re.findall(r"^#+ (.+)$", cell["source"], re.M):
            section = heading[-1].lower()
        if "toy" in section or "by hand" in section:
            continue
        paragraphs = re.split(r"\n\s*\n", cell["source"])
        text = "\n\n".join(p for p in paragraphs if "arXiv" not in p and " et al." not in p)
        typed = re.findall(r"(?<![\w.])\d*\.\d+|\d+ ?%", text)
        assert not typed, f"{typed} in section {section!r}"


def test_the_setup_cell_is_the_same_everywhere():
    setups = {next(c["source"] for c in load(p) if "start(RECIPE)" in c["source"]) for p in NOTEBOOKS}
    assert len(setups) == 1
