"""House rules: limits on files, functions and notebooks; one test command; valid, clean notebooks."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from helpers.runtime import ROOT

LINES, FILE_LINES, FUNCTION_LINES, CLAIMS_LINES = 6200, 300, 40, 800
NOTEBOOK_LINES, WORDS, SETUP_LINES, DEFINITION_LINES, CELL_LINES, COLUMNS = range(80, 131), 1600, 15, 20, 10, 90

# Limits that are still exceeded, with today's value. A value may only fall; an entry is removed once its limit holds.
TODAY = {
    "lines": 8121,
    "files": {},
    "functions": {},
    "notebooks": {},
}

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = [path for path in sorted((ROOT / "helpers").rglob("*.py")) if "tests" not in path.parts]
MACHINE_PATH = re.compile(r"/(?:home|root|Users|tmp|work|opt|mnt|content|var/folders)/\w|[A-Z]:\\\\Users")


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def function_lengths(path: Path) -> dict[str, int]:
    """The lines in the body of each function in a file, without its docstring: {"file:function": lines}."""
    lengths = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[ast.get_docstring(node) is not None :]
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            name = f"{path.relative_to(ROOT).as_posix()}:{node.name}"
            lengths[name] = max(length, lengths.get(name, 0))
    return lengths


def over(found: dict[str, int], limit: int, today: dict[str, int]) -> dict[str, int]:
    """The entries above the limit, or above today's value if that is higher."""
    return {name: size for name, size in found.items() if size > max(limit, today.get(name, 0))}


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_the_helpers_stay_small():
    assert sum(map(lines, SOURCES)) <= max(LINES, TODAY["lines"])
    claims = [path for path in SOURCES if "claims" in path.relative_to(ROOT).parts]
    assert sum(map(lines, claims)) <= CLAIMS_LINES


def test_files_and_functions_stay_short():
    files = {path.relative_to(ROOT).as_posix(): lines(path) for path in SOURCES}
    assert over(files, FILE_LINES, TODAY["files"]) == {}
    functions = {name: length for path in SOURCES for name, length in function_lengths(path).items()}
    assert over(functions, FUNCTION_LINES, TODAY["functions"]) == {}


def test_the_length_of_a_function_is_counted_without_its_docstring(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.tests.test_house.ROOT", tmp_path)
    source = tmp_path / "one.py"
    source.write_text('def f():\n    """Two\n    lines."""\n    a = 1\n\n    return a\n')
    assert function_lengths(source) == {"one.py:f": 3}


def cell_lines(cell) -> int:
    return sum(1 for line in cell.source.splitlines() if line.strip())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short(path):
    setup, *cells = code_cells(path)
    total = cell_lines(setup) + sum(map(cell_lines, cells))
    assert total in NOTEBOOK_LINES or total <= TODAY["notebooks"].get(path.name, 0)
    limits = [DEFINITION_LINES if cell.source.startswith(("class ", "def ")) else CELL_LINES for cell in cells]
    long = [cell.source for cell, limit in zip(cells, limits, strict=True) if cell_lines(cell) > limit]
    assert long == [] and cell_lines(setup) <= SETUP_LINES
    text = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert sum(len(words.split()) for words in text) <= WORDS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_clean(path):
    """No paths of the machine that ran it, no widget state, warnings or sample data; run once from top to bottom."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    printed = "\n".join(text for cell in cells for output in cell.outputs for text in texts(output))
    assert MACHINE_PATH.findall(printed) == []
    lines = [line for cell in cells for output in cell.outputs for line in output.get("text", "").splitlines()]
    assert [line for line in lines if len(line) > COLUMNS] == [], "wider than the page"
    assert re.findall(r"\w*Warning|Traceback|SAMPLE|'smoke'", printed) == []


def test_every_link_from_a_notebook_to_the_notes_has_its_heading():
    headings = re.findall("^## (.*)$", (ROOT / "results/notes.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}  # as GitHub makes them
    links = re.findall(r"\(\.\./results/notes\.md#([^)]*)\)", "".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS))
    assert links and set(links) <= anchors


def texts(output) -> list[str]:
    """All text of a cell's output."""
    shown = [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return [*shown, output.get("text", ""), *output.get("traceback", [])]


def test_ci_and_readme_use_the_same_test_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"```bash\n(python -m pip install .*)\n```", readme)
    assert len(commands) == 2 and " -m pytest " in commands[1]
    assert commands[1] in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert f"- run: {commands[1]}\n" in (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")


def test_ci_and_pre_commit_run_the_same_linters():
    files = [(ROOT / name).read_text(encoding="utf-8") for name in (".ci/run", ".pre-commit-config.yaml")]
    in_ci, before_commits = (set(re.findall(r'"((?:ruff|import-linter)~=[\d.]+)"', text)) for text in files)
    assert in_ci == before_commits and len(in_ci) == 2


def test_every_test_that_the_security_page_names_exists():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\((helpers/tests/[^)]+)\)", page)
    assert named and [path for path in named if not (ROOT / path).is_file()] == []
