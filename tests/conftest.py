import gc
import os

import pytest

os.environ.setdefault('FGIR_PRECISION', 'float32')  # the same numbers on every machine

# What is imported lives to the end: the collector need not look through half a million objects again and again.
gc.disable()

LONG = ['test_survival', 'test_cli', 'test_shards', 'test_published', 'test_cfga', 'test_synth', 'test_serve']

def pytest_collection_modifyitems(items):
    """Who starts processes first, so that these tests are one worker's, which imports once for all of them.

    Then files of long tests, so that the workers come to the end together.
    """
    def rank(item):
        name = item.path.stem
        return not item.get_closest_marker('processes'), LONG.index(name) if name in LONG else len(LONG)
    items.sort(key=rank)
    gc.freeze()
    gc.enable()


@pytest.fixture(scope='module')
def one_thread():
    "Sums in the same order in every process."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
