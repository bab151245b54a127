"""The package as a whole: what `import fgir` costs, and what it offers."""
import subprocess
import sys

import pytest

import fgir

def python(code: str) -> str:
    return subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_is_light():
    code = """if True:
        import sys, time
        start = time.perf_counter()
        import fgir
        heavy = {'torch', 'torchvision', 'fastai', 'pandas', 'timm', 'faiss', 'matplotlib'}
        print(time.perf_counter() - start, *heavy & {m.split('.')[0] for m in sys.modules})"""
    seconds, *heavy = python(code).split()
    assert float(seconds) < 1 and heavy == []


def test_command_line_is_light():
    assert python("import sys; from fgir.app import cli; print('torch' in sys.modules)") == 'False'


@pytest.mark.parametrize('name', fgir.__all__)
def test_name_resolves(name):
    assert getattr(fgir, name) is not None
    assert name in dir(fgir)


def test_modules_and_unknown_names():
    from fgir import data
    assert fgir.data is data
    with pytest.raises(AttributeError, match='no_such_name'): _ = fgir.no_such_name
