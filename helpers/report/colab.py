"""The text that every notebook shares: its Colab badge and its setup cell, written by `python -m helpers colab`."""

import json
import re
from pathlib import Path

from helpers import runtime
from helpers.runtime import ROOT, UserError

SETUP = """\
# @title Setup: find the helpers, or fetch them {{ display-mode: "form" }}
import os
import subprocess
from pathlib import Path

REPO_URL = "https://github.com/{repository}"  # @param {{type: "string"}}
REF = "{ref}"  # @param {{type: "string"}}

places = (folder for folder in Path("here").resolve().parents if (folder / "helpers/runtime.py").is_file())
root = next(places, Path("resnext-notebooks").resolve())
if not root.is_dir():
    assert "OWNER/REPO" not in (url := os.environ.get("REPO_URL", REPO_URL)), "Set REPO_URL above to the address of your copy."
    subprocess.run(["git", "clone", "-q", "--depth", "1", "-b", os.environ.get("REF", REF), url, str(root)], check=True)
os.chdir(root)
from helpers import runtime

runtime.install_missing()"""

BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/{ref}/notebooks/{notebook})"
)
_BADGE_PATTERN = re.compile(
    r"\[!\[Open In Colab\]\([^)]*\)\]\(https://colab\.research\.google\.com/github/[^)]*/notebooks/(?P<notebook>[^)/]+)\)"
)


def setup_source(repository: str = "OWNER/REPO", ref: str = "main") -> str:
    """The setup cell's source for a repository `OWNER/REPO` at a branch or tag."""
    return SETUP.format(repository=repository, ref=ref)


def write(repository: str, ref: str = "main", root: Path = ROOT) -> list[Path]:
    """Write the badges and setup cells of README and every notebook; return the files that changed.

    Outputs and execution counts stay as they are, and running it again changes nothing.

    Raises:
        UserError: the repository is not OWNER/REPO, the ref is not a branch or tag name, or a notebook has no setup cell.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise UserError(f"'{repository}' is not a GitHub repository; write it as OWNER/REPO.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", ref):
        raise UserError(f"'{ref}' is not a branch or tag name.")

    def badges(text: str) -> str:
        return _BADGE_PATTERN.sub(lambda found: BADGE.format(repository=repository, ref=ref, notebook=found["notebook"]), text)

    new_texts = {root / "README.md": badges((root / "README.md").read_text(encoding="utf-8"))}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        setup = [cell for cell in notebook["cells"] if "".join(cell["source"]).startswith("# @title Setup")]
        if len(setup) != 1:
            raise UserError(f"{path.name} has {len(setup)} setup cells where one is expected; nothing was written.")
        setup[0]["source"] = setup_source(repository, ref).splitlines(keepends=True)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = badges("".join(cell["source"])).splitlines(keepends=True)
        new_texts[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    changed = [path for path, text in new_texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        runtime.save_text(path, new_texts[path])
    return changed
