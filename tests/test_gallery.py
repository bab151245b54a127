"`fgir index`: build, change and search galleries from the shell, interrupted and at once."
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fgir import cli
from fgir.features import Features
from fgir.index import Index
from fgir.synth import synth_dataset

CODE = 'import sys; from fgir.cli import main; sys.exit(main())'


@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp('fish')/'fish', n_classes=8, n_per_class=6, size=40, progress=False)


@pytest.fixture
def gallery(fish, tmp_path):
    """A gallery of the training half, of the pooled maps of a small network with its weights in a file."""
    import torch

    from fgir.backbones import create_backbone

    torch.manual_seed(0)
    torch.save(create_backbone('resnet18', pretrained=False).state_dict(), tmp_path/'net.pth')
    file = tmp_path/'fish.safetensors'
    assert not call('index', 'build', fish.attrs['root'], file, '--backbone', 'resnet18', '--weights', tmp_path/'net.pth',
                    '--rows', 'train', '--size', 32, '--workers', 0)
    return file


def call(*words): return cli.main([str(w) for w in words])


def said(capsys, *words, status=0):
    capsys.readouterr()
    assert call(*words) == status
    out, err = capsys.readouterr()
    return err if status else out


SOURCES = [
    (dict(backbone='resnet18', weights='https://evil.example/net.pth'), '--weights https://evil.example/net.pth'),
    (dict(model='http://evil.example/m.safetensors'), 'is not fetched'),
    (dict(backbone='resnet18', weights='//evil/share/a.pth'), 'not fetched'),
    (dict(backbone='resnet18', weights='\\\\evil\\share\\a.pth'), 'not fetched'), (dict(backbone=5), '"source" is'),
    ('resnet18', '"source" is'), ([['backbone', 'resnet18']], '"source" is'), (dict(backbone=['resnet18']), '"source" is'),
    (dict(model='none.safetensors'), 'none.safetensors'), (dict(weights='a.pth'), 'name one of --model'),
    ({}, 'name one of --model')]


def test_nothing_that_a_gallery_names_is_fetched(fish, gallery, tmp_path, capsys, monkeypatch):
    "Somebody else may have made it: its record is checked by kind, and an address in it is refused."
    monkeypatch.setattr('torch.hub.download_url_to_file', lambda *args: pytest.fail('fetched'))
    made, photo, theirs = Features.load(gallery), f"{fish.attrs['root']}/{fish['path'][0]}", tmp_path/'theirs.safetensors'
    for source, says in SOURCES:
        Index.build(Features(made.arrays, made.table, {**made.record, 'source': source})).save(theirs, force=True)
        assert says in said(capsys, 'index', 'search', theirs, photo, status=1)
        assert says in said(capsys, 'index', 'add', theirs, fish.attrs['root'], status=1)


def test_a_gallery_grows_and_answers_without_being_told_how(fish, gallery, capsys):
    root, photo = fish.attrs['root'], f"{fish.attrs['root']}/{fish['path'][30]}"
    assert json.loads(said(capsys, 'index', 'info', gallery))['images'] == 24
    assert json.loads(said(capsys, 'index', 'search', gallery, photo, '--json', '-k', 1))[0]['score'] < .99999
    assert '48 images, 24 more' in said(capsys, 'index', 'add', gallery, root, '--rows', 'test', '--workers', 0)
    found = json.loads(said(capsys, 'index', 'search', gallery, photo, '--json', '-k', 3, '--keep-self'))
    assert found[0]['path'] == fish['path'][30] and found[0]['score'] > .99999
    assert call('index', 'search', gallery, photo, '--json', '-k', 2) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]['path'] == found[1]['path']
    assert err == f"{fish['path'][30]} is the photograph itself and was left out; --keep-self keeps it\n"
    only = json.loads(said(capsys, 'index', 'search', gallery, photo, '--json', '--where', f"name={fish['name'][0]}"))
    assert {f['name'] for f in only} == {fish['name'][0]} and len(only) == 6
    assert '47 images' in said(capsys, 'index', 'remove', gallery, fish['path'][30])
    assert json.loads(said(capsys, 'index', 'search', gallery, photo, '--json', '-k', 2))[0]['path'] == found[1]['path']
    assert '48 images, 1 more' in said(capsys, 'index', 'add', gallery, root, '--replace', '--workers', 0)
    assert sorted(p.name for p in gallery.parent.glob('fish*')) == ['fish.safetensors', 'fish.safetensors.lock']


@pytest.mark.parametrize('words, says', [
    ('build {root} {dir}/g.faiss --backbone resnet18', 'g.faiss: expected a file .safetensors, a folder .db'),
    ('build {root} {file} --backbone resnet18', 'exists already; --force'),
    ('build {root} {dir}/g.safetensors', 'name one of --model FILE and --backbone NAME'),
    ('build {root} {dir}/g.safetensors --backbone resnet18 --kind tree', "found 'tree'"),
    ('build {root} {dir}/g.safetensors --backbone resnet18 --kind hnsw --engine links', 'expected NAME=NUMBER'),
    ('build {root} {dir}/g.safetensors --backbone resnet18 --kind flat --engine links=3', 'no setting links'),
    ('add {file} {root} --rows train', 'in the gallery already; --replace replaces it'),
    ('add {file} {root} --backbone resnet34 --rows test', 'weights'),
    ('remove {file} none.jpg', 'none.jpg is not in the gallery'),
    ('search {file} {photo} --where color=red', "no column 'color'"), ('search {file} {photo} --where red', 'COLUMN=VALUE'),
    ('search {file} {dir}/none.jpg', 'none.jpg'), ('info {dir}/none.safetensors', 'no such gallery'),
    ('info {dir}/none.db', "no gallery 'gallery'"), ('info {dir}/net.pth', 'expected a file .safetensors')])
def test_mistakes_are_one_line_and_change_nothing(fish, gallery, capsys, words, says, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', '/dev/null/none')
    before = gallery.read_bytes()
    words = words.format(root=fish.attrs['root'], dir=gallery.parent, file=gallery, photo=f"{fish.attrs['root']}/{fish['path'][3]}")
    err = said(capsys, 'index', *words.split(), status=1)
    assert err.startswith('fgir: ') and err.count('\n') == 1 and (says in err or says == 'weights')
    assert gallery.read_bytes() == before


def test_two_that_add_at_once_both_do(fish, gallery, tmp_path):
    vectors, table = Index.load(gallery), fish[fish['split'] == 'test'].reset_index(drop=True)
    rng, halves = np.random.default_rng(0), []
    for i, rows in enumerate((slice(0, 12), slice(12, 24))):
        part = table.iloc[rows].reset_index(drop=True)
        features = Features({'S': rng.normal(size=(12, 512)).astype(np.float32)}, part, vectors.record)
        halves.append(features.save(tmp_path/f'{i}.safetensors'))
    adding = [subprocess.Popen([sys.executable, '-c', CODE, 'index', 'add', str(gallery), str(h)]) for h in halves]
    assert [p.wait() for p in adding] == [0, 0]
    assert len(Index.load(gallery)) == 48


def test_a_build_that_was_killed_goes_on(fish, tmp_path):
    "Killed among its images, the same command describes only those that are left."
    net = ['--backbone', 'resnet18', '--weights', tmp_path/'net.pth']
    words = ['index', 'build', fish.attrs['root'], tmp_path/'g.safetensors', *net, '--size', '32', '--workers', '0',
             '--batch-size', '1']
    import torch

    from fgir.backbones import create_backbone

    torch.save(create_backbone('resnet18', pretrained=False).state_dict(), tmp_path/'net.pth')
    part = tmp_path/'g.safetensors.new.safetensors.done'
    slow = ('import sys, time; import fgir.features as f; from fgir.cli import main; fill = f._Store.fill\n'
            'f._Store.fill = lambda *a: (fill(*a), time.sleep(.1))\nsys.exit(main())')
    first = subprocess.Popen([sys.executable, '-c', slow, *map(str, words)], env=os.environ | {'MPLBACKEND': 'Agg'})
    for _ in range(1200):
        if part.exists() and sum(part.read_bytes()) > 5: break
        time.sleep(.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = sum(part.read_bytes())
    assert 5 < done < 48 and not (tmp_path/'g.safetensors').exists()
    assert call(*words) == 0
    assert len(Index.load(tmp_path/'g.safetensors')) == 48
    assert sorted(p.name for p in tmp_path.iterdir()) == ['g.safetensors', 'net.pth']


def test_a_database_is_a_gallery_of_the_same_commands(fish, gallery, tmp_path, capsys):
    db, photo = tmp_path/'fish.db', f"{fish.attrs['root']}/{fish['path'][3]}"
    said(capsys, 'index', 'build', gallery, db)
    assert json.loads(said(capsys, 'index', 'search', db, photo, '--json', '-k', 1, '--keep-self'))[0]['path'] == fish['path'][3]
    said(capsys, 'index', 'remove', db, fish['path'][3])
    assert '47 images, 24 more' in said(capsys, 'index', 'add', db, fish.attrs['root'], '--rows', 'test', '--workers', 0)
    assert 'gallery' in said(capsys, 'index', 'build', gallery, db, status=1)
