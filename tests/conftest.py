import pytest

LONG = ['test_survival', 'test_cli', 'test_shards', 'test_published', 'test_cfga', 'test_synth', 'test_serve']

def pytest_collection_modifyitems(items):
    "Files of long tests first, so that the workers come to the end together."
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope='module')
def one_thread():
    "Sums in the same order in every process."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
