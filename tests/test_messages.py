"""What a user gets who gives a command something that it cannot use: status 1 or 2, and one line that names it."""
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fgir.app import cli
from fgir.backbones.nets import RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import save_model
from fgir.data.fish import synth_dataset
from fgir.features.store import Features
from fgir.gallery.index import Index

NET = '--backbone test_resnet --weights net.pth --device cpu'
SIZE = '--size 32 --workers 0'
TRAIN = '--backbone test_resnet --from-scratch --size 32 --epochs 1 --workers 0 --device cpu --out results'

FILES = ['missing', 'folder', 'empty', 'noise', 'text', 'cut']
FEW = ['missing', 'text', 'cut']
ROOTS = ['missing', 'empty', 'noise', 'text', 'bare', 'hollow']
TENSORS = [*FILES, 'plain', 'other']

COMMANDS = [
    *((f'prepare {name} {{}} out', ROOTS, '') for name in ('cub', 'cars', 'sop', 'inshop', 'aircraft', 'folder')),
    (f'train cgd {{}} {TRAIN}', ROOTS, ''),
    (f'train fgic {{}} {TRAIN}', FEW[:2], ''),
    (f'train pp_norm_softmax {{}} {TRAIN}', FEW[:2], ''),
    (f'train cgd {{}} {TRAIN}', FEW, '.csv'), (f'extract {{}} --out out.safetensors {NET}', FILES, '.csv'),
    (f'train cgd {{}} {TRAIN}', FEW, '.pth'), (f'extract {{}} --out out.safetensors {NET}', FILES, '.pth'),
    (f'extract {{}} --out out.safetensors {NET} {SIZE}', ROOTS, ''),
    (f'extract fish --out out.safetensors --model {{}} --device cpu {SIZE}', TENSORS, '.safetensors'),
    (f'extract fish --out out.safetensors --model {{}} --device cpu {SIZE}', FILES, '.pth'),
    (f'extract fish --out out.safetensors --backbone test_resnet --weights {{}} {SIZE}', FEW, '.pth'),
    (f'extract fish --out out.safetensors --backbone test_resnet --weights {{}} {SIZE}', FEW, '.safetensors'),
    ('evaluate {}', TENSORS, '.safetensors'), ('evaluate good.safetensors {}', TENSORS, '.safetensors'),
    (f'index search good.safetensors {{}} {NET}', FEW, '.jpg'),
    ('classify a.jpg --model {}', TENSORS, '.safetensors'), ('classify a.jpg --model {}', FEW, '.pth'),
    (f'index build {{}} new.safetensors {NET} {SIZE}', ROOTS, ''),
    (f'index build {{}} new.safetensors {NET}', TENSORS, '.safetensors'),
    ('index info {}', TENSORS, '.safetensors'), ('index remove {} a.jpg', TENSORS, '.safetensors'),
    ('index add {} good.safetensors', TENSORS, '.safetensors'),
    (f'index add gallery.safetensors {{}} {NET}', TENSORS, '.safetensors'),
    (f'index search {{}} a.jpg {NET}', TENSORS, '.safetensors'),
    (f'index search gallery.safetensors {{}} {NET}', FEW, '.jpg'),
    (f'index serve {{}} {NET}', TENSORS, '.safetensors'),
]
CASES = [(command, kind, ending) for command, kinds, ending in COMMANDS for kind in kinds]

OPTIONS = [  # a command line, and what its one line names
    (f'index search good.safetensors a.jpg {NET} --picture found', '--picture found'),
    ('index search gallery.safetensors a.jpg --picture found.xyz', '--picture found.xyz'),
    (f'extract fish --out out.safetensors {NET} --size 10000000000', 'size'),
    (f'extract fish --out out.safetensors {NET} --size 0', '--size'),
    (f'extract fish --out out.safetensors {NET} --rows nowhere', '--rows'),
    (f'extract fish --out out.safetensors {NET} --tfms nothing', 'tfms'), (f'extract fish --out fish {NET}', 'fish'),
    (f'extract fish --out good.safetensors {NET}', 'good.safetensors'),
    ('extract fish --out out.safetensors', '--model'),
    ('extract fish --out out.safetensors --backbone resnet_none', 'resnet_none'),
    (f'extract fish --out out.safetensors {NET} --device nothing', '--device'),
    (f'extract fish --data none --out o.st {NET}', '--data'),
    ('evaluate good.safetensors --ks 0', '--ks'), ('evaluate good.safetensors --ks a', '--ks'),
    ('evaluate good.safetensors --rerank none_such', 'none_such'), ('evaluate good.safetensors --csv fish', 'fish'),
    ('evaluate', 'FEATURES'),
    ('nothing', 'nothing'),
    ('train nothing fish', 'nothing'),
    ('train cgd fish --nothing', '--nothing'),
    (f'train cgd fish {TRAIN} --processes 3 --batch-size 8', '--batch-size'),
    (f'train fgic fish --split official {TRAIN} --processes 3 --batch-size 8', '--batch-size'),
    (f'train pp_norm_softmax fish {TRAIN} --processes 3 --batch-size 8', '--batch-size'),
    (f'train cgd fish {TRAIN} --valid x', '--valid'), (f'train cgd fish {TRAIN} --recalls 2,1', '--recalls'),
    ('index build fish gallery.xyz --backbone test_resnet', 'gallery.xyz'), ('index info gallery', 'gallery'),
    (f'index build fish new.safetensors {NET} --kind none', 'none'),
    (f'index build fish new.safetensors {NET} --engine x', '--engine'),
    ('index serve gallery.safetensors --host 999.1.1.1', '--host 999.1.1.1'),
    ('index serve gallery.safetensors --host 0.0.0.0', '--folder'),
    ('index serve gallery.safetensors --folder nowhere', '--folder'),
    ('index serve gallery.safetensors --folder /', '--folder'),
    ('index search gallery.safetensors a.jpg --where x', '--where'),
    ('demo --out a.jpg', 'a.jpg'), ('prepare none fish out', 'name'), ('prepare cub fish out --level x', '--level'),
]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder of good files, and of broken ones by kind and ending."
    root = tmp_path_factory.mktemp('messages')
    fish = synth_dataset(root/'fish', n_classes=4, n_per_class=4, size=40, progress=False)
    Image.new('RGB', (40, 40), 'teal').save(root/'a.jpg')
    net = create_backbone('test_resnet', pretrained=False)
    torch.save(net.state_dict(), root/'net.pth')
    features = Features({'S': np.eye(16, 512, dtype='float32')}, fish, dict(tfms='cgd', size=32))
    features.save(root/'good.safetensors')
    Index.build(features).save(root/'gallery.safetensors')
    save_model(RetrievalNet(net, dim=8), root/'model.safetensors')
    noise = np.random.default_rng(0).bytes(3000)
    for ending in ('', '.csv', '.pth', '.safetensors', '.jpg'):
        whole = {'.pth': 'net.pth', '.safetensors': 'good.safetensors', '.jpg': 'a.jpg'}.get(ending)
        (root/f'folder{ending}').mkdir()
        for kind, data in dict(empty=b'', noise=noise, text=b'just some words\n').items():
            (root/f'{kind}{ending}').write_bytes(data)
        (root/f'cut{ending}').write_bytes((root/whole).read_bytes()[:400] if whole else b'path,label\n"a.jpg')
    save_file({'x': torch.zeros(3)}, root/'plain.safetensors')
    (root/'bare').mkdir()
    (root/'hollow'/'class').mkdir(parents=True)
    return root


def lines_of(place, monkeypatch, capsys, words):
    monkeypatch.chdir(place)
    capsys.readouterr()
    status = cli.main(words.split())
    return status, capsys.readouterr().err


def check(status, err, *names):
    assert status in (1, 2) and re.fullmatch(r'fgir: [^\n]{1,1000}\n', err), err
    assert any(name in err for name in names), err


@pytest.mark.parametrize('command, kind, ending', CASES)
def test_a_broken_file_is_named_in_one_line(place, monkeypatch, capsys, command, kind, ending):
    name = f'{kind}{ending}'
    if kind == 'other': name = 'model.safetensors' if '--model' not in command else 'good.safetensors'
    before = set(os.listdir(place))
    check(*lines_of(place, monkeypatch, capsys, command.format(name)), name)
    assert {f for f in set(os.listdir(place)) - before if not f.endswith('.lock')} <= {'results'}


@pytest.mark.parametrize('words, says', OPTIONS)
def test_a_wrong_word_is_named_in_one_line(place, monkeypatch, capsys, words, says):
    check(*lines_of(place, monkeypatch, capsys, words), says)


def test_an_error_without_words_has_a_name():
    assert cli.one_line(MemoryError()) == 'out of memory' and cli.one_line(RuntimeError()) == 'RuntimeError'
