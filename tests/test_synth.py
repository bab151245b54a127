"The drawn data set: the same for the same arguments, in CUB's layout, never half there, not solved by color."

import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgir.data import fish as synth
from fgir.data.fish import draw_fish, synth_classes, synth_dataset
from fgir.data.images import load_row
from fgir.data.readers import read_cub

SMALL = dict(n_classes=4, n_per_class=3, size=32, progress=False)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def in_another_process(statement: str) -> subprocess.Popen:
    "Run `statement` after `from fgir.data.fish import synth_dataset`, in a fresh Python."
    folder = str(Path(synth.__file__).parents[1])
    env = os.environ | {'PYTHONPATH': os.pathsep.join([folder, os.environ.get('PYTHONPATH', '')])}
    return subprocess.Popen([sys.executable, '-c', f'from fgir.data.fish import synth_dataset; {statement}'], env=env)


def test_same_bytes_again_and_elsewhere(tmp_path):
    synth_dataset(tmp_path/'a', **SMALL)
    np.random.default_rng(7).random(5)
    np.random.seed(1)
    synth_dataset(tmp_path/'b', **SMALL)
    process = in_another_process(f'synth_dataset({str(tmp_path/"c")!r}, **{SMALL!r})')
    assert process.wait() == 0
    assert contents(tmp_path/'a') == contents(tmp_path/'b') == contents(tmp_path/'c')
    synth_dataset(tmp_path/'d', seed=1, **SMALL)
    assert contents(tmp_path/'a') != contents(tmp_path/'d')


def test_larger_set_begins_with_smaller(tmp_path):
    synth_dataset(tmp_path/'small', **SMALL)
    synth_dataset(tmp_path/'large', **SMALL | dict(n_classes=6, n_per_class=4))
    small, large = contents(tmp_path/'small'), contents(tmp_path/'large')
    pictures = {p: b for p, b in small.items() if p.endswith('.jpg')}
    assert len(pictures) == 12
    assert pictures.items() <= large.items()


def test_no_two_pictures_alike(tmp_path):
    synth_dataset(tmp_path, **SMALL | dict(n_per_class=20))
    pictures = [b for p, b in contents(tmp_path).items() if p.endswith('.jpg')]
    assert len(set(pictures)) == 80


def test_layout(tmp_path):
    table = synth_dataset(tmp_path, **SMALL)
    assert table.attrs == {'root': str(tmp_path), 'dataset': 'synth', 'split': 'zero-shot'}
    assert table['split'].tolist() == ['train']*6 + ['test']*6
    assert table['label'].tolist() == [0]*3 + [1]*3 + [2]*3 + [3]*3
    names = ['.'.join([f'{k:03}', '_'.join(c.values())]) for k, c in enumerate(synth_classes(4), 1)]
    assert table['name'].drop_duplicates().tolist() == names
    assert [p.split('/')[1] for p in table['path']] == table['name'].tolist()
    assert all(load_row(table, i).size == (32, 32) for i in range(12))
    official = read_cub(tmp_path, split='official')
    assert official.groupby('name')['split'].apply(set).map(len).eq(2).all()


def test_box_holds_the_fish_and_nothing_more(monkeypatch):
    colors = ['body', 'fins', 'marks', 'white', 'black']
    monkeypatch.setattr(synth, '_random_palette', lambda rng: dict.fromkeys(colors, (255, 0, 255)))
    monkeypatch.setattr(synth, '_water', lambda side, rng: Image.new('RGB', (side, side)))
    monkeypatch.setattr(synth, '_light', lambda image, rng: image)
    for name in ('_weeds', '_ellipses'): monkeypatch.setattr(synth, name, lambda *args: None)
    for seed, traits in enumerate(synth_classes(40)):
        image, box = draw_fish(traits, 96, seed)
        assert np.abs(np.subtract(image.getbbox(), box)).max() <= 1


@pytest.mark.parametrize('n', [20, 40, 80, 200, 576])
def test_classes_are_distinct_and_share_their_values(n):
    classes = [tuple(c.values()) for c in synth_classes(n)]
    assert len(set(classes)) == n
    train, test = classes[:n//2], classes[n//2:]
    assert {v for c in train for v in c} == {v for c in test for v in c}
    assert max(sum(v in c for c in classes) for v in ('Forked', 'Spiny', 'Spotted', 'Slim', 'Blunt')) <= n/2


def test_few_classes_differ_in_more_traits():
    def nearest(n):
        values = [tuple(c.values()) for c in synth_classes(n)]
        return min(sum(x != y for x, y in zip(a, b, strict=True)) for a, b in combinations(values, 2))
    assert [nearest(n) for n in (20, 80, 200)] == [3, 2, 1]


@pytest.mark.parametrize(('wrong', 'message'), [
    (dict(n_classes=577), 'n_classes=577: the traits make 1 to 576'),
    (dict(n_classes=1), 'n_classes=1: expected 2 or more'),
    (dict(n_per_class=0), 'n_per_class=0'), (dict(size=8), 'size=8'), (dict(seed=-1), 'seed=-1')])
def test_impossible_numbers_leave_nothing_behind(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message): synth_dataset(tmp_path/'fish', **SMALL | wrong)
    assert not list(tmp_path.iterdir())


def test_other_folders_are_refused_and_kept(tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='holds no synthetic set'): synth_dataset(tmp_path, **SMALL)
    assert contents(tmp_path) == {'notes.txt': b'mine'}
    synth_dataset(tmp_path/'fish', **SMALL)
    before = contents(tmp_path/'fish')
    with pytest.raises(FileExistsError, match='another synthetic set'): synth_dataset(tmp_path/'fish', seed=1, **SMALL)
    assert contents(tmp_path/'fish') == before


def test_force_replaces_another_set_and_nothing_else(tmp_path, monkeypatch):
    synth_dataset(tmp_path/'fish', **SMALL)
    before, draw = contents(tmp_path/'fish'), synth.draw_fish
    monkeypatch.setattr(synth, 'draw_fish', None)
    with pytest.raises(TypeError): synth_dataset(tmp_path/'fish', seed=1, force=True, **SMALL)
    synth_dataset(tmp_path/'fish', force=True, **SMALL)
    assert contents(tmp_path/'fish') == before
    monkeypatch.setattr(synth, 'draw_fish', draw)
    synth_dataset(tmp_path/'fish', seed=1, force=True, **SMALL)
    synth_dataset(tmp_path/'new', seed=1, **SMALL)
    assert contents(tmp_path/'fish') == contents(tmp_path/'new') != before
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='holds no synthetic set'): synth_dataset(tmp_path, force=True, **SMALL)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize('seed', [0, 1])
def test_two_draw_at_the_same_time(tmp_path, monkeypatch, seed):
    "While one draws, another finishes: its set is read, or refused if it is not the same."
    write, inside = synth._write_synth, []

    def write_beside(out, record, progress):
        write(out, record, progress)
        if not inside:
            inside.append(out)
            synth_dataset(tmp_path/'fish', seed=seed, **SMALL)

    monkeypatch.setattr(synth, '_write_synth', write_beside)
    if seed:
        with pytest.raises(FileExistsError, match='another synthetic set'): synth_dataset(tmp_path/'fish', **SMALL)
    else: assert len(synth_dataset(tmp_path/'fish', **SMALL)) == 12
    assert [p.name for p in tmp_path.iterdir()] == ['fish']


def test_drawn_once_then_read(tmp_path, monkeypatch):
    first = synth_dataset(tmp_path/'new'/'fish', **SMALL)
    monkeypatch.setattr(synth, 'draw_fish', None)
    assert synth_dataset(tmp_path/'new'/'fish', **SMALL).equals(first)


def test_error_while_drawing_leaves_nothing(tmp_path, monkeypatch):
    draw = synth.draw_fish
    def fail(traits, size, seed):
        if seed[1] == 3: raise OSError('disk is full')
        return draw(traits, size, seed)
    monkeypatch.setattr(synth, 'draw_fish', fail)
    with pytest.raises(OSError): synth_dataset(tmp_path/'fish', **SMALL)
    assert not list(tmp_path.iterdir())


def test_killed_halfway_is_drawn_again(tmp_path):
    many = SMALL | dict(n_per_class=1000)
    process = in_another_process(f'synth_dataset({str(tmp_path/"fish")!r}, **{many!r})')
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob('*.jpg'))) < 20 and time.monotonic() < deadline: time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path/'fish').exists()
    synth_dataset(tmp_path/'fish', **SMALL)
    synth_dataset(tmp_path/'reference', **SMALL)
    assert contents(tmp_path/'fish') == contents(tmp_path/'reference')


def test_color_tells_little(tmp_path):
    table = synth_dataset(tmp_path, n_classes=20, n_per_class=20, size=64, progress=False)
    table = table[table['split'] == 'test']
    cells = [(np.asarray(Image.open(tmp_path/p))//32).reshape(-1, 3) @ [64, 8, 1] for p in table['path']]
    counts = np.stack([np.bincount(c, minlength=512) for c in cells]).astype(float)
    labels = table['label'].to_numpy()
    for hists in (counts/np.linalg.norm(counts, axis=1, keepdims=True), counts/counts.sum(1, keepdims=True)):
        distance = ((hists[:, None] - hists)**2).sum(-1) + 9*np.eye(len(hists))
        assert (labels[distance.argmin(1)] == labels).mean() < .2
