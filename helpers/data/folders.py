"""Image folders: where their splits and classes lie, and which files they hold."""

import os
from collections import Counter
from pathlib import Path
from posixpath import basename, dirname

from helpers.runtime import UserError

SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {split: split for split in SPLITS} | {"val": "validation", "valid": "validation"}
EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}


File = tuple[str, int, int]  # path in the folder of the data, with '/'; bytes; nanoseconds of the last change


def stamp(path: str, entry: Path | os.DirEntry) -> File:
    """The file behind a directory entry, under its path in the data: what gives away that it was changed."""
    status = entry.stat()
    return path, status.st_size, status.st_mtime_ns


def place(folder: str) -> tuple[str, str]:
    """The split and the class of the files in a folder; train, to be split later, where there are only class folders."""
    split, _, class_name = folder.rpartition("/")
    return SPLIT_FOLDERS[split.lower()] if split else "train", class_name


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return [Path(entry.path) for entry in _visible(folder) if entry.is_dir()]


def _visible(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in IGNORED]
    return sorted(shown, key=lambda entry: entry.name)


def holds_images(folder: Path) -> bool:
    """Whether a file in it is called like an image."""
    return any(Path(entry.name).suffix.lower() in EXTENSIONS and entry.is_file() for entry in _visible(folder))


def split_folders(folder: Path) -> list[tuple[str, Path]]:
    """(split, its folder) for each subfolder that is named like a split and is not itself a class with images."""
    named = [(SPLIT_FOLDERS.get(path.name.lower()), path) for path in subfolders(folder)]
    return [(split, path) for split, path in named if split and not holds_images(path)]


def is_image_folder(folder: Path) -> bool:
    """Whether it has a train split, or else two classes or more."""
    has_train = any(split == "train" for split, _ in split_folders(folder))
    return has_train or sum(holds_images(path) for path in subfolders(folder)) > 1


def unwrap(folder: Path) -> Path:
    """The folder that has the splits or classes: unpacked archives often lie one folder deeper."""
    while not is_image_folder(folder) and not holds_images(folder):
        inner = subfolders(folder)
        if len(inner) != 1 or holds_images(inner[0]):
            break
        folder = inner[0]
    return folder


def list_files(root: Path, source: str) -> list[File]:
    """Every file in every class folder, sorted by path.

    Raises:
        UserError: a split or a class is missing, empty or there twice; the sentence calls the folder by its `source`.
    """
    groups = split_folders(root)
    splits = Counter(split for split, _ in groups)
    if groups and {"train", "test"} - set(splits):
        raise UserError(f"The {source} has the splits {', '.join(splits)}; it needs train and test, or only classes.")
    if twice := [split for split, number in splits.items() if number > 1]:
        raise UserError(f"The {source} has two folders for the {twice[0]} split; keep one of them.")
    files = []
    for split, group in groups or [("", root)]:
        # Where the data folder itself is the image folder, `cache` is ours and no class.
        classes = [folder for folder in subfolders(group) if groups or folder.name != "cache"]
        if groups and not classes:
            raise UserError(f"The {split} split of the {source} is empty; put a folder for each class into it.")
        for folder in classes:
            inside = folder.relative_to(root).as_posix()
            found = [stamp(f"{inside}/{entry.name}", entry) for entry in _visible(folder) if entry.is_file()]
            if not found:
                raise UserError(f"The class folder '{inside}' of the {source} is empty.")
            files += found
    _check_classes({dirname(path) for path, _, _ in files}, [path.name for _, path in groups], source)
    return sorted(files)


def _check_classes(folders: set[str], split_names: list[str], source: str) -> None:
    classes = sorted({basename(folder) for folder in folders})
    if not classes:
        raise UserError(f"The {source} is empty; put a folder for each class into it, with the images inside.")
    if len(classes) == 1:
        raise UserError(f"The {source} has one class, '{classes[0]}'; telling classes apart needs at least two.")
    for split in split_names:
        if missing := [name for name in classes if f"{split}/{name}" not in folders]:
            raise UserError(f"The {source} has no class '{missing[0]}' in {split}/; every split needs every class.")
