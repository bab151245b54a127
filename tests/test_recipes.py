"""Recipes: the programs' settings, what they do to a run, resuming the same run and no other, quirks, seeds."""
import json
import math
import random
import re
from itertools import product

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from pytorch_metric_learning import losses as pml
from safetensors import safe_open
from safetensors.torch import save_file
from timm.optim import AdamP
from torch import nn

from fgir import losses
from fgir.backbones.nets import RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import read_record
from fgir.data.batches import retrieval_dls
from fgir.data.fish import synth_dataset
from fgir.data.table import hold_out_classes
from fgir.losses.pairs import BatchHardTripletLoss
from fgir.papers.cgd import CGDLoss, CGDNet
from fgir.training import recipes as book
from fgir.training.callbacks import ClipValue, FreezeBN, WarmUp, pick_epoch
from fgir.training.fitting import per_group, read_recipe
from fgir.training.holdout import choose_valid, hold_out_images
from fgir.training.learner import retrieval_learner
from fgir.training.recipes import DEFAULTS, QUIRKS, RECIPES, get_recipe, list_recipes
from fgir.training.runs import learner_from_recipe, run_seeds
from fgir.training.settings import CHECKS, GROUPS, build, schedule_factor

SMALL = dict(backbone='test_resnet', pretrained=False, size=32, batch_size=8)
QUIET = dict(num_workers=0, progress=False)


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp('synth')/'set'
    return hold_out_classes(synth_dataset(root, n_classes=16, n_per_class=8, size=48, progress=False), .5)


def make(recipe, table, out, **kwargs):
    return learner_from_recipe(recipe, table, out=out, loaders=QUIET, **{**SMALL, **kwargs})


def fit(learn, **kwargs):
    with learn.no_bar(), learn.no_logging(): return learn.fit_recipe(**kwargs)


class Stop(Callback):
    "Interrupt before an epoch."
    order = 70

    def __init__(self, at): self.at = at

    def before_epoch(self):
        if self.epoch == self.at: raise KeyboardInterrupt


class Watch(Callback):
    "Rates, decays, frozen parts and gradients of every step."
    order, run_valid = 95, False

    def before_fit(self): self.lr, self.wd, self.frozen, self.grad = [], [], [], []

    def after_step(self):
        groups = self.opt.opt.param_groups
        self.lr.append([g['lr'] for g in groups])
        self.wd.append([g['weight_decay'] for g in groups])
        self.frozen.append(not any(p.requires_grad for p in self.model.backbone.parameters()))
        self.grad.append(max(p.grad.abs().max().item() for p in self.learn.parameters() if p.grad is not None))


# what a recipe says

def test_every_recipe_is_complete_and_json():
    for name in RECIPES:
        r = get_recipe(name)
        assert set(r) == {'recipe', *DEFAULTS} and json.loads(json.dumps(r)) == r
        assert bool(r['epochs']) != bool(r['steps'])
        assert all(QUIRKS[q][1].partition('.')[0] in DEFAULTS for q in r['quirks'])
        assert get_recipe(name, undo='all')['quirks'] == []
    assert list(list_recipes().index) == list(RECIPES)


class Point:
    "An entry point that is not installed."
    def __init__(self, name, table): self.name, self.table = name, table

    def load(self): return self.table


def test_papers_come_in_the_order_of_the_list_then_packages_then_our_own(monkeypatch):
    found = [Point('another', {'b': {}}), Point('cgd', {'cgd': {}}), Point('pp', {'pp': {}}), Point('cfga_training', {'ms': {}})]
    monkeypatch.setattr(book, 'entry_points', lambda group: found)
    assert list(book._Registered('fgir.recipes', {'sane': {}})) == ['ms', 'pp', 'cgd', 'b', 'sane']


def test_a_checkout_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(book, 'entry_points', lambda group: [])
    with pytest.raises(RuntimeError, match='nothing is registered for fgir.recipes.*pip install -e'):
        list(book._Registered('fgir.recipes', {'sane': {}}))


PROGRAMS = [  # recipe, loss and its arguments, optimizer, rates, decay, batch, K, length
    ('msloss', dict(alpha=2, beta=40, base=.5, eps=.1), torch.optim.Adam, 3e-5, 5e-4, 80, 5, (None, 3000)),
    ('cosface', dict(scale=50, margin=.5), torch.optim.RMSprop, 1e-5, 5e-4, 80, 1, (None, 4000)),
    ('arcface', dict(scale=50, margin=.5), torch.optim.RMSprop, 1e-5, 5e-4, 80, 1, (None, 4000)),
    ('arcface_1024', dict(scale=50, margin=.5), torch.optim.RMSprop, 1e-5, 5e-4, 80, 1, (None, 4000)),
    ('cosface_1024_cub', dict(scale=50, margin=.5), torch.optim.RMSprop, 1e-5, 5e-4, 80, 1, (None, 3000)),
    ('dgpcrl', dict(scale=100, flip=.7, decorrelation=.1), torch.optim.SGD, 1e-3, 5e-6, 60, None, (111, None)),
    ('proxy_anchor_cub', dict(alpha=32, margin=.1), torch.optim.AdamW, dict(backbone=1e-4, head=1e-4, loss=1e-2), 1e-4, 120,
     None, (60, None)),
    ('proxy_anchor_sop', dict(alpha=32, margin=.1), torch.optim.AdamW, dict(backbone=6e-4, head=6e-4, loss=6e-2), 1e-4, 180,
     None, (60, None)),
    ('pp_proxy_anchor', dict(alpha=32, margin=.1), AdamP, dict(backbone=1e-4, head=1e-4, loss=1e-2), 0, 64, None, (20, None)),
    ('pp_norm_softmax', dict(scale=32), AdamP, dict(backbone=1e-4, head=1e-4, loss=1e-2), 0, 64, None, (20, None)),
    ('pp_positive_proxy', dict(variant='P2', base='proxy_anchor'), AdamP, dict(backbone=1e-4, head=1e-4, loss=1e-2), 0, 64,
     None, (20, None)),
    ('pp_moving_proxy', dict(temperature=.03, momentum=.5), torch.optim.Adam, 1e-4, 0, 128, None, (30, None)),
]


@pytest.mark.parametrize('name, arguments, optimizer, lr, wd, batch, per_class, length', PROGRAMS)
def test_settings_are_the_programs(table, tmp_path, name, arguments, optimizer, lr, wd, batch, per_class, length):
    r = get_recipe(name)
    assert (r['lr'], r['wd'], r['batch_size'], r['per_class']) == (lr, wd, batch, per_class)
    assert (r['epochs'], r['steps']) == length
    learn = make(name, table, tmp_path, batch_size=4, per_class=min(per_class or 2, 2))
    loss = learn.loss_func.loss
    assert type(loss).__name__ == r['loss']['name']
    assert {k: getattr(loss, k) for k in arguments} == pytest.approx(arguments)
    learn.create_opt()
    assert type(learn.opt.opt) is optimizer
    momentum = {torch.optim.SGD: .9, torch.optim.RMSprop: 0}
    assert all(g.get('momentum') == momentum.get(optimizer) for g in learn.opt.opt.param_groups)
    dim = 1024 if '1024' in name else 512
    net = learn.model
    assert net.dim == (2*net.backbone.n_features if name == 'dgpcrl' else dim)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, net.dim)


def test_heads_are_the_programs(table, tmp_path):
    pp, official, later = (make(n, table, tmp_path).model for n in ('pp_proxy_anchor', 'proxy_anchor_cub', 'pp_later'))
    assert [n for n, _ in pp.head.named_children()] == ['norm', 'linear'] and pp.head.linear.bias is None
    assert not list(pp.head.norm.parameters()) and type(pp.pool).__name__ == 'MAC'
    assert [n for n, _ in official.head.named_children()] == ['linear'] and not official.head.linear.bias.any()
    assert official.head.linear.weight.std().item() == pytest.approx((2/512)**.5, rel=.02)
    assert type(official.pool).__name__ == type(later.pool).__name__ == 'AvgMax' and later.head.linear.bias is None
    google = make('pp_googlenet', table, tmp_path).model
    assert [n for n, _ in google.head.named_children()] == ['dropout', 'norm', 'linear'] and google.head.dropout.p == .2
    assert 'dropout' not in dict(make('pp_googlenet', table, tmp_path, undo='googlenet_dropout').model.head.named_children())


def test_proxies_begin_as_the_programs_do():
    torch.manual_seed(0)
    unit = build(get_recipe('pp_proxy_anchor')['loss'], n_classes=50, dim=512).proxies
    official = build(get_recipe('proxy_anchor_cub')['loss'], n_classes=50, dim=512).proxies
    assert torch.allclose(unit.norm(dim=1), torch.ones(50), atol=1e-5)
    assert official.std().item() == pytest.approx((2/50)**.5, rel=.03)


def test_cgd_is_a_recipe_too(table, tmp_path):
    learn = make('cgd', table, tmp_path, net=dict(feature_dim=16))
    assert type(learn.model) is CGDNet and type(learn.loss_func.loss) is CGDLoss and learn.model.dim == 16


# what it does to a run

RATES = [('msloss', 10, [1]*4 + [.1]*4 + [.01]*2), ('proxy_anchor_cub', 60, [.5**(e//5) for e in range(60)]),
         ('proxy_anchor_cars', 60, [.5**(e//10) for e in range(60)]), ('pp_moving_proxy', 30, [1]*15 + [.1]*15),
         ('proxy_anchor_sop', 60, [.25**(e//20) for e in range(60)]), ('dgpcrl', 111, [1]*100 + [.1]*11),
         ('cosface', 8, [1]*8), ('pp_proxy_anchor', 4, [1, .5, .25, .125])]


@pytest.mark.parametrize('name, epochs, expected', RATES)
def test_schedules_are_the_programs(name, epochs, expected):
    factor = schedule_factor(get_recipe(name)['schedule'], epochs)
    assert [factor(e/epochs) for e in range(epochs)] == pytest.approx(expected)


def test_a_schedule_of_steps_falls_at_the_step(table, tmp_path):
    watch = Watch()
    learn = make('msloss', table, tmp_path, per_class=2, steps=10, schedule=dict(at=[3, 7], of=10), valid='last')
    fit(learn, cbs=watch)
    assert len(watch.lr) == 10 and len(learn.dls.train) == 4
    first = [lr[0] for lr in watch.lr]
    assert first == pytest.approx([3e-5]*3 + [3e-6]*4 + [3e-7]*3)
    assert len(learn.history) == 3 and {w for wd in watch.wd for w in wd} == {5e-4}


def test_a_run_of_steps_resumes_to_the_same_weights(table, tmp_path):
    def steps(path): return make('msloss', table, path, per_class=2, steps=10, valid='last', lr=1e-3)
    whole, part = fit(steps(tmp_path/'a')), steps(tmp_path/'b')
    with pytest.raises(KeyboardInterrupt): fit(part, cbs=Stop(2))
    again = fit(steps(tmp_path/'b'), resume=True)
    assert again.history == whole.history
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_groups_have_their_own_rates_and_decays(table, tmp_path):
    watch = Watch()
    fit(make('pp_proxy_anchor', table, tmp_path, epochs=3, warm_up=1, wd=dict(backbone=.1, head=.2)), cbs=watch)
    n = len(watch.lr)//3
    assert watch.lr[0] == pytest.approx([1e-4, 1e-4, 1e-2]) and watch.wd[0] == [.1, .2, 0]
    assert watch.frozen == [True]*n + [False]*2*n
    headless = make('dgpcrl', table, tmp_path, lr=dict(backbone=1., head=2., loss=3.))
    assert per_group(headless.recipe['lr'], headless) == [1., 3.]
    with pytest.raises(ValueError, match="parameter group 'proxies'"): per_group(dict(proxies=1.), headless)


def test_sane_does_what_it_says(table, tmp_path):
    "One cycle of three rates, a frozen start, clipped gradients, bfloat16, held-out classes, and it learns."
    watch, learn = Watch(), make('sane', table, tmp_path, epochs=6)
    fit(learn, cbs=watch)
    start, top, end = watch.lr[0], max(watch.lr), watch.lr[-1]
    assert start == pytest.approx([.04*3e-4, .04*3e-4, .04*3e-2], rel=.5) and end[0] < .05*top[0]
    assert top == pytest.approx([3e-4, 3e-4, 3e-2], rel=.05) and watch.lr.index(top)/len(watch.lr) == pytest.approx(.15, abs=.1)
    assert watch.wd[0] == [1e-4]*3 and watch.frozen[0] and not watch.frozen[-1]
    assert learn.valid_split == 'valid' and learn.recipe['precision'] == 'bf16' and learn.recipe['quirks'] == []
    assert learn.history[-1][0] < learn.history[0][0]


def test_gradients_are_cut_by_value_and_by_length(table, tmp_path):
    watch = Watch()
    fit(make('proxy_anchor_cub', table, tmp_path, epochs=1, warm_up=0, clip_value=.01), cbs=watch)
    assert 0 < max(watch.grad) <= .01
    fit(make('proxy_anchor_cub', table, tmp_path/'b', epochs=1, warm_up=0, clip_value=0., clip_norm=1e-3), cbs=watch)
    assert 0 < max(watch.grad) <= 1e-3


def test_frozen_normalization_follows_the_recipe(table, tmp_path):
    def callbacks(name, **kwargs): return {type(cb): cb for cb in make(name, table, tmp_path, **kwargs).cbs}
    torch.save(create_backbone('resnet18', pretrained=False).state_dict(), tmp_path/'w.pth')
    body = dict(backbone='resnet18', weights=str(tmp_path/'w.pth'))
    assert not callbacks('msloss', per_class=2, **body)[FreezeBN].affine
    assert callbacks('msloss', per_class=2, undo='bn_affine', **body)[FreezeBN].affine
    assert FreezeBN not in callbacks('dgpcrl', **body) and FreezeBN not in callbacks('proxy_anchor_sop', **body)
    assert FreezeBN not in callbacks('msloss', per_class=2)
    official = callbacks('proxy_anchor_cub', **body)
    assert official[ClipValue].value == 10 and official[WarmUp].epochs == 5


def test_frozen_scale_and_shift_stay_frozen_after_warm_up(table, tmp_path):
    torch.save(create_backbone('resnet18', pretrained=False).state_dict(), tmp_path/'w.pth')
    learn = make('proxy_anchor_cub', table, tmp_path, undo='all', backbone='resnet18', weights=str(tmp_path/'w.pth'), epochs=2,
                 warm_up=1, valid='last')
    bn, conv = learn.model.backbone.bn1, learn.model.backbone.conv1
    before, weights = bn.weight.detach().clone(), conv.weight.detach().clone()
    fit(learn)
    assert torch.equal(bn.weight, before) and not torch.equal(conv.weight, weights)


@pytest.mark.parametrize('valid, split, word', [('last', 'test', ''), ('test', 'test', 'optimistic'), (.5, 'valid', 'own')])
def test_the_choice_of_the_epoch_is_said(table, tmp_path, capsys, valid, split, word):
    learn = make('pp_norm_softmax', table, tmp_path, valid=valid, epochs=2)
    assert word in capsys.readouterr().out and learn.valid_split == split
    fit(learn)
    picked = read_record(tmp_path/f'{learn.prefix}_model.safetensors')
    first = [row[2] for row in learn.history]
    assert picked['epoch'] == {'last': 2, 'test': pick_epoch(first, strict=True), .5: pick_epoch(first, 32)}[valid]
    assert picked['history'] == learn.history and picked['selection'] == learn.selection


def classes_of(n, images, test=True):
    "A table of `n` training classes of so many images."
    rows = pd.DataFrame({'label': [i//images for i in range(n*images)], 'split': 'train'})
    return pd.concat([rows, pd.DataFrame({'label': [999]*2, 'split': ['test']*2})], ignore_index=True) if test else rows


@pytest.mark.parametrize('n, images, looks_at, held, classes, word', [
    (2, 20, 'test', 0, 0, 'the last epoch is kept'), (3, 20, 'test', 0, 0, 'last epoch'), (7, 20, 'test', 0, 0, 'last epoch'),
    (8, 20, 'valid', 32, 0, '32 images of all'), (10, 20, 'valid', 40, 0, '40 images of all'),
    (20, 20, 'valid', 80, 4, ''), (3, 50, 'valid', 30, 0, '30 images of all'), (18, 7, 'valid', 36, 0, '36 images of all'),
    (18, 8, 'valid', 32, 4, ''), (100, 2, 'valid', 40, 20, ''), (17, 10, 'valid', 34, 0, 'classes are too few')])
def test_small_data_hold_out_images_or_nothing(capsys, n, images, looks_at, held, classes, word):
    table, split = choose_valid(classes_of(n, images), .2, seed=0)
    rows, train = (table[table.split == s] for s in ('valid', 'train'))
    assert split == looks_at and len(rows) == held and len(set(rows.label) - set(train.label)) == classes
    assert len(rows) + len(train) == n*images and train.label.nunique() == n - classes
    out = capsys.readouterr().out
    assert word in out and bool(out) == bool(word)
    if held and not classes: assert rows.label.value_counts().min() >= 2


def test_a_classifier_holds_out_images_or_nothing(capsys):
    for images, held in (5, 30), (4, 30), (2, 30), (1, 0):
        table, split = choose_valid(classes_of(30, images), .2, 0, 'images')
        assert (table.split == 'valid').sum() == held and split == ('valid' if held else 'test')
    assert 'the last epoch is kept' in capsys.readouterr().out
    table, split = choose_valid(classes_of(3, 20, test=False), .2, 0)
    assert split == 'valid' and (table.split == 'valid').sum() == 12


def test_too_few_rows_of_ones_own_pick_nothing(capsys):
    table = classes_of(20, 20)
    table.loc[table.label < 3, 'split'] = 'valid'
    assert choose_valid(table, .2, 0)[0] is table
    assert "own 60 rows of split 'valid' are too few to choose by: the last epoch is kept" in capsys.readouterr().out


def test_images_are_held_out_of_every_class():
    table = pd.DataFrame({'label': [0]*10 + [1]*4 + [2] + [3]*2, 'split': ['train']*15 + ['test']*2})
    held = hold_out_images(table, .2, seed=1)
    assert held[held.split == 'valid'].label.value_counts().to_dict() == {0: 2, 1: 1}
    assert (table.split == 'train').sum() == 15 and (held.split == 'test').sum() == 2


# resuming the same run, and no other

def recipe_learner(table, path, **changes):
    "A recipe around a network of no class of fgir's, which is small."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(.2))
    dls = retrieval_dls(table, size=32, bs=8, per_class=4, num_workers=0)
    learn = retrieval_learner(dls, net, BatchHardTripletLoss(margin=.1), path=path, model_dir='.')
    learn.recipe = get_recipe(dict(epochs=3, lr=1e-3, size=32, schedule=dict(name='steps', at=[2], of=3, gamma=.1)), **changes)
    learn.prefix, learn.valid_split = 'run', 'valid'
    return learn


def interrupt(learn, at, **kwargs):
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=Stop(at), **kwargs)


@pytest.mark.parametrize('other, words', [
    (dict(epochs=4), 'epochs=3.*epochs=4'), (dict(lr=1e-2), r'lr=0\.001.*lr=0\.01'), (dict(schedule=dict(at=[1])), 'schedule'),
    (dict(size=64), 'size=32.*size=64')])
def test_a_run_of_other_settings_is_not_resumed(table, tmp_path, other, words):
    interrupt(recipe_learner(table, tmp_path), 1)
    with pytest.raises(ValueError, match=words): recipe_learner(table, tmp_path, **other).fit_recipe(resume=True)


def altered(path, **fields):
    "Write other fields into the record of a checkpoint."
    with safe_open(path, 'pt') as f: record, tensors = json.loads(f.metadata()['record']), {k: f.get_tensor(k) for k in f.keys()}
    save_file(tensors, path, {'record': json.dumps({**record, **fields})})


def test_a_state_with_altered_fields_is_one_line_or_goes_on(table, tmp_path):
    interrupt(recipe_learner(table, tmp_path), 1)
    last = tmp_path/'run_last.safetensors'
    kept, refused = last.read_bytes(), 0
    train = dict(dict=[['loss', dict(dict=[])], ['opt', dict(dict=[['state', dict(value=5)], ['param_groups', dict(list=[])]])]])
    for field, values in dict(
        history=(None, 'x', [5], [['a', 'b']], [[1]*99]), columns=(None, [5]), epochs_before=('x', -1),
        train=(None, {}, 'x', dict(tensor='x'), dict(list=5), train), lr=('x',), recipe=(5,), epoch=('x',)).items():
        for value in values:
            last.write_bytes(kept)
            altered(last, **{field: value})
            try: fit(recipe_learner(table, tmp_path), resume=True)
            except ValueError as e:
                assert 'run_last.safetensors' in str(e) and '\n' not in str(e), (field, value, str(e))
                refused += 1
    assert refused >= 15


def test_a_complete_run_returns_at_once(table, tmp_path):
    trained = fit(recipe_learner(table, tmp_path))
    again = recipe_learner(table, tmp_path)
    again.fit = None
    assert fit(again, resume=True).history == trained.history
    for a, b in zip(trained.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_forced_run_leaves_nothing_of_the_earlier_one_to_resume(table, tmp_path):
    fit(recipe_learner(table, tmp_path))
    interrupt(recipe_learner(table, tmp_path), 0, force=True)
    assert not list(tmp_path.iterdir())
    resumed = fit(recipe_learner(table, tmp_path), resume=True)
    assert len(resumed.recorder.iters) == 3


def test_the_best_file_alone_is_not_overwritten_and_is_read_once(table, tmp_path, monkeypatch):
    learn, loads = recipe_learner(table, tmp_path), []
    load = type(learn).load
    monkeypatch.setattr(type(learn), 'load', lambda self, file, **kwargs: loads.append(file) or load(self, file, **kwargs))
    fit(learn)
    assert loads == ['run_model']
    (tmp_path/'run_last.safetensors').unlink()
    with pytest.raises(FileExistsError, match='run_model.*earlier run'): recipe_learner(table, tmp_path).fit_recipe()


def test_what_a_record_does_not_tell_or_tells_of_a_place_is_not_compared(table, tmp_path):
    interrupt(recipe_learner(table, tmp_path, weights='there.pth'), 1)
    assert len(fit(recipe_learner(table, tmp_path, weights='here.pth'), resume=True).recorder.iters) == 2


def test_a_checkpoint_rebuilds_its_learner(table, tmp_path):
    learn = fit(make('pp_positive_proxy', table, tmp_path, epochs=1, loss=dict(variant='P3'), net=dict(dim=24)))
    for file in ('model', 'last'):
        again = learner_from_recipe(read_recipe(tmp_path/f'{learn.prefix}_{file}.safetensors'), table, out=tmp_path, loaders=QUIET)
        assert {**again.facts, 'selection': 'the last epoch'} == learn.facts
        assert again.loss_func.loss.variant == 'P3' and again.model.dim == 24
    assert fit(again, resume=True).history == learn.history
    for a, b in zip(learn.model.state_dict().values(), again.model.state_dict().values(), strict=True): assert torch.equal(a, b)
    with pytest.raises(ValueError, match='not trained by a recipe'):
        from fgir.backbones.saving import save_model
        read_recipe(save_model(learn.model, tmp_path/'plain'))


def test_own_modules_and_losses_of_others(table, tmp_path):
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=16)
    learn = fit(make(dict(recipe='mine', loss=pml.ContrastiveLoss(), per_class=4), table, tmp_path, net=net, epochs=1))
    assert learn.model is net and learn.history[0][0] > 0
    for loss in (pml.MultiSimilarityLoss(), pml.ProxyAnchorLoss(4, 16), pml.ArcFaceLoss(4, 16), pml.TripletMarginLoss()):
        own = make(dict(recipe=type(loss).__name__, loss=loss, net=dict(dim=16)), table, tmp_path, epochs=1, per_class=4)
        before = [p.detach().clone() for p in loss.parameters()]
        fit(own)
        assert all(not torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))


def test_seeds_differ_and_repeat(table, tmp_path):
    runs = run_seeds('pp_norm_softmax', table, seeds=(0, 1), out=tmp_path/'a', bars=False, loaders=QUIET, epochs=1, **SMALL)
    again = run_seeds('pp_norm_softmax', table, seeds=(1,), out=tmp_path/'b', bars=False, loaders=QUIET, epochs=1, **SMALL)
    assert list(runs.index) == [0, 1, 'mean', 'sd'] and (runs.loc[1] == again.loc[1]).all()
    assert runs.loc['mean'].to_numpy() == pytest.approx(runs.iloc[:2].mean().to_numpy())
    assert runs.loc['sd'].to_numpy() == pytest.approx(runs.iloc[:2].std().to_numpy())
    complete = {p: p.stat().st_mtime_ns for p in (tmp_path/'a').iterdir()}
    run_seeds('pp_norm_softmax', table, seeds=(0, 1), out=tmp_path/'a', bars=False, loaders=QUIET, epochs=1, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/'a').iterdir()} == complete


@pytest.mark.parametrize('args, words', [
    (dict(recipe='pp_proxy_ankor'), 'did you mean pp_proxy_anchor'), (dict(epoch=2), "setting 'epoch'.*epochs"),
    (dict(undo='sign_flip'), 'quirk of pp_proxy_anchor'), (dict(optimizer='adamq'), "optimizer 'adamq'"),
    (dict(schedule='staircase'), "schedule 'staircase'"), (dict(precision='int8'), 'precision'), (dict(epochs=0), 'epochs'),
    (dict(loss=dict(gamma=2)), 'ProxyAnchorLoss.*gamma'), (dict(net='Features'), 'unknown'),
    (dict(valid='best'), "'last', 'test' or a fraction"), (dict(schedule=dict(by=2)), 'schedule steps.*by'),
    (dict(epochs='3'), 'epochs'), (dict(epochs=2.5), 'epochs'), (dict(epochs=2, steps=3), 'one of the two'),
    (dict(lr=-1.), 'lr: expected numbers'), (dict(lr='abc'), 'lr: expected numbers'), (dict(ks='1,2'), 'ks'), (dict(ks=1), 'ks'),
    (dict(seed=1.5), 'seed'), (dict(batch_size=-8), 'batch_size'), (dict(optimizer=torch.optim.Adam), 'optimizer: expected a name'),
    (dict(optimizer=dict(name='adam', momentum=.9)), 'optimizer adam.*momentum'), (dict(schedule=abs), 'schedule: expected'),
    (dict(net=nn.Flatten()), 'net.*backbone'), (dict(recipe=1), 'a name or settings'), (dict(freeze_bn='yes'), 'freeze_bn'),
    (dict(sampler='random', per_class=2), 'sampler')])
def test_mistakes_are_named(table, tmp_path, args, words):
    with pytest.raises(ValueError, match=words):
        fit(make(**{'recipe': 'pp_proxy_anchor', 'table': table, 'out': tmp_path, **args}))


def test_a_small_decay_is_a_decay():
    "Decays are compared as they are, not as they are printed."
    assert 'decayed_proxies' in get_recipe('proxy_anchor_cub', wd=1e-7)['quirks']


def test_a_rate_for_one_group_leaves_those_of_the_others():
    assert get_recipe('cosface', lr=dict(loss=.1))['lr'] == dict(backbone=1e-5, head=1e-5, loss=.1)
    assert get_recipe('pp_norm_softmax', lr=dict(loss=.1))['lr'] == dict(backbone=1e-4, head=1e-4, loss=.1)


def test_a_prefix_may_name_a_folder(table, tmp_path):
    def run(**how): return fit(make('pp_proxy_anchor', table, tmp_path, prefix='a/b', epochs=1, valid='last'), **how)
    whole = run().history
    assert (tmp_path/'a/b_last.safetensors').is_file() and run(resume=True).history == whole


@pytest.fixture
def untried(monkeypatch):
    "Settings are checked by the table alone, which is quick."
    for name in ('try_build', 'try_optimizer'): monkeypatch.setattr(book, name, lambda spec: None)


@pytest.mark.parametrize('name', RECIPES)
def test_a_partial_mapping_completes_from_the_recipe(name, untried):
    "One key of any mapping is changed; all others, of this mapping and of the rest, stay."
    r = get_recipe(name)
    assert set(r['net']) > {'name'} or name == 'fgic'
    for key, value in r.items():
        parts = dict.fromkeys(GROUPS, value) if key in ('lr', 'wd') and not isinstance(value, dict) else value
        if not isinstance(parts, dict): continue
        for part in parts.keys() - {'name'}:
            other = {'schedule.at': [1]}.get(f'{key}.{part}', .5 if key != 'net' else 6)
            if f'{key}.{part}' == 'net.dropout': other = .5
            changed = get_recipe(name, **{key: {part: other}})
            expected = {**r, key: {**parts, part: other}}
            del changed['quirks'], expected['quirks']
            assert changed == expected, (key, part)


def test_a_partial_mapping_in_settings_of_ones_own_completes_from_the_defaults(untried):
    r = get_recipe(dict(wd=dict(backbone=1e-3), lr=dict(loss=.1), net=dict(dim=64)))
    assert r['wd'] == dict(backbone=1e-3, head=0., loss=0.) and r['lr'] == dict(backbone=1e-4, head=1e-4, loss=.1)
    assert r['net'] == dict(DEFAULTS['net'], dim=64)
    assert get_recipe(r, wd=dict(head=1.))['wd'] == dict(backbone=1e-3, head=1., loss=0.)


def test_a_group_without_a_number_is_named(table, tmp_path):
    learn = make('pp_norm_softmax', table, tmp_path)
    with pytest.raises(ValueError, match="no number for the parameter group 'head'"): per_group(dict(backbone=1., loss=1.), learn)


UNDONE = {  # quirk: what the settings are without it, whatever else was asked for
    'bn_affine': lambda r: r['freeze_bn'] == 'all', 'last_weights': lambda r: r['valid'] == .2,
    'single_rate': lambda r: r['lr']['backbone'] <= .10001*r['lr']['head'],
    'decayed_proxies': lambda r: r['wd']['loss'] == 0, 'test_selection': lambda r: r['valid'] == .2,
    'sign_flip': lambda r: r['loss'].get('flip', 2) > 1, 'two_sizes': lambda r: r['tfms'] == 'cgd',
    'fast_proxies': lambda r: not isinstance(r['lr'], dict) or r['lr']['loss'] <= r['lr']['head'],
    'googlenet_dropout': lambda r: not r['net']['dropout'],
    'ragged_batch': lambda r: r['drop_last'] is True, 'third_stage': lambda r: r['strides'] == [2, 1]}
WAYS = [  # other settings that are given beside it
    {}, dict(wd=1e-3), dict(wd=dict(backbone=1e-3)), dict(lr=1e-2), dict(lr=dict(head=1e-2)), dict(loss='ProxyAnchorLoss'),
    dict(loss='DGPCRLoss'), dict(loss=dict(scale=7)), dict(net=dict(dim=8)), dict(backbone='resnet18'), dict(epochs=3),
    dict(size=64, batch_size=8, crop=True)]


@pytest.mark.parametrize('name', RECIPES)
def test_a_quirk_is_undone_whichever_way_the_other_settings_are_given(name, untried):
    for quirk, way in product(get_recipe(name)['quirks'], WAYS):
        for undo in (quirk, 'all') if way else (quirk, [quirk], 'all'):
            r = get_recipe(name, undo, **way)
            assert UNDONE[quirk](r) and quirk not in r['quirks'], (quirk, way)
            if way: continue
            kept, entry = get_recipe(name), QUIRKS[quirk][1].partition('.')[0]
            assert undo == 'all' or {k for k in r if r[k] != kept[k]} == {entry, 'quirks'}
            assert get_recipe(kept, undo) == r
        if way == dict(wd=1e-3) and quirk == 'decayed_proxies': assert r['wd'] == dict(backbone=1e-3, head=1e-3, loss=0.)


SAME = {  # quirk: a setting of one's own that repeats it, and one that does not
    'bn_affine': (dict(freeze_bn='statistics'), dict(freeze_bn='')), 'last_weights': (dict(valid='last'), dict(valid=.5)),
    'single_rate': (dict(lr=dict(backbone=1., head=1.)), dict(lr=dict(backbone=1e-9))),
    'decayed_proxies': (dict(wd=dict(loss=.1)), dict(wd=dict(loss=0.))), 'test_selection': (dict(valid='test'), dict(valid=.5)),
    'sign_flip': (dict(loss=dict(flip=.5)), dict(loss=dict(flip=3.))), 'two_sizes': (dict(tfms='dgpcrl'), dict(tfms='squash')),
    'fast_proxies': (dict(lr=dict(loss=1.)), dict(lr=dict(loss=1e-9))),
    'googlenet_dropout': (dict(net=dict(dropout=.5)), dict(net=dict(dropout=0.))),
    'ragged_batch': (dict(drop_last=False), dict(drop_last=True)), 'third_stage': (dict(strides=[1, 2]), dict(strides=[1, 1]))}


@pytest.mark.parametrize('name', RECIPES)
def test_what_is_set_by_name_comes_before_what_is_undone(name, untried):
    for quirk in get_recipe(name)['quirks']:
        same, other = SAME[quirk]
        with pytest.raises(ValueError, match=f'undo {quirk}: {QUIRKS[quirk][1]} is set too'): get_recipe(name, quirk, **same)
        assert get_recipe(name, 'all', **same)['quirks'] == [quirk]
        for undo in ((), quirk): assert quirk not in get_recipe(name, undo, **other)['quirks']
        (key, value), = other.items()
        found = get_recipe(name, 'all', **other)[key]
        assert {k: found[k] for k in value} == value if isinstance(value, dict) else found == value


def test_googlenet_keeps_its_dropout_where_pp_keeps_it(table, tmp_path, untried):
    for name in (n for n, r in RECIPES.items() if r['source'] == 'PP'):
        r = get_recipe(name, backbone='googlenet')
        assert r['net']['dropout'] == .2 and 'googlenet_dropout' in r['quirks']
        assert get_recipe(read := get_recipe(name, 'all', backbone='googlenet'))['net']['dropout'] == 0 and not read['quirks']
        assert name == 'pp_googlenet' or 'dropout' not in get_recipe(name)['net']
    assert get_recipe('pp_norm_softmax', backbone='googlenet', net=dict(dropout=.1))['net']['dropout'] == .1
    assert 'dropout' not in get_recipe('proxy_anchor_cub', backbone='googlenet')['net']


@pytest.mark.parametrize('program, ours', [('resnext50', 'resnext50_32x4d'), ('inception', 'bn_inception')])
def test_networks_have_the_names_of_the_programs_too(program, ours):
    assert get_recipe('cgd', backbone=program)['backbone'] == ours == create_backbone(program, pretrained=False).name
    with pytest.raises(ValueError, match='strides: only the ResNets'): get_recipe('cgd', backbone='bn_inception', strides=[1, 1])


@pytest.mark.parametrize('name, changes, says', [
    ('pp_proxy_anchor', {}, ''), ('pp_proxy_anchor', dict(epochs=8, schedule=dict(of=8)), ''), ('cgd', dict(epochs=5), ''),
    ('sane', dict(epochs=3), ''), ('cosface', dict(steps=9), ''),
    ('pp_proxy_anchor', dict(epochs=8), 'of 20 epochs is stretched to 8; the program would keep its places: '
                                        '--set schedule.of=8 --set schedule.at=[5,10,15]'),
    ('pp_proxy_anchor', dict(epochs=30), '--set schedule.of=30 --set schedule.at=[5,10,15,20,25]'),
    ('msloss', dict(steps=100), 'of 3000 steps is stretched to 100; the program would keep its places: '
                                '--set schedule.of=100 --set schedule.at=[1200,2400]'),
    ('msloss', dict(epochs=2), 'of 3000 steps is stretched to the run; the program would keep it'),
    ('fgic', dict(epochs=10), 'of 128 epochs is stretched to 10; the program would keep it')])
def test_another_length_says_what_the_program_would_do(name, changes, says, table, tmp_path, capsys):
    make(name, table, tmp_path, **changes, **({} if name == 'fgic' else dict(per_class=2, valid='last')))
    out = capsys.readouterr().out
    assert says in out and bool(says) == ('program' in out)


def test_the_places_of_the_program_are_kept_as_said():
    factor = schedule_factor(get_recipe('pp_proxy_anchor', epochs=30, schedule=dict(at=[5, 10, 15, 20, 25], of=30))['schedule'], 30)
    assert [factor(e/30) for e in range(30)] == [.5**(e//5) for e in range(30)]


BAD = ['x', '', 0, -1, 1, 5, .5, 1.5, -2., math.nan, math.inf, 10**30, True, None, [], ['x'], [1, 'x'], [.9, .9], {}, {'x': 1},
       {'name': 'x'}, {'name': 5}, {'name': ['adam']}, object(), abs, b'x', (1,), {1}]
NESTED = ([f'optimizer.{k}' for k in ('name', 'betas', 'momentum', 'eps', 'lr', 'weight_decay', 'params', 'nesterov', 'x')]
          + [f'schedule.{k}' for k in ('name', 'at', 'of', 'gamma', 'start', 'x')]
          + [f'net.{k}' for k in ('name', 'pool', 'dim', 'layer_norm', 'dropout', 'bias', 'init', 'n_classes', 'backbone', 'x',
                                  'gd_config', 'feature_dim')]
          + [f'loss.{k}' for k in ('name', 'alpha', 'margin', 'scale', 'init', 'n_classes', 'dim', 'flip', 'smoothing', 'spread',
                                   'temperature', 'x')] + [f'{k}.{g}' for k in ('lr', 'wd') for g in (*GROUPS, 'x')])


def test_a_bad_value_is_refused_by_the_name_of_its_setting():
    "Seeded: any setting, any value, any recipe; what is taken has a value of its kind."
    cases, rng = list(product([*DEFAULTS, *NESTED], BAD)), random.Random(0)
    taken = 0
    for entry, value in rng.sample(cases, 500):
        name, _, part = entry.partition('.')
        recipe = rng.choice(['sane', 'cgd', 'fgic', 'msloss', 'dgpcrl', 'pp_positive_proxy'])
        try: r = get_recipe(recipe, **{name: {part: value} if part else value})
        except ValueError as e: assert re.search(rf'\b{name}\b', str(e)) and '\n' not in str(e), (recipe, entry, value, str(e))
        else:
            taken += 1
            assert set(r) == {'recipe', *DEFAULTS} and json.loads(json.dumps(r, default=str, allow_nan=False))
    assert 0 < taken < 150


def test_every_setting_has_a_row_in_the_table_of_checks():
    assert {k for k in CHECKS if '.' not in k} == {'recipe', *DEFAULTS}
    assert all(set(get_recipe(n)['schedule']) <= {'name', *(k.partition('.')[2] for k in CHECKS)} for n in RECIPES)


def test_a_recipe_is_a_copy():
    before = json.dumps(dict(RECIPES))
    r = get_recipe('msloss')
    r['schedule']['gamma'] = 7
    r['schedule']['at'].append(9)
    r['ks'].append(99)
    assert json.dumps(dict(RECIPES)) == before and DEFAULTS['ks'] == [1, 2, 4, 8]


def test_a_learner_that_has_trained_does_not_begin_anew(table, tmp_path):
    learn = recipe_learner(table, tmp_path)
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=Stop(0))
    with pytest.raises(ValueError, match='has begun to train'): learn.fit_recipe(resume=True)
    whole, part = recipe_learner(table, tmp_path/'a'), recipe_learner(table, tmp_path/'b')
    fit(whole)
    with pytest.raises(KeyboardInterrupt): fit(part, cbs=Stop(2))
    assert fit(part, resume=True).history == whole.history


def test_other_images_are_another_run(table, tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(make('pp_norm_softmax', table, tmp_path, epochs=2), cbs=Stop(1))
    other = table.copy()
    other.loc[other.index[:2], 'name'] = 'another'
    with pytest.raises(ValueError, match='a run of images='):
        make('pp_norm_softmax', other, tmp_path, epochs=2).fit_recipe(resume=True)
    assert len(fit(make('pp_norm_softmax', table, tmp_path, epochs=2), resume=True).recorder.iters) == 1


def test_weights_without_the_state_to_go_on_from_are_kept(table, tmp_path):
    fit(recipe_learner(table, tmp_path, valid='last'))
    (tmp_path/'run_last.safetensors').unlink()
    kept = (tmp_path/'run_model.safetensors').read_bytes()
    with pytest.raises(FileExistsError, match='run_model.*without the state'):
        recipe_learner(table, tmp_path, valid='last').fit_recipe(resume=True)
    assert (tmp_path/'run_model.safetensors').read_bytes() == kept


def test_held_out_images_of_a_joined_table():
    part = pd.DataFrame({'label': [0]*4 + [1]*2, 'split': ['train']*4 + ['test']*2})
    held = hold_out_images(pd.concat([part, part[::-1]]), .5)
    assert (held.split == 'test').sum() == 4 and (held.split == 'valid').sum() == 4


def test_every_loss_of_the_table_exists():
    assert all(hasattr(losses, r['loss']['name']) for n, r in RECIPES.items() if n != 'cgd')
