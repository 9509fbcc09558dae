"""The environment: choices by argument and environment variable, seeds, and the arithmetic for each device."""

import os
import platform
import random
import resource
import statistics
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from helpers import runtime
from helpers.runtime import UserError
from helpers.tests import programs


def test_seeds_are_distinct_whole_numbers():
    assert runtime.parse_seeds("0, 1,2 ") == runtime.parse_seeds("0 1 2 1") == [0, 1, 2]
    for text in ("", "a", "-1", "0.5", "0, x"):
        with pytest.raises(UserError, match=f"SEEDS is '{text}'; write whole numbers, such as 0, 1."):
            runtime.parse_seeds(text)


def test_the_profile_comes_from_the_argument_then_the_environment_then_the_device(monkeypatch, capsys):
    monkeypatch.setenv("PROFILE", "full")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.choose_profile("") == "full"
    assert capsys.readouterr().out == ""
    assert runtime.choose_profile("quick") == "quick"
    choice = "In Colab, choose Runtime → Change runtime type → T4 GPU."
    assert capsys.readouterr().out == f"No GPU here: profile 'quick' (hours on a CPU). {choice}\n"
    monkeypatch.delenv("PROFILE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.choose_profile() == "quick"
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.choose_profile() == "smoke"
    printed = capsys.readouterr().out
    assert printed.startswith("No GPU here: profile 'smoke'") and choice in printed
    with pytest.raises(UserError, match="There is no profile 'huge'; choose one of smoke, quick, full."):
        runtime.choose_profile("huge")


def test_the_data_folder_comes_from_the_argument_then_the_environment_then_the_repository(monkeypatch):
    monkeypatch.setenv("DATA_DIR", "elsewhere")
    assert runtime.data_dir("here").name == "here"
    assert runtime.data_dir().name == "elsewhere"
    monkeypatch.setenv("DATA_DIR", "~nouser/data")
    assert runtime.data_dir() == Path("~nouser/data")
    monkeypatch.delenv("DATA_DIR")
    assert runtime.data_dir() == runtime.ROOT / "data"


def test_a_link_stays_a_link_and_what_is_not_a_file_is_never_replaced(tmp_path):
    """Root could replace /dev/null by a table."""
    (tmp_path / "link").symlink_to("file")
    runtime.save_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is not a file"):
        runtime.save_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_on_a_drive_that_refuses_its_mode_is_written(tmp_path, monkeypatch):
    """As network shares do, and Windows' drives in WSL: a run's record must not be lost for it."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    runtime.save_text(tmp_path / "record.json", "text")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]


def test_an_epoch_draws_the_same_numbers_whatever_was_drawn_before():
    def draw(seed, epoch):
        generator = runtime.seed_epoch(seed, epoch)
        return random.random(), np.random.rand(), torch.rand(()).item(), torch.rand((), generator=generator).item()

    first = draw(1, 2)
    torch.rand(99), np.random.rand(99), random.random()
    assert draw(1, 2) == first
    assert draw(1, 3) != first and draw(2, 2) != first and draw(2, 1) != first


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fma avx2", None),
        ("avx512_f avx512_vnni", None),
        ("avx512_f avx512_bf16", torch.bfloat16),
        ("amx_bf16 amx_tile", torch.bfloat16),
    ],
)
def test_a_cpu_uses_bf16_only_if_it_has_instructions_for_it(monkeypatch, flags, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags.split(), True))
    assert runtime.autocast_dtype(torch.device("cpu")) is dtype


def test_an_older_torch_which_cannot_tell_trains_in_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert runtime.autocast_dtype(torch.device("cpu")) is None


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_uses_bf16_only_if_it_is_native(monkeypatch, native, dtype):
    """A T4 reports bf16 support but emulates it, which is slower than fp16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert runtime.autocast_dtype(torch.device("cuda")) is dtype


def test_a_process_reports_the_commit_of_its_first_run(monkeypatch):
    """A later commit, or a record that appears among the files, does not change the code that this process runs."""
    runtime._git.cache_clear()
    first = runtime.environment(torch.device("cpu"))
    monkeypatch.setattr(runtime.subprocess, "check_output", lambda *_, **__: "another")
    second = runtime.environment(torch.device("cpu"))
    assert (first["commit"], first["dirty"]) == (second["commit"], second["dirty"])


def test_without_tqdm_there_is_no_bar_and_nothing_else_changes(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(runtime.progress(range(3), "counting", 3)) == [0, 1, 2]


def test_the_bar_of_an_epoch_counts_images(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "under_test", lambda: False)
    assert list(runtime.progress(range(3), "epoch 1/2", 3, images=128)) == [0, 1, 2]
    assert "epoch 1/2" in (shown := capsys.readouterr().err) and "/384 [" in shown and " images/s]" in shown


def test_drive_is_mounted_only_in_colab(capsys):
    assert runtime.mount_drive(False) is None and not capsys.readouterr().out
    assert runtime.mount_drive(True) is None
    assert "Not in Colab" in capsys.readouterr().out


def test_drive_is_mounted_once(tmp_path, monkeypatch):
    """Colab asks for permission before it looks whether the Drive is mounted already."""
    places = []

    def mount(place):
        places.append(place)
        (tmp_path / "MyDrive").mkdir()

    colab = types.SimpleNamespace(drive=types.SimpleNamespace(mount=mount))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=colab))
    monkeypatch.setattr(runtime, "Path", lambda path: tmp_path / Path(path).relative_to("/content/drive"))
    assert runtime.mount_drive(False) is None and not places
    for _ in range(2):
        assert runtime.mount_drive(True) == tmp_path / "MyDrive/resnext-notebooks"
    assert places == ["/content/drive"]


def test_kaggle_is_not_colab(monkeypatch):
    """Kaggle's image is built on Colab's, and keeps its variable (kagglehub pull request 230)."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-external_20260819")
    assert runtime.in_colab()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert not runtime.in_colab()


def test_a_notebook_shows_a_user_error_as_one_line(capsys):
    shell = InteractiveShell()
    shell.run_cell("from helpers import runtime\nruntime.choose_profile('fast')")
    shown = capsys.readouterr().out
    assert shown == "There is no profile 'fast'; choose one of smoke, quick, full.\n"
    shell.run_cell("1 / 0")
    assert "Traceback" in capsys.readouterr().out


def page_faults(medians) -> None:
    """Median page faults when filling and freeing 64 MiB, before and after; the median, as a busy machine may reclaim pages."""
    for ready in (lambda: True, runtime.keep_freed_memory_in_process):
        assert ready()
        rounds = []
        for _ in range(20):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(2**24)
            rounds.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        medians.put(statistics.median(rounds))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_stays_with_the_process():
    """Otherwise its pages are zeroed again in every step, which took up to a third of a CPU training step."""
    medians = programs.CONTEXT.SimpleQueue()
    process = programs.CONTEXT.Process(target=page_faults, args=(medians,))  # a separate one: this setting stays
    process.start()
    process.join()
    assert process.exitcode == 0
    returned, kept = medians.get(), medians.get()
    assert kept < returned / 2
