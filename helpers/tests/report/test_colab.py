"""What a Colab user relies on: badges, the setup cell, and one notebook alone in an empty folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import runtime
from helpers.report import colab
from helpers.runtime import ROOT, UserError

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def setup_source():
    """The setup cell, the same in every notebook."""
    return "".join(cells(NOTEBOOKS[0])[1]["source"])


def constants(source):
    return re.search(r'"https://github.com/([^"]+)"', source)[1], re.search(r'REF = "([^"]+)"', source)[1]


def test_readme_and_every_notebook_agree_on_the_repository():
    repository, ref = constants(setup_source())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        address = f"https://colab.research.google.com/github/{repository}/blob/{ref}/notebooks/{path.name}"
        badge = f"[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
        assert badge in readme
        assert badge in "".join(cells(path)[0]["source"])
        assert "".join(cells(path)[1]["source"]) == setup_source()


def git(folder, *arguments):
    plain = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull}  # neither the user's hooks nor their signature
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, env=plain).stdout


def commit(folder):
    git(folder, "add", ".")
    git(folder, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-q", "-m", "the suite")


@pytest.fixture
def copy(tmp_path):
    """A copy of README and the notebooks."""
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_writing_another_repository_changes_only_badges_and_constants(copy):
    original = {path: path.read_text(encoding="utf-8") for path in [copy / "README.md", *copy.glob("notebooks/*.ipynb")]}
    repository, ref = constants(setup_source())
    changed = colab.write("some-body/some.repo", "v1.0", copy)
    assert sorted(changed) == sorted(original)
    assert colab.write("some-body/some.repo", "v1.0", copy) == [], "the second time, there is nothing to change"
    for path in original:
        text = path.read_text(encoding="utf-8")
        assert "github/some-body/some.repo/blob/v1.0/notebooks/" in text and f"/{repository}" not in text
        assert path.suffix != ".ipynb" or constants("".join(cells(path)[1]["source"])) == ("some-body/some.repo", "v1.0")
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


def test_a_notebook_alone_in_an_empty_folder_fetches_the_rest(tmp_path, monkeypatch):
    """As in Colab: only the notebook exists, and the user chooses *Run all*."""
    origin, alone = tmp_path / "origin", tmp_path / "alone"
    shutil.copytree(ROOT / "helpers", origin / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    git(origin, "init", "-q", "-b", "main")
    commit(origin)
    alone.mkdir()
    for name, value in {"REPO_URL": origin.as_uri(), "REF": "main", "CI": "true"}.items():
        monkeypatch.setenv(name, value)
    story = "from helpers import data, experiments, models, report, training\n\nprint(report.__file__)"
    cells = [nbformat.v4.new_code_cell(source) for source in (setup_source(), setup_source(), story)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(alone)}}).execute()
    assert [path.name for path in alone.iterdir()] == ["resnext-notebooks"], "the second setup cell fetches nothing"
    assert notebook.cells[-1].outputs[0].text.strip() == str(alone / "resnext-notebooks/helpers/report/__init__.py")


def test_the_setup_cell_is_under_fifteen_lines_and_installs_neither_torch_nor_numpy(monkeypatch):
    lines = [line for line in setup_source().splitlines() if line]
    assert len(lines) < 15 and not any(line.lstrip().startswith(("!", "%", "except")) for line in lines)
    called = []
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    monkeypatch.setattr(runtime.subprocess, "run", lambda command, check: called.extend(command))
    runtime.install_missing()
    assert {"torchsummary", "scikit-learn"} <= set(called) and not {"torch", "torchvision", "numpy"} & set(called)


def test_a_setup_cell_without_a_repository_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("REPO_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="Set REPO_URL above to the address of your copy"):
        exec(setup_source().replace(constants(setup_source())[0], "OWNER/REPO"), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("repository", ["some-body/some.repo", "OWNER/REPO"])
def test_the_links_workflow_points_a_fork_to_itself_and_leaves_upstream_alone(tmp_path, repository, monkeypatch):
    """Run its steps, except the installation, in a clone whose origin is a bare repository."""
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    clone.mkdir()
    for name in ("README.md", "helpers", "notebooks", ".github"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    colab.write("OWNER/REPO", root=clone)  # this copy of the repository may have been pointed elsewhere
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(origin))
    git(clone, "init", "-q", "-b", "main")
    commit(clone)
    git(clone, "remote", "add", "origin", str(origin))
    git(clone, "push", "-q", "-u", "origin", "main")
    output = tmp_path / "output"
    output.touch()
    around = {"GITHUB_REPOSITORY": repository, "GITHUB_REF_NAME": "main", "GITHUB_OUTPUT": str(output), "CI": "true"}
    around |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    workflow = (clone / ".github/workflows/links.yml").read_text(encoding="utf-8")
    check, rewrite = (
        textwrap.dedent(step) for step in re.findall(r"run: \|\n((?: {10}.*\n)+)", workflow) if "pip install" not in step
    )
    subprocess.run(["bash", "-e", "-c", check], cwd=clone, check=True)
    assert output.read_text() == ("elsewhere=true\n" if repository != "OWNER/REPO" else "")
    if output.read_text():
        subprocess.run(["bash", "-e", "-c", rewrite], cwd=clone, check=True)
    subjects = git(origin, "log", "--format=%s", "main").splitlines()
    assert subjects[:-1] == ([f"Point badges and setup cells to {repository}"] if repository != "OWNER/REPO" else [])
    assert f"google.com/github/{repository}/" in git(origin, "show", "main:README.md")
