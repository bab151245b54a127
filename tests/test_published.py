"""Published numbers: what is in the file, that it comes with an installed package, and what a report says of it."""
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest

from fgir.data.files import shared_dir
from fgir.evaluation.comparison import evaluate
from fgir.evaluation.published import KIND, known_numbers, published_numbers
from fgir.evaluation.reports import report
from fgir.features.store import Features
from fgir.papers.formats import READERS

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT/'fgir'/'evaluation'/'published.csv'
SHARED = shared_dir()


def measured(dataset, n=12):
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(n//3), 3)
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(n)], label=labels, name=labels.astype(str), split='test'))
    record = dict(model='net', dataset=dataset, crop=False, tfms='cgd', size=224)
    return evaluate(Features({'v': rng.normal(size=(n, 4))}, table, record))


def test_every_row_has_a_number_a_protocol_and_a_source():
    rows = published_numbers()
    assert set(rows['dataset']) < set(READERS)
    assert rows[['method', 'selection', 'source']].notna().all().all()
    assert rows[['R@1', 'accuracy']].notna().any(axis=1).all()
    numbers = rows.filter(regex='^R@|accuracy')
    assert ((numbers > .1) & (numbers < 1) | numbers.isna()).all().all()
    assert set(rows['crop'].dropna()) == {'box', 'none'} and set(rows['split'].dropna()) == {'zero-shot', 'official'}
    assert not rows.duplicated(['dataset', *KIND, 'descriptor', 'where', 'note']).any()


def test_recall_does_not_fall_with_the_length_of_the_list():
    "The larger K, the more queries find their class: a row whose recall falls was copied wrongly."
    recalls = published_numbers().filter(regex=r'^R@\d+$')
    assert list(recalls) == sorted(recalls, key=lambda column: int(column[2:]))
    assert not recalls.apply(lambda row: (row.dropna().diff() < 0).any(), axis=1).any()


def test_protocols_move_numbers_as_the_notebook_says():
    rows = published_numbers()
    cgd = rows[(rows['method'] == 'CGD') & rows['dataset'].isin(['cub', 'cars'])]
    crops = cgd.pivot_table(index=['dataset', 'backbone'], columns='crop', values='R@1')
    assert (crops['box'] - crops['none'] > .05).all()
    trained = rows.loc[rows['selection'] != 'none', 'selection']
    assert trained.str.startswith(('test', 'not stated', 'unclear')).all()
    high = published_numbers('cub').query('`R@1` > .8')
    assert high.loc[high['pretraining'] == 'DINO', 'crop'].tolist() == ['box']
    cfga = rows.query("dataset == 'cub' and method == 'pre-trained' and backbone == 'resnet50' and descriptor == 'CFGA+'")
    assert cfga['R@1'].tolist() == [.633]


def test_the_file_is_printed_percent_and_the_table_fractions():
    raw, rows = pd.read_csv(FILE, keep_default_na=False, dtype=str), published_numbers('sop')
    line = raw[(raw['dataset'] == 'sop') & (raw['method'] == 'CGD') & (raw['backbone'] == 'resnet50')].iloc[0]
    row = rows[(rows['method'] == 'CGD') & (rows['backbone'] == 'resnet50')].iloc[0]
    assert line[['R@1', 'R@10', 'R@100', 'R@1000']].tolist() == ['79.3', '90.6', '95.8', '98.6']
    np.testing.assert_allclose(row[['R@1', 'R@10', 'R@100', 'R@1000']].astype(float), [.793, .906, .958, .986])
    assert 'R@2' not in rows and row['n_queries'] == 60502


def test_the_best_of_each_kind_is_the_highest():
    every, best = published_numbers('cub'), published_numbers('cub', best=True)
    key = list(KIND)
    highest = every.groupby(key, dropna=False)['R@1'].max().dropna()
    found = best.set_index(key)['R@1'].sort_index()
    pd.testing.assert_series_equal(found, highest.sort_index(), check_exact=True, check_index_type=False)
    assert best['R@1'].is_monotonic_decreasing and 0 < len(best) < len(every)
    with pytest.raises(ValueError, match="found 'dogs'"): published_numbers('dogs')


def test_known_numbers_are_those_of_the_data_set():
    assert set(known_numbers(measured('inshop'))['dataset']) == {'inshop'}
    for name in (None, 'synth', 'folder', 'aircraft'): assert known_numbers(measured(name)) is None


def test_a_report_shows_them_below_its_own_best(tmp_path):
    results = measured('cars')
    html = report(results, tmp_path/'r.html', 'cars', published=known_numbers(results)).read_text(encoding='utf-8')
    section = html.partition('<h2>Published</h2>')[2].partition('</section>')[0]
    assert section.count('(this page)') == 1 and section.index('(this page)') < section.index('CGD')
    assert '92.4' in section and 'README of the CGD program' in section
    assert 'This page asked 12 queries, the usual test set has 8131' in section
    alone = report(results, tmp_path/'s.html', 'cars').read_text(encoding='utf-8')
    assert 'Published' not in alone


@pytest.mark.data
@pytest.mark.skipif(not SHARED or not (SHARED/'seeds').is_dir(), reason='needs the folder that FGIR_SHARED names')
def test_the_numbers_of_the_programs_stand_in_their_readmes():
    raw = pd.read_csv(FILE, keep_default_na=False, dtype=str)
    texts = {path.name[:3]: path.read_text(encoding='utf-8') for path in (SHARED/'seeds').glob('*.txt')}
    for file, name in {'002': 'CGD', '003': 'PP', '004': 'FGIC'}.items():
        rows = raw[raw['source'].str.startswith(f'README of the {name} program')].filter(regex='^R@|accuracy')
        numbers = [v for v in rows.to_numpy().ravel() if v]
        assert len(numbers) > 8 and not [v for v in numbers if v not in texts[file]]


def test_the_file_comes_with_an_installed_package(tmp_path):
    source = tmp_path/'source'
    shutil.copytree(ROOT/'fgir', source/'fgir', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, source/name)
    build = [sys.executable, '-m', 'pip', 'wheel', '.', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    wheel, = tmp_path.glob('*.whl')
    with ZipFile(wheel) as file:
        packed = {name: file.read(name) for name in file.namelist() if name.startswith('fgir/')}
    ours = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in (ROOT/'fgir').rglob('*') if p.is_file() and p.suffix != '.pyc'}
    assert packed == ours and {'fgir/evaluation/published.csv', 'fgir/evaluation/report.css', 'fgir/py.typed'} <= packed.keys()
