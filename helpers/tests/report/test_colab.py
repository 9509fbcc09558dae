"""What a Colab user meets: badges, the setup cell, and one notebook alone in an empty folder."""

import json
import re
import shutil
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.report import colab
from helpers.runtime import ROOT, UserError

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def constants(source):
    return re.search(r'"https://github.com/([^"]+)"', source)[1], re.search(r'REF = "([^"]+)"', source)[1]


def test_readme_and_every_notebook_agree_on_the_repository():
    repository, ref = constants("".join(cells(NOTEBOOKS[0])[1]["source"]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        badge = colab.BADGE.format(repository=repository, ref=ref, notebook=path.name)
        assert badge in readme
        assert badge in "".join(cells(path)[0]["source"])
        assert "".join(cells(path)[1]["source"]) == colab.setup_source(repository, ref)


@pytest.fixture
def copy(tmp_path):
    """A copy of README and the notebooks."""
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_writing_another_repository_changes_badges_and_constants_and_nothing_else(copy):
    original = {path: path.read_text(encoding="utf-8") for path in [copy / "README.md", *copy.glob("notebooks/*.ipynb")]}
    repository, ref = constants("".join(cells(NOTEBOOKS[0])[1]["source"]))
    changed = colab.write("some-body/some.repo", "v1.0", copy)
    assert sorted(changed) == sorted(original)
    assert colab.write("some-body/some.repo", "v1.0", copy) == [], "again: nothing to change"
    for path in original:
        assert "some-body/some.repo" in path.read_text(encoding="utf-8")
    colab.write(repository, ref, copy)
    assert {path: path.read_text(encoding="utf-8") for path in original} == original


def test_a_notebook_without_its_setup_cell_stops_before_anything_is_written(copy):
    broken = copy / "notebooks" / NOTEBOOKS[-1].name
    notebook = json.loads(broken.read_text(encoding="utf-8"))
    del notebook["cells"][1]
    broken.write_text(json.dumps(notebook), encoding="utf-8")
    before = (copy / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=f"{NOTEBOOKS[-1].name} has 0 setup cells"):
        colab.write("some-body/else", root=copy)
    assert (copy / "README.md").read_text(encoding="utf-8") == before


def test_one_notebook_alone_in_an_empty_folder_fetches_the_rest_and_runs(tmp_path, monkeypatch):
    """What a Colab user does: nothing but the notebook is there, and *Run all*."""
    origin, alone = tmp_path / "origin", tmp_path / "alone"
    shutil.copytree(ROOT / "helpers", origin / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "the suite"]):
        subprocess.run(["git", *identity, *command], cwd=origin, check=True)
    alone.mkdir()
    for name, value in {"REPO_URL": origin.as_uri(), "REF": "main", "PROFILE": "smoke", "CI": "true"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "notebooks" / "03_train_pikachu.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(alone)}}).execute()
    assert (alone / "resnext-notebooks" / "helpers" / "runtime.py").is_file()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_notebooks_are_committed_executed_and_clean():
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), path.name
        assert "widgets" not in notebook["metadata"]
        lines = [len("".join(cell["source"]).splitlines()) for cell in code]
        assert max(lines) <= 30
        text = json.dumps([cell["outputs"] for cell in code])
        assert not re.search(r"Warning|Traceback|/(home|root|tmp|content|Users)/", text), path.name
        assert "SAMPLE" not in text and "'smoke'" not in text, f"{path.name} was stored on sample data"


def test_the_ci_runs_the_readmes_test_command():
    commands = re.findall(r"```bash\n(.*?)\n```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    test = next(command for command in commands if "pytest" in command)
    assert test in (ROOT / ".ci" / "run").read_text().splitlines()
    assert f"- run: {test}" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
