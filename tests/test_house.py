"""Chapters import from earlier ones, nobody imports what another module keeps to itself, every public name is listed."""
import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import fgir

ROOT = Path(fgir.__file__).parent
CHAPTERS = ['data', 'backbones', 'losses', 'features', 'training', 'papers', 'evaluation', 'gallery', 'app']
MODULES = {f'fgir.{p.parent.name}.{p.stem}': p for p in ROOT.glob('*/*.py') if p.stem != '__init__'}


def chapter_of(name: str) -> int: return CHAPTERS.index(name.split('.')[1])


def imported(text: str, module: str) -> Iterator[tuple[str, str]]:
    "Module and name of every import from fgir in a module's text, inside functions and by a name in quotes too."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            above = module.split('.')[:-node.level] if node.level else []
            where = '.'.join([*above, *filter(None, [node.module])])
            if where.startswith('fgir.'): yield from ((where, alias.name) for alias in node.names)
            elif where == 'fgir': yield from ((f'fgir.{alias.name}', '') for alias in node.names if alias.name in CHAPTERS)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, '') for alias in node.names if alias.name.startswith('fgir.'))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r'fgir\.\w+(\.\w+)+', node.value):
            where, _, name = node.value.rpartition('.')
            yield where, name


def kept_to_itself(name: str) -> bool: return name.startswith('_') and not name.startswith('__')


def test_imports_are_found_however_they_are_written():
    text = """if True:
        from fgir.data.table import BOX, _refuse
        import fgir.app.cli
        def later():
            from ..gallery.index import Index
            return import_module('fgir.papers.cgd')"""
    assert sorted(imported(text, 'fgir.features.store')) == [
        ('fgir.app.cli', ''), ('fgir.data.table', 'BOX'), ('fgir.data.table', '_refuse'), ('fgir.gallery.index', 'Index'),
        ('fgir.papers', 'cgd')]


def test_every_module_is_a_room_of_a_chapter():
    assert {p.name for p in ROOT.glob('*.py')} == {'__init__.py', '_modidx.py'}
    assert {name.split('.')[1] for name in MODULES} == set(CHAPTERS)


@pytest.mark.parametrize('module', sorted(MODULES))
def test_arrows_point_down_and_underscores_stay_at_home(module):
    found = list(imported(MODULES[module].read_text(encoding='utf-8'), module))
    assert not [(where, name) for where, name in found if chapter_of(where) > chapter_of(module)]
    assert not [(where, name) for where, name in found if where != module and kept_to_itself(name)]


@pytest.mark.parametrize('module', sorted(MODULES))
def test_every_public_name_is_listed_by_its_chapter(module):
    listed = import_module(module.rpartition('.')[0]).__all__
    assert not set(import_module(module).__all__) - set(listed)
