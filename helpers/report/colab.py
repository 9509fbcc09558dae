"""The repository that README's badges and the notebooks' badges and setup cells use: `python -m helpers colab`."""

import re
from pathlib import Path

from helpers.runtime import ROOT, UserError, require, save_text

BADGE = re.compile(r"(https://colab\.research\.google\.com/github/)[^)]*(/notebooks/[^)/]+\.ipynb\))")
# As they appear in a notebook's JSON, where quotes are escaped.
REPO_URL, REF = re.compile(r'(\bREPO_URL = \\"https://github\.com/)[^"\\]+'), re.compile(r'(\bREF = \\")[^"\\]+')


def write(repository: str, ref: str = "main", root: Path = ROOT) -> list[Path]:
    """Point README and every notebook at a branch or tag of a repository; return the files that changed.

    Raises a UserError if the repository is not OWNER/REPO, the ref is not a branch or tag name, or a setup cell is missing.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise UserError(f"'{repository}' is not a GitHub repository; write it as OWNER/REPO.")
    require(re.fullmatch(r"[\w.-]+(/[\w.-]+)*", ref), f"'{ref}' is not a branch or tag name.")
    new_texts = {}
    for path in [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]:
        text = BADGE.sub(rf"\g<1>{repository}/blob/{ref}\g<2>", path.read_text(encoding="utf-8"))
        if path.suffix == ".ipynb":
            text, count = REPO_URL.subn(rf"\g<1>{repository}", text)
            text = REF.sub(rf"\g<1>{ref}", text)
            require(count == 1, f"{path.name} has {count} setup cells where one is expected; nothing was written.")
        new_texts[path] = text
    changed = [path for path, text in new_texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        save_text(path, new_texts[path])
    return changed
