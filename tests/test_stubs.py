"Stubs say what their modules say."
import ast

import pytest
from stubs import MODULES, ROOT, stub

def meant(text: str) -> str: return ast.dump(ast.parse(text))


@pytest.mark.parametrize('module', MODULES)
def test_stubs_are_up_to_date(module):
    there = (ROOT/f'{module}.pyi').read_text(encoding='utf-8')
    assert meant(there) == meant(stub(ROOT/f'{module}.py')), 'run python tests/stubs.py'
