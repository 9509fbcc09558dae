"""Settings for pytest: one thread per process, no GPU, slowest tests first, no files of hypothesis in the working folder."""

import errno
import os
import tempfile

import pytest
from hypothesis import configuration, settings

# Before torch is imported. More threads do not survive in the processes that tests fork, which would wait for them for ever,
# and give other last bits than one; nor does CUDA survive a fork. With CUDA_VISIBLE_DEVICES=0, the test that needs a GPU runs.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

configuration.set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "hypothesis"))
settings.register_profile("house", database=None, deadline=None, derandomize=True, max_examples=25)
settings.load_profile("house")

# Slowest first, after the two that fork: autograd fails in a fork of a process in which it has already started threads.
FIRST = ("test_faults", "test_processes", "05_", "test_layout", "test_experiments", "04_", "06_", "03_", "07_", "test_queue")
FIRST += ("test_bench", "09_", "test_colab", "08_", "01_", "02_", "test_search", "test_claims", "test_fake_gpu", "test_cifar")


def pytest_configure(config):
    """Stop xdist from starting with the files that have the most tests: slow ones would come last and leave a core idle."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((place for place, name in enumerate(FIRST) if name in item.nodeid), len(FIRST)))


@pytest.fixture
def disk_full():
    """A function that fails as the system does when the disk is full, whatever its arguments."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail
