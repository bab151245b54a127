"""The command line, end to end: what it writes, what it refuses, and what it says."""
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw
from processes import Fresh, command, command_in_copies
from torchvision.models import resnet18, resnet50

from fgir.app import cli, demo, describe, train
from fgir.backbones.nets import RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import save_model
from fgir.data.csv import write_table
from fgir.data.files import shared_dir
from fgir.data.fish import synth_dataset
from fgir.data.images import load_row
from fgir.data.table import BOX
from fgir.features.store import Features

COMMANDS = [words.partition(' ')[2] for words in cli.commands().index]
SHARED = shared_dir()
needs_data = pytest.mark.skipif(SHARED is None, reason='no real photographs: set FGIR_SHARED')


def fgir(*words, status=0):
    """Run the command in a process of its own; its standard output, or its standard error if it shall fail."""
    p = Fresh(command, *words).end()
    assert p.returncode == status, p.stdout + p.stderr
    return p.stderr if status else p.stdout


def run(capsys, *words):
    """Run the command in this process: status, standard output, standard error."""
    capsys.readouterr()
    status = cli.main([str(w) for w in words])
    return status, *capsys.readouterr()


def refused(capsys, *words, says, status=1):
    """The command fails with one line that says what is wrong."""
    found, _, err = run(capsys, *words)
    assert found == status and err.count('\n') == 1 and err.startswith('fgir: ') and says in err, err


@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp('cli')/'fish', n_classes=8, n_per_class=5, size=40, progress=False)


@pytest.fixture(scope='module')
def gallery(fish, tmp_path_factory):
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp('gallery')/'random.safetensors'
    arrays = {'a': rng.normal(size=(40, 4)), 'b': rng.normal(size=(40, 6))}
    return Features(arrays, fish, {'tfms': 'cgd', 'size': 32}).save(file)


TRAIN = ('--backbone test_resnet --from-scratch --set net.gd_config=SM --set net.feature_dim=16 --size 32 --batch_size 8 '
         '--epochs 1 --recalls 1,2 --valid 0.5 --workers 0 --device cpu').split()


@pytest.mark.processes
def test_the_whole_way(fish, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, prefix = fish.attrs['root'], 'fish_uncropped_test_resnet_SM_16_0.1_0.5_0.1_8'
    fgir('prepare', 'cub', root, 'ready', '--crop', '--format', 'both')
    made = {'cropped', 'cropped_data_dicts.pth', 'cropped_table.csv', 'train_paths.json'}
    assert made <= set(os.listdir(tmp_path/'ready'))

    out = fgir('train', 'cgd', 'ready/cropped_table.csv', '--data-name', 'fish', *TRAIN)
    assert 'synth' not in out and 'R@2' in out
    names = os.listdir(tmp_path/'results')
    for end in ('_model.safetensors', '_model.json', '_statistics.csv', '_data_base.safetensors', '_pictures'):
        assert prefix + end in names
    columns = list(pd.read_csv(tmp_path/'results'/f'{prefix}_statistics.csv'))
    assert columns == ['epoch', 'train_loss', 'train_accuracy', 'test_recall@1', 'test_recall@2']

    model = f'results/{prefix}_model.safetensors'
    fgir('extract', root, '--model', model, '--out', 'fish.safetensors', '--device', 'cpu')
    features = Features.load(tmp_path/'fish.safetensors')
    assert features['embedding'].shape == (20, 16) and features.record['size'] == 32

    out = fgir('evaluate', 'fish.safetensors', '--ks', '1,3', '--csv', 'r.csv', '--report', 'r.html')
    assert 'R@3' in out and '<html' in (tmp_path/'r.html').read_text()
    assert list(pd.read_csv(tmp_path/'r.csv').filter(like='R@')) == ['R@1', 'R@3']
    row, html = pd.read_csv(tmp_path/'r.csv').iloc[0], (tmp_path/'r.html').read_text()
    assert row['selection'] == 'the last epoch' and row['recipe'] == 'cgd'
    assert row[['dataset', 'split', 'backbone', 'dtype']].tolist() == ['cub', 'zero-shot: test', 'test_resnet.r160_in1k', 'float32']
    assert 'This page asked 20 queries, the usual test set has 5924' in html and 'README of the CGD program' in html

    photo = f"{root}/{features.table['path'][3]}"
    out = fgir('index', 'search', 'fish.safetensors', photo, '--model', model, '-k', 3, '--json', '--device',
               'cpu', '--picture', 'r.png', '--keep-self')
    answer = json.loads(out)
    assert [a['rank'] for a in answer] == [1, 2, 3] and answer[0]['path'] == features.table['path'][3]
    assert answer[0]['score'] == pytest.approx(1, abs=1e-4) and Image.open(tmp_path/'r.png').width > 100
    assert not [p for p in tmp_path.rglob('.*') if p.is_file()], 'temporary files are left'

    words = ['train', 'cgd', 'ready/cropped_table.csv', '--data-name', 'fish', *TRAIN]
    refused(capsys, *words, says='--force')
    fgir(*words, '--resume')
    assert len(pd.read_csv(tmp_path/'results'/f'{prefix}_statistics.csv')) == 1
    fgir(*words, '--epochs', 2, '--force')
    assert len(pd.read_csv(tmp_path/'results'/f'{prefix}_statistics.csv')) == 2


def test_backbone(fish, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(create_backbone('test_resnet', pretrained=False).state_dict(), 'random.pth')
    net = ['--backbone', 'test_resnet', '--weights', 'random.pth', '--device', 'cpu']
    words = ['extract', fish.attrs['root'], *net, *'--pool S,avg+max --size 32 --rows train --crop --out x.st'.split()]
    assert run(capsys, *words)[0] == 0
    features = Features.load('x.st')
    assert features.names == ['S', 'avg+max'] and set(features.table['split']) == {'train'} and features.record['crop']
    assert 'selection' not in features.record and describe.origin() == dict(selection='none: published weights as they are')
    photo = f"{fish.attrs['root']}/{fish['path'][0]}"
    search = ['index', 'search', 'x.st', photo, *net, '--pool', 'S,avg+max']
    refused(capsys, *search, says='--array: name one of S, avg+max')
    assert run(capsys, *search, '--array', 'S')[0] == 0
    refused(capsys, *words, says='--force')
    assert run(capsys, *words, '--force')[0] == 0


@pytest.mark.parametrize('layout, words, rows', [
    ('{}/{}.png', [], 'all'), ('{}/{}.png', ['--split', 'zero-shot'], 'test'), ('{}/{}.png', ['--rows', 'train'], 'train'),
    ('test/{}/{}.png', [], 'test'), ('{}/{}.png', ['--split', 'test'], 'test')])
def test_a_folder_of_ones_own_is_described_whole(tmp_path, capsys, layout, words, rows):
    for c in 'abcd':
        for i in range(2):
            file = tmp_path/'own'/layout.format(c, i)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (32, 32), (60*i, 90, 30)).save(file)
    torch.save(create_backbone('test_resnet', pretrained=False).state_dict(), tmp_path/'net.pth')
    net = ['--backbone', 'test_resnet', '--weights', tmp_path/'net.pth', *'--size 32 --workers 0 --device cpu'.split()]
    status, out, err = run(capsys, 'extract', tmp_path/'own', '--out', tmp_path/'x.safetensors', *net, *words)
    n = 8 if rows == 'all' or 'test' in (layout + ' '.join(words)) and '--split zero' not in ' '.join(words) else 4
    assert status == 0 and f'describing {n} images: --rows {rows}' in out, err
    assert len(Features.load(tmp_path/'x.safetensors')) == n


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes on this system')
def test_a_pipe_is_left_out_like_any_bad_image(tmp_path, capsys):
    (tmp_path/'own'/'a').mkdir(parents=True)
    (tmp_path/'own'/'b').mkdir()
    for c in 'ab': Image.new('RGB', (32, 32), 'teal').save(tmp_path/'own'/c/'0.jpg')
    os.mkfifo(tmp_path/'own'/'a'/'x.jpg')
    torch.save(create_backbone('test_resnet', pretrained=False).state_dict(), tmp_path/'net.pth')
    words = ['extract', tmp_path/'own', '--out', tmp_path/'x.safetensors', '--backbone', 'test_resnet',
             '--weights', tmp_path/'net.pth', *'--size 32 --workers 0 --device cpu'.split()]
    refused(capsys, *words, says='x.jpg: a pipe, socket or device is no image')
    status, _, err = run(capsys, *words, '--skip-bad')
    assert status == 0 and 'a/x.jpg' in err and len(Features.load(tmp_path/'x.safetensors')) == 2


@pytest.mark.processes
def test_cfga(fish, tmp_path, capsys, monkeypatch):
    """CFGA's arrays, files and checkpoints, and a search by one of the arrays."""
    monkeypatch.chdir(tmp_path)
    root = fish.attrs['root']
    torch.save(resnet18().state_dict(), 'random.pth')
    net = ['--backbone', 'resnet18', '--weights', 'random.pth', '--device', 'cpu', '--descriptor']
    out = fgir('extract', root, *net, 'cfga', '--out', 'all.st', '--cfga-json', 'json', '--size', 64)
    features = Features.load('all.st')
    layers = [f'layer4.{b}.conv{c}' for b in (0, 1) for c in (1, 2)]
    assert features.names == [*layers, 'cfga+', 'scda_norm_each', 'scda_norm_joint', 'pool_norm_each', 'pool_norm_joint']
    assert features.record['tfms'] == 'cfga_pretrained' and features.record['config']['lcc'] and 'cfga+ (1024' in out
    rows = json.loads((tmp_path/'json'/'layer4_conv2_weight.json').read_text())
    np.testing.assert_array_equal(np.float32(rows['test']), features['cfga+'])
    refused(capsys, 'extract', root, *net, 'cfga', '--out', 'b.st', '--cfga-json', 'json', says='layer4_0_conv1_weight.json')
    refused(capsys, 'extract', root, *net, 'layer9', '--out', 'b.st', says="no layer 'layer9'")
    refused(capsys, 'extract', root, *net[:-1], '--out', 'b.st', '--cfga-json', 'j', says='--cfga-json: give --descriptor')
    assert 'cfga+' in fgir('evaluate', 'all.st', '--ks', '1,2')

    photo = f"{root}/{features.table['path'][3]}"
    found = fgir('index', 'search', 'all.st', photo, *net, 'cfga', '--array', 'cfga+', '-k', 1, '--json', '--keep-self')
    assert json.loads(found)[0]['path'] == features.table['path'][3]


@pytest.mark.processes
def test_program_checkpoint(fish, tmp_path, capsys, monkeypatch):
    """A checkpoint of the metric-learning programs is recognized; one that lacks a weight is refused by its name."""
    monkeypatch.chdir(tmp_path)
    state = {k: v for k, v in resnet50().state_dict().items() if not k.startswith('fc.')}
    state |= {'class_fc.weight': torch.randn(64, 2048), 'class_fc.bias': torch.randn(64)}
    torch.save({'model': state}, 'checkpoint_2999_0.28.pth')
    words = ['extract', fish.attrs['root'], '--model', 'checkpoint_2999_0.28.pth', '--rows', 'test', '--device', 'cpu']
    fgir(*words, '--descriptor', 'cfga+,embedding', '--size', 48, '--out', 'a.st')
    features = Features.load('a.st')
    assert features.names == ['cfga+', 'embedding'] and features['embedding'].shape[1] == 64
    assert features.record['tfms'] == 'cfga_dml' and not features.record['config']['lcc']
    fgir(*words, '--size', 48, '--out', 'b.st')
    np.testing.assert_allclose(Features.load('b.st')['embedding'], features['embedding'], atol=1e-5)
    del state['layer4.0.bn1.bias']
    torch.save({'model': state}, 'checkpoint_2999_0.28.pth')
    refused(capsys, *words, '--out', 'c.st', says='layer4.0.bn1.bias missing')


def test_demo_in_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(demo.DEMO, 'data', dict(n_classes=8, n_per_class=6, size=40))
    monkeypatch.setitem(demo.DEMO, 'cgd', demo.DEMO['cgd'] | dict(batch_size=16, epochs=1, size=32))
    monkeypatch.setitem(demo.DEMO, 'margins', {'untrained network': -100, 'color histogram': -100})
    status, out, err = run(capsys, 'demo', '--out', tmp_path/'demo')
    assert status == 0, err
    for text in ('color histogram', 'untrained network', 'trained network', 'R@8', 'at least -100 asked: reached'):
        assert text in out
    assert all((tmp_path/'demo'/name).stat().st_size > 1000 for name in demo.DEMO_FILES.values())
    html = (tmp_path/'demo'/'report.html').read_text()
    assert 'src="http' not in html and 'fgir demo --seed 0' in html
    refused(capsys, 'demo', '--out', tmp_path/'demo', says='--force')
    monkeypatch.setitem(demo.DEMO, 'margins', {'untrained network': 101, 'color histogram': 101})
    monkeypatch.setattr(demo, '_save', lambda *_: None)
    refused(capsys, 'demo', '--out', tmp_path/'demo', '--force', '--seed', 1, says='missed')
    assert json.loads((tmp_path/'demo/fish/synth.json').read_text())['seed'] == 1


@pytest.mark.processes
@pytest.mark.parametrize('words', ['extrct', 'extract', 'train', 'train pp', 'search a', 'index search a b --k 0', 'demo --seed -1',
                                   'extract x --out y --size big', 'demo --sed 1', 'prepare cub', 'evaluate'])
def test_wrong_calls(words):
    err = fgir(*words.split(), status=2)
    assert err.count('\n') == 1 and err.startswith('fgir: ') and '--help' in err


class Seen(RuntimeError):
    """The command came as far as the Learner."""


@pytest.fixture
def seen(monkeypatch):
    """Instead of training: what the Learner of the last command would have been made of."""
    from fgir.training import recipes, runs
    made = {}

    def learner(name, table, undo, **kwargs):
        made.clear()
        made.update(name=name, table=table, undo=undo, **{k: kwargs.pop(k) for k in ('prefix', 'cbs', 'out', 'loaders')},
                    changes=kwargs, recipe=recipes.get_recipe(name, undo, **kwargs))
        raise Seen('as far as this')
    monkeypatch.setattr(runs, 'learner_from_recipe', learner)
    return made


def defaults_of(help: str) -> dict:
    """Option and the default that a help text tells."""
    options = re.split(r'\n  (?=-)', help.partition('\nOptions:')[2])[1:]
    texts = (' '.join(text.split()) for text in options)
    found = [(re.match('[-a-z]+', text)[0], re.search(r'default: (.*?)\]?$', text)) for text in texts]
    return {option: default[1].strip('()').partition('; ')[0] for option, default in found if default}


SETTING = {  # options that say "the recipe's": nothing is changed then
    f'--{name}' for name in 'backbone from-scratch recalls batch-size epochs size lr valid seed precision'.split()}
ACTS = {  # options with a default of their own: what the help says, and whether the command does so
    '--data': ('auto', lambda m: m['table'].attrs['dataset'] == 'cub'),
    '--data-name': ('the layout', lambda m: m['prefix'][:4] == 'cub_'),
    '--split': ('zero-shot where ROOT leaves a choice',
                lambda m: m['name'] == 'fgic' or 'zero-shot' in m['table'].attrs['split']),
    '--level': ('variant', lambda m: True), '--crop': ('off', lambda m: m['recipe']['crop'] is False),
    '--weights': ('its published weights, downloaded',
                  lambda m: m['recipe']['weights'] is None and m['recipe']['pretrained']),
    '--undo': ('none', lambda m: m['undo'] == ()), '--set': ('none', lambda m: set(m['changes']) <= {'lr'}),
    '--processes': ('1', lambda m: True), '--log': ('none', lambda m: True), '--resume': ('off', lambda m: True),
    '--workers': ('one a core, at most 8', lambda m: m['loaders']['num_workers'] is None),
    '--device': ('the GPU if there is one', lambda m: m['loaders']['device'] is None),
    '--skip-bad': ('stop at the first', lambda m: True),
    '--out': ('results', lambda m: str(m['out']) == 'results'), '--force': ('off', lambda m: True)}


def test_the_help_of_every_training_tells_the_defaults_that_act(fish, seen, tmp_path, capsys, monkeypatch):
    from fgir.training.recipes import RECIPES, get_recipe
    monkeypatch.chdir(tmp_path)
    told = defaults_of(run(capsys, 'train', '--help')[1])
    for name in RECIPES:
        official = ['--split', 'official'] if name == 'fgic' else []
        refused(capsys, 'train', name, fish.attrs['root'], *official, says='as far as this')
        assert told.keys() == SETTING | ACTS.keys()
        assert all(told[option].startswith("the recipe's") for option in SETTING)
        assert seen['recipe'] == get_recipe(name) and not seen['changes'].keys() - {'lr'}
        for option, (says, acts) in ACTS.items(): assert told[option] == says and acts(seen), (name, option, told[option])
    assert os.listdir() == []


CHANGES = """
train cgd --backbone resnext50 => backbone resnext50_32x4d
train cgd --set net.gd_config=MG => net.gd_config MG
train cgd --set net.feature_dim=512 => net.feature_dim 512
train pp_norm_softmax --set net.dim=1024 => net.dim 1024
train cgd --set loss.smoothing=0.2 => loss.smoothing 0.2
train cgd --set loss.temperature=0.7 => loss.temperature 0.7
train cgd --set loss.margin=0.3 => loss.margin 0.3
train pp_proxy_anchor --set loss.margin=0.3 => loss.margin 0.3
train pp_proxy_anchor --set warm_up=0 => warm_up 0
train pp_proxy_anchor --backbone googlenet => net.dropout 0.2
train pp_proxy_anchor --backbone inception => backbone bn_inception
train sop --recalls 1,10 => ks [1, 10]
train cgd --epochs 3 => epochs 3
train cgd --batch_size 64 => batch_size 64
train cgd --crop => crop True
train cgd --valid last => valid last
train cgd --undo test_selection => valid 0.2
train cgd --undo third_stage,bn_affine => strides [2, 1]
train fgic --split official --undo all => valid 0.2
train fgic --split official --batch-size 32 => lr 0.0125
train fgic --split official --batch-size 32 --lr 0.1 => lr 0.1
train fgic --split official --set net.pool=M => net.pool M
train sane --set wd.backbone=0.01 => wd.head 0.0001
train sane --set loss=CosFaceLoss --set loss.margin=0.3 => loss.margin 0.3
train sane --from-scratch => pretrained False
"""


def test_every_option_of_a_training_changes_its_setting(fish, seen, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in CHANGES.strip().splitlines():
        words, _, (entry, value) = *line.partition(' => ')[:2], line.partition(' => ')[2].split(' ', 1)
        _, name, *words = words.replace('sop', 'proxy_anchor_sop').split()
        refused(capsys, 'train', name, fish.attrs['root'], *words, says='as far as this')
        key, _, part = entry.partition('.')
        assert str(seen['recipe'][key][part] if part else seen['recipe'][key]) == value, line
    refused(capsys, 'train', 'sane', fish.attrs['root'], '--size', 8, '--set', 'size=6',
            says='--set size and --size set the same')


@pytest.mark.parametrize('words, says', [
    ('--set epochs=5 --epochs 1', '--set epochs and --epochs set the same: epochs'),
    ('--set epochs=5 --set epochs=1', '--set epochs and --set epochs set'), ('--set ks=[1] --recalls 1', '--set ks and --recalls'),
    ('--lr 1 --set lr.loss=1', '--set lr.loss and --lr set'), ('--set lr=1 --set lr.loss=1', '--set lr.loss and --set lr set'),
    ('--set lr={"loss":1} --set lr.loss=1', '--set lr.loss and --set lr.loss'),
    ('--crop --set crop=false', '--set crop and --crop'),
    ('--from-scratch --set pretrained=true', '--from-scratch'), ('--from-scratch --set weights=x', '--from-scratch and --weights'),
    ('--set recipe=sane', '--set recipe'), ('--set undo=all', '--set undo'), ('--set quirks=5', '--set quirks'),
    ('--set quirks=[]', '--set quirks'), ('--set lr={}', 'lr'),
    ('--undo test_selection --valid test', 'undo test_selection: valid is set too'), ('--set x.y.z=1', "setting 'x'"),
    ('--set net.pool=S', "setting of CGDNet 'pool'"), ('--set strides=[1,1] --backbone test_vit', 'strides'),
    *((f'--set {bad}', bad.partition('=')[0].partition('.')[0]) for bad in (
        'optimizer.betas=x', 'warm_up=x', 'ks=[]', 'loss.margin=x', 'schedule.at=5', 'schedule.start=5', 'net=Features', 'seed=-1',
        'valid=2', 'size=99999999999', 'lr=NaN', 'wd=1e999', 'optimizer.lr=1', 'loss.n_classes=3', 'sampler=x', 'tfms=x'))])
def test_a_training_refused_leaves_nothing_behind(words, says, fish, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, 'train', 'cgd', fish.attrs['root'], *words.split(), '--out', 'a/b', says=says)
    assert os.listdir() == []


def test_wandb_without_a_login_is_one_line(fish, tmp_path, capsys, monkeypatch):
    class Wandb:
        class errors:
            class Error(Exception): pass
        def init(**kwargs): raise Wandb.errors.Error('api_key not configured (no-tty)')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'wandb', Wandb)
    monkeypatch.setitem(sys.modules, 'fastai.callback.wandb', type('Module', (), {'WandbCallback': None}))
    words = ['train', 'pp_norm_softmax', fish.attrs['root'], *PROXIES, '--log', 'wandb']
    refused(capsys, *words, says='--log wandb: api_key not configured (no-tty); log in with `wandb login`')
    assert os.listdir() == []


def test_counts_are_no_percentages(fish, tmp_path, capsys):
    small = '--split official --backbone test_resnet --from-scratch --size 32 --epochs 1'.split()
    words = ['train', 'fgic', fish.attrs['root'], *small]
    status, out, err = run(capsys, *words, '--batch-size', 8, '--workers', 0, '--out', tmp_path, '--set', 'lr.head=0.1')
    counts = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(('train ', 'test '))}
    assert status == 0 and [counts['train'][0], counts['test'][0]] == ['16', '24'] and float(counts['test'][2]) > 20, out + err
    log = next(tmp_path.rglob('train_log.csv')).read_text()
    assert '0, 0.1000, ' in log


def test_a_recipe_is_shown_as_set_takes_it(seen, fish, capsys):
    from fgir.training.recipes import get_recipe
    status, out, _ = run(capsys, 'recipes', 'pp-googlenet')
    lines = [line for line in out.splitlines() if not line.startswith(('recipe=', 'quirks=', '--undo', 'epochs=', 'steps='))]
    assert status == 0 and 'net.dropout=0.2' in lines and '--undo googlenet_dropout: GoogLeNet' in out
    refused(capsys, 'train', 'pp_googlenet', fish.attrs['root'], *(w for line in lines for w in ('--set', line)), says='as far')
    assert seen['recipe'] == get_recipe('pp_googlenet')
    refused(capsys, 'recipes', 'pp_google', says='did you mean pp_googlenet')


def program_lines():
    """Our words in the lessons' tables of programs."""
    lessons = sorted((Path(__file__).parent.parent/'nbs'/'tutorials').glob('*.ipynb'))
    lines = (line for file in lessons for cell in json.loads(file.read_text())['cells']
             for line in ''.join(cell['source']).splitlines())
    return sorted({ours for line in lines if line.startswith('|') for ours in re.findall('`(fgir train [^`]* [^`]*)`', line)})


@pytest.mark.parametrize('line', program_lines())
def test_every_training_of_a_lesson_is_taken(line, fish, seen, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, 'pick_device', lambda name: name)
    monkeypatch.setattr(train, 'read_data', lambda *args, **kwargs: fish)
    monkeypatch.setattr(train, '_check_rows', lambda *args: None)
    refused(capsys, *shlex.split(line.partition(' ')[2]), says='as far as this')
    assert seen['name'] == line.split()[2]


BAD_INPUT = """
prepare birds ROOT o => birds
prepare sop ROOT o => Ebay_train.txt
prepare cub ROOT o --level family => level
train cgd nowhere => nowhere: no folder
train cgd empty => empty
train cgd ROOT --recalls 2,1 => --recalls
train cgd ROOT --valid some => --valid
train cgd ROOT --data birds => --data birds
train cgd ROOT --level family => --level
train cgd ROOT TINY --set net.gd_config=GG => GG
train cgd ROOT TINY --set net.feature_dim=15 => 15
train cgd ROOT TRAIN --batch-size 400 => 400
train cgd ROOT TRAIN --valid 3 => valid
train cgd ROOT TRAIN --device tpu-less => --device
train cgd ROOT TRAIN --backbone no_such_net => no_such_net
train cgd ROOT/images TRAIN --split train => 0 test images
train cgd ROOT TRAIN --from-scratch --weights random.pth => --from-scratch and --weights
train msless nowhere => did you mean msloss
train msloss nowhere => nowhere: no folder
train msloss ROOT --undo sign_flip => quirk of msloss
train msloss ROOT --set epochs => expected NAME=VALUE
train msloss ROOT --set epoch=3 => did you mean epochs
train msloss ROOT --from-scratch --set per_class=3 => bs=80 is not a multiple of 3
train msloss ROOT --from-scratch --backbone test_resnet => do not fill a batch of 16 classes
train msloss ROOT --precision half => precision
train pp_norm_softmax ROOT --from-scratch --backbone test_resnet --batch-size 8 --size 32 --valid 0.5 --log neptune => --log neptune
extract ROOT --out x.st => --backbone NAME
extract ROOT --out x.st --model no.st --weights x => --weights and --pool
extract ROOT --out x.st --model no.st --pool S => --weights and --pool
index search no.safetensors no.jpg --model no.st --pool S => --weights and --pool
extract ROOT --out x.st --model no.safetensors => no.safetensors
extract ROOT --out x.st --model bad.safetensors => bad
extract ROOT --out x.st --backbone resnet18 --weights no.pth => no.pth
extract ROOT --out x.st --backbone resnet18 --rows valid => --rows valid
evaluate no.safetensors => no.safetensors
evaluate bad.safetensors => bad.safetensors
evaluate GALLERY --ks 0 => --ks
index search GALLERY no.jpg --backbone resnet18 => name one of a, b
index search no.st no.jpg --model m => no.st
"""


def test_bad_input(fish, gallery, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'empty').mkdir()
    (tmp_path/'bad.safetensors').write_text('x')
    stand_for = {'ROOT': [fish.attrs['root']], 'ROOT/images': [f"{fish.attrs['root']}/images"], 'GALLERY': [gallery],
                 'TRAIN': TRAIN, 'TINY': [w for w in TRAIN if w != '--set' and not w.startswith('net.')]}
    for line in BAD_INPUT.strip().splitlines():
        words, _, says = line.partition(' => ')
        refused(capsys, *(w for word in words.split() for w in stand_for.get(word, [word])), says=says)
    assert not (tmp_path/'x.st').exists() and not (tmp_path/'o').exists()


def test_refusal_comes_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'there').touch()
    for words in ('extract nothing --backbone resnet18 --out there', 'evaluate nothing --csv there',
                  'evaluate nothing --report there', 'index search x nothing --model y --picture there'):
        refused(capsys, *words.split(), says='there: exists already; --force overwrites it')


def test_what_cannot_be_written_is_refused_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file').touch()
    (tmp_path/'folder').mkdir()
    for words in ('extract nothing --backbone resnet18 --out file/x', 'evaluate nothing --csv file/x',
                  'evaluate nothing --report file/x', 'index search x nothing --model y --picture file/x',
                  'train cgd nothing --out file', 'train cgd nothing --out file/x', 'demo --out file'):
        refused(capsys, *words.split(), says='no file can be written there')
    refused(capsys, *'extract nothing --backbone x --out folder --force'.split(), says='folder: exists already, as a')
    assert sorted(os.listdir()) == ['file', 'folder'] and not os.listdir('folder')


def test_one_line():
    """Words of the library's errors are those of the command."""
    error = FileExistsError('last.pth: an earlier run; resume=True goes on with it, force=True begins anew')
    assert cli.one_line(error) == 'last.pth: an earlier run; --resume goes on with it, --force begins anew'
    assert cli.one_line(OSError(28, 'No space left on device')) == 'No space left on device'


def test_files_of_the_same_name(gallery, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in 'ab':
        (tmp_path/folder).mkdir()
        (tmp_path/folder/'x.safetensors').write_bytes(gallery.read_bytes())
    status, out, err = run(capsys, 'evaluate', 'a/x.safetensors', 'b/x.safetensors', gallery, '--csv', 'r.csv',
                           '--report', 'r.html')
    assert status == 0, err
    names = pd.read_csv('r.csv')['model'].unique().tolist()
    assert names == ['a/x.safetensors', 'b/x.safetensors', 'random']
    assert all(name in out for name in names) and 'b/x.safetensors' in (tmp_path/'r.html').read_text()


def test_search_in_crops(fish, tmp_path, capsys, monkeypatch):
    """A photograph of the gallery has its box; another needs one, and whoever gives none is told."""
    monkeypatch.chdir(tmp_path)
    torch.save(create_backbone('test_resnet', pretrained=False).state_dict(), 'random.pth')
    net = ['--backbone', 'test_resnet', '--weights', 'random.pth', '--device', 'cpu']
    assert run(capsys, 'extract', fish.attrs['root'], *net, *'--size 32 --rows all --crop --out x.st'.split())[0] == 0
    photo, box = f"{fish.attrs['root']}/{fish['path'][7]}", [int(v) for v in fish.loc[7, BOX]]
    shutil.copy(photo, 'copy.jpg')
    search = [*'index search x.st copy.jpg'.split(), *net, *'-k 1 --json'.split()]
    for words in ([*search, '--box', *box], [*search[:3], photo, *search[4:], '--keep-self']):
        status, out, err = run(capsys, *words, '--picture', 'r.png', '--force')
        answer, = json.loads(out)
        assert answer['path'] == fish['path'][7] and answer['score'] == pytest.approx(1, abs=1e-4) and not err
        assert Image.open('r.png').width > 100
    status, out, err = run(capsys, *search)
    assert json.loads(out)[0]['score'] < .9999
    assert err == 'fgir: copy.jpg: taken whole, without a box, but the gallery was made of boxes\n'
    refused(capsys, *search, '--box', 9, 9, 9, 12, says='box: expected a box x1 < x2')
    refused(capsys, *search, '--box', 900, 900, 910, 910, says='lies outside of the image')
    refused(capsys, *search, '--box', 1, 2, 3, says='--box', status=2)


@pytest.fixture(scope='module')
def described(fish, tmp_path_factory):
    """A file of random vectors, unit rows, of all images."""
    x = np.random.default_rng(0).normal(size=(40, 6))
    record = {'tfms': 'cgd', 'size': 32, 'crop': True}
    file = tmp_path_factory.mktemp('described')/'fish.safetensors'
    return Features({'embedding': x/np.linalg.norm(x, axis=1, keepdims=True)}, fish, record).save(file)


def frames(file):
    """The colors of the frames of a picture, from left to right: those of the pixels of a middle row that are pure."""
    row = np.asarray(Image.open(file).convert('RGB')).astype(int)
    row = row[row.shape[0]//2]
    kinds = ['green' if tuple(p) == (0, 128, 0) else 'red' if tuple(p) == (255, 0, 0) else '' for p in row]
    return [kind for kind, before in zip(kinds[1:], kinds, strict=False) if kind and kind != before][::2]


def test_a_photograph_of_the_set_is_known(fish, described, tmp_path, capsys):
    """It needs no model, is left out of its own answer, and the picture frames right and wrong; a stranger needs a model."""
    features, row = Features.load(described), 7
    photo, name = f"{fish.attrs['root']}/{fish['path'][row]}", fish['name'][row]
    cosines = features['embedding'] @ features['embedding'][row]
    order = [i for i in np.argsort(-cosines) if i != row][:5]
    search = ['index', 'search', described, photo, '-k', 5]
    status, out, err = run(capsys, *search, '--picture', tmp_path/'r.png')
    assert status == 0 and out.startswith(f'{photo}: {name}\n') and fish['path'][order[0]] in out
    assert err == f"{fish['path'][row]} is the photograph itself and was left out; --keep-self keeps it\n"
    right = [('green' if fish['label'][i] == fish['label'][row] else 'red') for i in order]
    assert frames(tmp_path/'r.png') == right
    found = json.loads(run(capsys, *search, '--json')[1])
    assert [a['path'] for a in found] == fish['path'][order].tolist() and [a['rank'] for a in found] == [1, 2, 3, 4, 5]
    kept = json.loads(run(capsys, *search, '--json', '--keep-self')[1])
    assert [a['path'] for a in kept] == fish['path'][[row, *order[:4]]].tolist()
    other = fish['name'][order[0]]
    status, out, err = run(capsys, *search, '--picture', tmp_path/'o.png', '--name', other)
    assert frames(tmp_path/'o.png')[0] == 'green' and out.startswith(f'{photo}: {other}\n')
    status, out, err = run(capsys, *search, '--name', 'whale', '--picture', tmp_path/'w.png')
    assert 'whale: no image of the gallery shows it' in err and set(frames(tmp_path/'w.png')) == {'red'}
    shutil.copy(photo, tmp_path/'copy.jpg')
    refused(capsys, *search[:3], tmp_path/'copy.jpg', *search[4:], says='it does not say what described its images')
    refused(capsys, *search, '--box', 1, 2, 3, 4, says='it does not say what described its images')
    refused(capsys, *search, '--device', 'cpu', says='is described already')


def test_a_query_knows_its_kind_where_it_is_no_part_of_the_gallery(fish, tmp_path, capsys):
    table = fish.assign(split=['query', 'gallery']*20)
    x = np.random.default_rng(0).normal(size=(40, 6))
    Features({'a': x}, table, {'tfms': 'cgd', 'size': 32}).save(tmp_path/'shop.safetensors')
    photo = f"{fish.attrs['root']}/{fish['path'][0]}"
    status, out, err = run(capsys, 'index', 'search', tmp_path/'shop.safetensors', photo, '-k', 3, '--pictures', tmp_path)
    assert status == 0 and out.startswith(f"{photo}: {fish['name'][0]}\n") and 'left out' not in err
    assert all(fish['path'][i] not in out for i in range(2, 40, 2))
    assert len(list((tmp_path/Path(photo).stem).iterdir())) == 4


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_pictures_as_the_programs_write_them(fish, described, tmp_path, capsys, metric):
    """File names, sizes and frames of `test.py`: distances of CGD, similarities of PP."""
    features, row = Features.load(described), 12
    x, photo = features['embedding'], f"{fish.attrs['root']}/{fish['path'][row]}"
    words = ['index', 'search', described, photo, '--retrieval_num', 6, '--pictures', tmp_path/'results']
    status, out, err = run(capsys, *words, *(['--metric', 'cosine'] if metric == 'cosine' else []))
    assert status == 0, err
    numbers = x @ x[row] if metric == 'cosine' else np.linalg.norm(x - x[row], axis=1)
    order = [i for i in np.argsort(-numbers if metric == 'cosine' else numbers) if i != row][:6]
    folder = tmp_path/'results'/os.path.basename(photo).split('.')[0]
    names = [f'retrieval_img_{k}_{numbers[i]:.4f}.jpg' for k, i in enumerate(order, 1)]
    assert sorted(os.listdir(folder)) == sorted(['query_img.jpg', *names])
    for name, i in zip(['query_img.jpg', *names], [row, *order], strict=True):
        drawn = np.asarray(Image.open(folder/name)).astype(int)
        expected = load_row(fish, i, crop=True).resize((224, 224), Image.Resampling.BILINEAR)
        color = (0, 128, 0) if fish['label'][i] == fish['label'][row] else (255, 0, 0)
        if name != 'query_img.jpg': ImageDraw.Draw(expected).rectangle((0, 0, 223, 223), outline=color, width=8)
        expected.save(tmp_path/'expected.jpg')
        np.testing.assert_array_equal(drawn, np.asarray(Image.open(tmp_path/'expected.jpg')).astype(int))


def test_what_pictures_refuse(fish, described, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = f"{fish.attrs['root']}/{fish['path'][3]}"
    search = ['index', 'search', described, photo]
    for name in ('found', 'found.txt', 'found.'):
        refused(capsys, *search, '--picture', name, says=f'--picture {name}: give it a name that ends in .png')
        refused(capsys, 'index', 'search', 'no.safetensors', photo, '--picture', name, says=f'--picture {name}: give it')
    assert run(capsys, *search, '--pictures', 'out')[0] == 0
    refused(capsys, *search, '--pictures', 'out', says='--force overwrites it')
    assert run(capsys, *search, '--pictures', 'out', '--force', '-k', 2)[0] == 0
    made, = os.listdir('out')
    assert len(os.listdir(f'out/{made}')) == 3
    (tmp_path/'mine'/made).mkdir(parents=True)
    (tmp_path/'mine'/made/'diary.txt').touch()
    refused(capsys, *search, '--pictures', 'mine', '--force', says=f'{made}: a folder of other files')
    refused(capsys, *search, '--metric', 'cosine', says='--metric: it goes with --pictures')
    shutil.copy(photo, 'copy.jpg')
    refused(capsys, *search[:3], 'copy.jpg', '--backbone', 'resnet18', '--weights', 'no.pth', '--pictures', 'out',
            says='--pictures: copy.jpg is none of the described images')


def test_bad_boxes_are_skipped(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = synth_dataset(tmp_path/'fish', n_classes=4, n_per_class=5, size=40, progress=False)
    table.loc[19, BOX] = [900, 900, 910, 910]
    write_table(table, 'fish.csv')
    torch.save(create_backbone('test_resnet', pretrained=False).state_dict(), 'random.pth')
    net = ['--backbone', 'test_resnet', '--weights', 'random.pth', '--device', 'cpu']
    words = ['extract', 'fish.csv', *net, *'--size 32 --crop --out x.st'.split()]
    refused(capsys, *words, says='lies outside of the image')
    status, out, err = run(capsys, *words, '--skip-bad')
    assert status == 0 and table['path'][19] in err and len(Features.load('x.st')) == 9


def test_bad_images_are_skipped(fish, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = synth_dataset(tmp_path/'fish', n_classes=4, n_per_class=5, size=40, progress=False)
    bad = tmp_path/'fish'/table['path'].iloc[-1]
    bad.write_bytes(bad.read_bytes()[:200])
    torch.save(create_backbone('test_resnet', pretrained=False).state_dict(), 'random.pth')
    words = 'extract fish --backbone test_resnet --weights random.pth --size 32 --device cpu --out x.st'.split()
    refused(capsys, *words, says=bad.name)
    status, out, err = run(capsys, *words, '--skip-bad')
    assert status == 0 and bad.name in err and len(Features.load('x.st')) == 9


def test_debug_and_bugs(capsys, monkeypatch):
    with pytest.raises(FileNotFoundError): cli.main(['evaluate', 'no.safetensors', '--debug'])
    monkeypatch.setattr(describe, 'parse_ranks', lambda text: {}['bug'])
    with pytest.raises(KeyError): cli.main(['evaluate', 'x'])


def test_interrupt(capsys, monkeypatch):
    def interrupt(text): raise KeyboardInterrupt
    monkeypatch.setattr(describe, 'parse_ranks', interrupt)
    refused(capsys, 'evaluate', 'x', says='interrupted', status=130)


@pytest.mark.parametrize('command', COMMANDS)
def test_help_is_complete(command, capsys):
    status, out, err = run(capsys, *command.split(), '--help')
    options = re.split(r'\n  (?=-)', out.partition('\nOptions:')[2])[1:]
    assert status == 0 and not err and options
    for text in options:
        text = ' '.join(text.split())
        assert '--help' in text or 'default:' in text or 'required' in text, text
    words = out.partition('\nArguments:')[2].partition('\nOptions:')[0]
    assert command in ('demo', 'recipes', 'backbones') or 'required' in words


@pytest.mark.processes
def test_every_command_is_listed():
    out = fgir()
    assert len(COMMANDS) > 10 and all(f'\n  {c.split()[0]} ' in out for c in COMMANDS)
    assert 'cgd' in fgir('train', '--help')
    assert fgir('--version').startswith('fgir 0.')


PROXIES = ('--backbone test_resnet --from-scratch --size 32 --batch-size 8 --epochs 2 --valid 0.5 --set net.dim=16 '
           '--set lr.loss=0.1 --workers 0').split()


def test_a_recipe_by_name(fish, tmp_path, capsys):
    """Settings are changed, the quirk is undone, the run resumes and logs."""
    words = ['train', 'pp_norm_softmax', fish.attrs['root'], *PROXIES, '--out', tmp_path, '--undo', 'ragged_batch,bn_affine']
    status, out, err = run(capsys, *words, '--log', 'tensorboard')
    assert status == 0 and 'pp_norm_softmax' in out and 'R@1' in out, err
    recipe = json.loads(next(tmp_path.glob('*_model.json')).read_text())
    assert recipe['net']['dim'] == 16 and recipe['lr'] == {'backbone': 1e-4, 'head': 1e-4, 'loss': .1}
    assert recipe['quirks'] == [] and recipe['drop_last'] is True and recipe['valid'] == .5
    assert list((tmp_path/'tensorboard').rglob('events.out.*'))
    refused(capsys, *words, says='--force overwrites it')
    assert run(capsys, *words, '--resume')[0] == 0
    refused(capsys, *words, '--resume', '--set', 'warm_up=1', says='cannot go on with warm_up=1')


@pytest.mark.processes
def test_two_processes_train_one_network(fish, tmp_path):
    out = fgir('train', 'pp_norm_softmax', fish.attrs['root'], *PROXIES, '--out', tmp_path, '--processes', 2)
    assert out.count('\nepoch ') == 2 and out.count('model descriptor') == 1
    assert len(pd.read_csv(next(tmp_path.glob('*_statistics.csv')))) == 2
    assert len(list(tmp_path.glob('*_data_base.safetensors'))) == 1
    err = fgir('train', 'pp_norm_softmax', fish.attrs['root'], *PROXIES, '--batch-size', 9, '--out', tmp_path/'b',
               '--processes', 2, status=1)
    assert '9 images cannot be shared by 2 processes' in err and 'Traceback' not in err


def test_the_words_of_a_recipe_stand_where_none_is_said(fish, tmp_path, capsys):
    words = ['train', 'proxy-anchor-sop', fish.attrs['root'], *PROXIES, '--out', tmp_path, '--set', 'precision=bf16']
    status, out, err = run(capsys, *words)
    recipe = json.loads(next(tmp_path.glob('*_model.json')).read_text())
    assert status == 0 and (recipe['precision'], recipe['ks'], recipe['seed']) == ('bf16', [1, 10, 100, 1000], 1), err
    assert 'R@10 ' in out and recipe['lr'] == {'backbone': 6e-4, 'head': 6e-4, 'loss': .1}


@pytest.mark.processes
def test_ctrl_c_ends_two_processes_in_one_line(fish, tmp_path):
    words = ['train', 'pp_norm_softmax', fish.attrs['root'], *PROXIES, '--out', tmp_path, '--processes', 2, '--epochs', 500]
    p = Fresh(command_in_copies, *words)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob('*_last.safetensors')) and time.monotonic() < deadline: time.sleep(.1)
    p.send(signal.SIGINT)
    done = p.end(60)
    assert done.returncode == 130 and 'fgir: interrupted' in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_the_list_of_recipes(capsys):
    status, out, _ = run(capsys, 'recipes')
    assert status == 0 and all(name in out for name in ('msloss', 'arcface_1024', 'proxy_anchor_sop', 'fgic', 'PP'))


@pytest.mark.data
@needs_data
@pytest.mark.parametrize('name, folder', [('cub', 'CUB_100')])
def test_real_photographs(name, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = ['--backbone', 'squeezenet1_1', '--weights', SHARED/'data'/'weights'/'squeezenet1_1.safetensors']
    assert run(capsys, 'prepare', name, SHARED/'data'/folder, 'ready')[0] == 0
    table = pd.read_csv('ready/uncropped_table.csv', dtype=str)
    few = table.sort_values('label', key=lambda y: y.astype(int), kind='stable').groupby('label').head(8)
    few = few.groupby('split').head(48)
    few.to_csv('ready/uncropped_table.csv', index=False)
    options = '--set net.gd_config=MG --set net.feature_dim=32 --size 96 --batch-size 8 --epochs 1 --valid test --workers 0'.split()
    for words in (['extract', 'ready/uncropped_table.csv', *net, '--size', 128, '--out', 'x.st'],
                  ['train', 'cgd', 'ready/uncropped_table.csv', *net, *options]):
        status, out, err = run(capsys, *words)
        assert status == 0, err
    assert f'{name}, 96 images of 12 classes (48 train, 48 test)' in out
    assert run(capsys, 'evaluate', 'x.st', '--csv', 'x.csv')[0] == 0
    assert pd.read_csv('x.csv')['R@1'][0] > .4
    photo = f"{SHARED/'data'/folder}/{few['path'].iloc[-1]}"
    status, out, err = run(capsys, 'index', 'search', 'x.st', photo, *net, '-k', 2)
    assert status == 0 and few['path'].iloc[-1] in out, err


@pytest.mark.parametrize('gallery', ['fish.safetensors', 'fish.db'])
def test_a_photograph_of_a_gallery_is_known(fish, gallery, tmp_path, capsys, monkeypatch):
    """`index search` knows its kind and its box, a file as well as a database."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_model(RetrievalNet(create_backbone('test_resnet', pretrained=False)), 'net')
    words = ['--model', 'net.safetensors', '--device', 'cpu']
    write_table(fish, 'fish.csv')
    assert run(capsys, 'index', 'build', 'fish.csv', gallery, *words, *'--crop --size 32'.split())[0] == 0
    photo = f"{fish.attrs['root']}/{fish['path'][7]}"
    search = ['index', 'search', gallery, photo, '--device', 'cpu', '-k', 4]
    status, out, err = run(capsys, *search, '--picture', 'r.png')
    assert status == 0 and out.startswith(f"{photo}: {fish['name'][7]}\n") and err.count('\n') == 1 and 'left out' in err, err
    found = json.loads(run(capsys, *search, '--json')[1])
    assert frames('r.png') == ['green' if a['name'] == fish['name'][7] else 'red' for a in found]
    kept = json.loads(run(capsys, *search, '--json', '--keep-self')[1])
    assert kept[0]['path'] == fish['path'][7] and kept[0]['score'] == pytest.approx(1, abs=1e-5)
    shutil.copy(photo, 'copy.jpg')
    status, out, err = run(capsys, *search[:3], 'copy.jpg', *search[4:], '--name', fish['name'][7], '--picture', 'n.png')
    assert status == 0 and 'taken whole' in err and set(frames('n.png')) <= {'green', 'red'}
    assert run(capsys, *search[:3], 'copy.jpg', *search[4:], '--picture', 'u.png')[0] == 0 and frames('u.png') == []
