"""Damaged tables: whatever a file holds, a reader gives a table or one line that names a file. Every failure can be
made again: the message has the seed, and the damaged file stays in pytest's folder of the test."""
import io
import json
import random
import re

import miniature
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import loadmat, savemat

from fgir.data.csv import read_table
from fgir.papers.formats import READERS, prepare, read_cfga_json, read_cgd_dicts

VALUES = ['', '-1', '0', 'nan', 'inf', '1e400', '9'*23, 'null', 'x y', '../../etc/passwd', '/etc/passwd', 'a\0b', '\u202e',
          'é'*300, '"', '[1]', '{}', 'true', '\t', '\r', ',,', '1.5', 'id_0', '٣']
NODES = [None, True, -1, 1.5, 10**23, float('inf'), 'text', '', [], {}, [[]], [None], {'a': 1}, 'a\0b', '../x', ['x']*3,
         'id_0', '9'*23]


ARRAYS = [np.array(v) for v in ([[]], [[1, 2]], [[-1]], [[0]], [[1e20]], [[np.nan]], [['text']], [['']], [['a', 'b']], [[1.5]])]


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    "Some bytes are changed, lost, doubled, or put in; or the file ends early."
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, n = rng.randrange(len(data) + 1), rng.choice([1, 2, 9, 100])
        what = rng.randrange(5)
        if what == 0: data[at:at + n] = rng.randbytes(n)
        elif what == 1: del data[at:at + n]
        elif what == 2: data[at:at] = data[at:at + n]
        elif what == 3: data[at:at] = rng.choice(VALUES).encode('utf-8', 'replace')
        elif what == 4 and rng.random() < .3: del data[at:]
    return bytes(data)


def damaged_text(data: bytes, rng: random.Random) -> bytes:
    "One word or number is another."
    text = data.decode('utf-8', 'replace')
    words = list(re.finditer(r'[^\s,"\[\]{}:]+', text))
    if not words: return damaged_bytes(data, rng)
    word = rng.choice(words)
    return (text[:word.start()] + rng.choice(VALUES) + text[word.end():]).encode('utf-8', 'replace')


def damaged_tree(node, rng: random.Random):
    "One part of nested lists and dictionaries is of another kind."
    if not isinstance(node, list | dict) or not node or rng.random() < .2: return rng.choice(NODES)
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    copy = node.copy()
    if isinstance(node, dict) and rng.random() < .2: copy[rng.choice(['', 'x', 0, None, 'id_7', '9'*23])] = copy.pop(key)
    else: copy[key] = damaged_tree(node[key], rng)
    return copy


def damaged_mat(data: bytes, rng: random.Random) -> bytes:
    "The file ends early, or a variable, record or field is another. (Changed bytes can crash scipy itself.)"
    if rng.random() < .2: return data[:rng.randrange(len(data))]
    mat = {name: array for name, array in loadmat(io.BytesIO(data)).items() if not name.startswith('__')}
    name = rng.choice(list(mat))
    if rng.random() < .2: mat.pop(name)
    elif rng.random() < .2: mat[name] = rng.choice(ARRAYS)
    else:
        record = mat[name].ravel()[rng.randrange(mat[name].size)]
        if mat[name].dtype.names: record[rng.choice(mat[name].dtype.names)] = rng.choice(ARRAYS)
        else: mat[name][0, 0] = rng.choice(ARRAYS)
    savemat(out := io.BytesIO(), mat)
    return out.getvalue()


def damaged(path, data: bytes, rng: random.Random) -> bytes:
    if path.suffix == '.json' and rng.random() < .6: return json.dumps(damaged_tree(json.loads(data), rng), skipkeys=True).encode()
    if path.suffix == '.pth' and rng.random() < .8:
        torch.save(damaged_tree(torch.load(io.BytesIO(data)), rng), out := io.BytesIO())
        return out.getvalue()
    if path.suffix == '.mat': return damaged_mat(data, rng)
    if path.suffix in ('.txt', '.csv') and rng.random() < .6: return damaged_text(data, rng)
    return damaged_bytes(data, rng)


def layouts(root):
    "A call for every reader, and the files that it reads."
    for name, make in miniature.SETS.items(): yield name, READERS[name], make(root/name)
    yield 'cars_devkit', READERS['cars'], miniature.cars_devkit(root/'cars_devkit')
    prepare('cub', root/'cub', root/'files', format='both', progress=False)
    yield 'table', lambda folder: read_table(folder/'uncropped_table.csv'), root/'files'
    yield 'cgd', lambda folder: read_cgd_dicts(folder/'uncropped_data_dicts.pth'), root/'files'
    yield 'cfga', read_cfga_json, root/'files'


FILES = dict(table='uncropped_table.*', cgd='*.pth', cfga='*_*s.json')
NAMES = [*(name for name in miniature.SETS if name != 'folder'), 'cars_devkit', *FILES]


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    return {name: (read, root) for name, read, root in layouts(tmp_path_factory.mktemp('sets'))}


@pytest.mark.parametrize('name', NAMES)
def test_a_damaged_file_is_a_table_or_one_line(sets, name):
    read, root = sets[name]
    files = [f for f in sorted(root.rglob(FILES.get(name, '*'))) if f.suffix in ('.txt', '.mat', '.json', '.csv', '.pth')]
    assert files and isinstance(read(root), pd.DataFrame)
    for seed in range(33):
        rng = random.Random(f'{name} {seed}')
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(damaged(file, whole, rng))
        try: table = read(root)
        except (ValueError, OSError) as e:
            message = str(e)
            assert str(root.parent) in message, f'seed {seed}, {file}: names no file: {message}'
            assert '\n' not in message and len(message) < 1000, f'seed {seed}, {file}: {message}'
        except Exception as e: raise AssertionError(f'seed {seed}, {file}: {type(e).__name__}: {e}') from e
        else: assert len(table) and table['label'].dtype == 'int64', f'seed {seed}, {file}'
        file.write_bytes(whole)
