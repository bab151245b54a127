"""The classifier of FGIC: settings, schedule, log, selection, prediction, confusion, features."""
import math
import re
from textwrap import shorten

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

import fgir
from fgir.app import cli, describe
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import load_model, read_record, save_model
from fgir.data.batches import table_dl
from fgir.data.csv import write_table
from fgir.data.fish import synth_dataset
from fgir.data.images import BadImage, load_row
from fgir.data.readers import read_cub
from fgir.data.table import hold_out_classes, image_path
from fgir.data.transforms import get_transforms
from fgir.evaluation.comparison import describe_all
from fgir.features.extraction import extract
from fgir.features.retrieval import evaluate_recall
from fgir.features.shards import extract_shard
from fgir.features.store import Features
from fgir.gallery.index import Index
from fgir.gallery.rerank import Views
from fgir.papers.cfga import Describe
from fgir.papers.explain import evidence
from fgir.papers.fgic import (
    AccuracyEval,
    Classifier,
    accuracy,
    check_classes,
    class_logits,
    classify_image,
    closest_classes,
    confusion,
    epoch_rate,
    fgic_learner,
    finish_fgic,
    run_folder,
    show_closest,
    show_confusion,
    top_k_hits,
)
from fgir.training import learner
from fgir.training.holdout import hold_out_images
from fgir.training.recipes import get_recipe
from fgir.training.runs import describe_test, learner_from_recipe, save_results

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('synth')/'set'
    synth_dataset(root, n_classes=6, n_per_class=12, size=40, progress=False)
    return root


@pytest.fixture(scope='module')
def table(root): return read_cub(root, split='official')


@pytest.fixture(scope='module')
def test(table): return table[table.split == 'test'].reset_index(drop=True)


def tiny(table, out, **kwargs):
    kwargs = dict(arch='test_resnet', pretrained=False, size=32, epochs=2, batch_size=8, lr=.05, out=out, num_workers=0,
                  data_name='fish') | kwargs
    return fgic_learner(table, **kwargs)


def fit(learn, **kwargs):
    with learn.no_bar(), learn.no_logging(): return learn.fit_recipe(**kwargs)


@pytest.fixture(scope='module')
def run(table, tmp_path_factory): return fit(tiny(table, tmp_path_factory.mktemp('run'), epochs=4))


@pytest.fixture(scope='module')
def saved(run): return run.path/f'{run.prefix}_model.safetensors'


class Watch(Callback):
    "Rates, decays and batch sizes of every step."

    def __init__(self): self.rates, self.decays, self.sizes, self.momenta = [], set(), [], set()

    def after_step(self):
        groups = self.opt.opt.param_groups
        self.rates.append({g['lr'] for g in groups})
        self.decays |= {g['weight_decay'] for g in groups}
        self.momenta |= {g['momentum'] for g in groups}
        self.sizes.append(len(self.xb[0]))


def log_of(learn): return (run_folder(learn)/'train_log.csv').read_text()


# ---- settings

def test_the_settings_of_the_program():
    r = get_recipe('fgic')
    assert (r['backbone'], r['size'], r['tfms'], r['batch_size'], r['epochs']) == ('resnet50', 448, 'fgic', 64, 128)
    assert (r['lr'], r['wd'], r['optimizer']) == (.025, 5e-4, dict(name='sgd', momentum=.9))
    assert (r['seed'], r['valid'], r['hold_out'], r['freeze_bn'], r['drop_last']) == (2020, 'test', 'images', '', True)


def test_the_learner_takes_the_programs_settings_unasked(table, tmp_path):
    learn = fgic_learner(table, 'test_resnet', pretrained=False, batch_size=16, out=tmp_path, num_workers=0)
    r, loss = learn.recipe, learn.loss_func.loss
    changed = dict(backbone='test_resnet', pretrained=False, batch_size=16, lr=.1*16/256)
    assert r == get_recipe('fgic') | changed | dict(loss=r['loss'], steps=None)
    assert (loss.smoothing, loss.temperature, loss.spread) == (.1, 1., 'others')
    x = learn.dls.train.one_batch()[0]
    assert tuple(x.shape) == (16, 3, 448, 448) and learn.prefix == 'cub_fgic_test_resnet_2020'


@pytest.mark.parametrize('batch_size', [8, 16])
def test_the_rate_follows_the_batch_size(table, tmp_path, batch_size):
    assert tiny(table, tmp_path, batch_size=batch_size, lr=None).recipe['lr'] == pytest.approx(.1*batch_size/256)


def test_sgd_steps_at_the_rates_of_the_program_on_whole_batches(table, tmp_path):
    learn, watch, epochs = tiny(table, tmp_path, epochs=3, batch_size=8, lr=None), Watch(), 3
    fit(learn, cbs=watch)
    opt = learn.opt.opt
    assert type(opt) is torch.optim.SGD and not opt.defaults['nesterov']
    assert watch.decays == {5e-4} and watch.momenta == {.9} and set(watch.sizes) == {8}
    assert all(len(rates) == 1 for rates in watch.rates)
    assert len(watch.rates) == 3*(36//8)
    seeds = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=.1*8/256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(seeds, T_max=epochs)
    for e in range(epochs):
        assert [*map(max, watch.rates[4*e:4*e + 4])] == pytest.approx([seeds.param_groups[0]['lr']]*4, rel=1e-6)
        seeds.step()
        schedule.step()


def test_every_parameter_trains_and_batch_statistics_move(table, tmp_path):
    learn = tiny(table, tmp_path)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    fit(learn)
    after = learn.model.state_dict()
    assert [k for k in before if torch.equal(before[k], after[k].cpu())] == []


@pytest.mark.parametrize('epoch, rate', [(0, .025), (1, .0249962352), (32, .0213388348), (64, .0125),
                                         (96, .0036611652), (127, 3.7647663e-06)])
def test_golden_rates(epoch, rate): assert epoch_rate(get_recipe('fgic'), epoch) == pytest.approx(rate, rel=1e-7)


# ---- the network

def test_network_is_backbone_mean_and_linear_layer():
    torch.manual_seed(0)
    net = Classifier(create_backbone('test_resnet', pretrained=False), 5).eval()
    x = torch.randn(3, 3, 40, 40)
    mean = net.backbone(x).mean((2, 3))
    assert torch.allclose(net(x), mean @ net.head.weight.T + net.head.bias, atol=1e-6)
    assert torch.allclose(net.embed(x), mean/mean.norm(dim=1, keepdim=True), atol=1e-6)
    groups = [sum(p.numel() for p in g) for g in net.groups()]
    assert groups == [sum(p.numel() for p in net.backbone.parameters()), 5*net.dim + 5]


def test_the_size_of_the_programs_network_for_cub():
    with torch.device('meta'): net = Classifier(create_backbone('resnet50', pretrained=False), 200)
    assert sum(p.numel() for p in net.parameters()) == 23_508_032 + 200*2049


def test_pooling_dropout_and_names_survive_a_file(tmp_path):
    net = Classifier(create_backbone('test_resnet', pretrained=False), 2, pool='concat', dropout=.5, vocab=['é', 'b b'])
    again = load_model(save_model(net, tmp_path/'net'))
    x = torch.randn(2, 3, 40, 40)
    assert torch.equal(again(x), net.eval()(x)) and again.vocab == ['é', 'b b'] and again.dropout.p == .5
    assert again.embed(x).shape == (2, 2*net.backbone.n_features)


def test_dropout_acts_while_training():
    net = Classifier(create_backbone('test_resnet', pretrained=False), 2, dropout=.9)
    x = torch.randn(2, 3, 40, 40)
    assert not torch.equal(net(x), net(x)) and torch.equal(net.eval()(x), net(x))


def test_as_many_names_as_classes():
    with pytest.raises(ValueError, match='vocab: 1 names, 2 classes'):
        Classifier(create_backbone('test_resnet', pretrained=False), 2, vocab=['a'])


# ---- accuracy

def naive(logits, targets, k):
    ranks = [sum(1 for other in row if other > row[t]) for row, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    return sum(rank < k for rank in ranks)/len(ranks)


@pytest.mark.parametrize('k', [1, 2, 5, 7, 50])
def test_top_k_equals_counting(k):
    g = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(200, 7, generator=g), torch.randint(7, (200,), generator=g)
    assert top_k_hits(logits, targets, k).float().mean().item() == pytest.approx(naive(logits, targets, k))


def test_the_column_equals_counting_over_the_validation_images(run):
    run.validate()
    values = run.accuracy_eval.values
    with torch.no_grad():
        parts = [(run.model.eval()(x), y) for x, y in run.dls.valid]
    logits, targets = (torch.cat([p[i].as_subclass(torch.Tensor).cpu() for p in parts]) for i in (0, 1))
    assert len(targets) == 36
    for k in (1, 5): assert values[k] == pytest.approx(naive(logits, targets, k))
    assert list(run.recorder.columns)[-2:] == ['top-1', 'top-5'] and isinstance(run.accuracy_eval, AccuracyEval)


def test_accuracy_of_learner_file_and_network_agree(run, saved, test):
    expected = accuracy(run, test, ks=(1, 2, 99), progress=False)
    assert expected[99] == 1 and expected[1] <= expected[2]
    assert accuracy(saved, test, ks=(1, 2, 99), progress=False) == expected
    assert accuracy(load_model(saved), test, ks=(1, 2, 99), size=32, progress=False) == expected
    run.validate()
    assert expected[1] == pytest.approx(run.accuracy_eval.values[1])
    with pytest.raises(ValueError, match='size: give the pixels'): accuracy(load_model(saved), test)


def test_a_class_that_the_classifier_does_not_know_is_named(saved, test):
    other = test.assign(name=test.name.replace(test.name[0], 'dodo'))
    other.attrs = test.attrs
    with pytest.raises(ValueError, match="class 'dodo' is not one of the 6"): accuracy(saved, other, progress=False)
    with pytest.raises(ValueError, match='expected a Classifier, found Linear'): accuracy(nn.Linear(1, 1), test, size=32)


# ---- the table

def test_a_zero_shot_table_is_refused(root, table, tmp_path):
    for refused in (read_cub(root), hold_out_classes(table, .3)):
        with pytest.raises(ValueError, match=r"zero-shot split is for retrieval.*split='official'"): tiny(refused, tmp_path)
    with pytest.raises(ValueError, match='none is left to test'): check_classes(table[table.split == 'train'])
    check_classes(table)


def test_fewer_images_than_a_batch_is_an_error(table, tmp_path):
    with pytest.raises(ValueError, match='do not fill a batch'): tiny(table, tmp_path, batch_size=64)


# ---- log and files

def expected_log(history, columns, rates, last='Test_Acc', extra=''):
    text = f'Epoch, lr, Train_Loss, Train_Acc, {last}\n{extra}'
    for e, (row, rate) in enumerate(zip(history, rates, strict=True)):
        v = dict(zip(columns, row, strict=True))
        train = v.get('train_accuracy', math.nan)*100
        text += '{}, {:.4f}, {:.4f}, {:.3f}%, {:.3f}%\n'.format(e, rate, v['train_loss'], train, v['top-1']*100)
    return text


def test_the_log_is_the_programs(table, tmp_path):
    learn = tiny(table, tmp_path, epochs=3)
    fit(learn)
    rates = [.05*(1 + math.cos(math.pi*e/3))/2 for e in range(3)]
    expected = expected_log(learn.recorder.values, learn.recorder.columns, rates)
    assert log_of(learn) == expected
    line = re.compile(r'\d+, 0\.\d{4}, \d+\.\d{4}, (\d+\.\d{3}|nan)%, \d+\.\d{3}%')
    assert all(line.fullmatch(row) for row in expected.splitlines()[1:])
    results = finish_fgic(learn, table, progress=False)
    train, test = 100*results.loc[['train', 'test'], 'top-1']
    assert log_of(learn) == (expected + '===== TESTING =====\n'
                             f'Dataset train\tACC:{train:.2f}\nDataset test\tACC:{test:.2f}\n')
    files = {p.name for p in run_folder(learn).iterdir()}
    assert files == {'train_log.csv', f'acc_train_{train:.2f}', f'acc_test_{test:.2f}'}
    assert all(p.stat().st_size == 0 for p in run_folder(learn).glob('acc_*'))
    again = log_of(learn)
    finish_fgic(learn, table, progress=False)
    assert log_of(learn) == again and {p.name for p in run_folder(learn).iterdir()} == files


def test_results_are_those_of_the_best_epoch_without_augmentation(run, saved, table):
    results = finish_fgic(run, table, progress=False)
    assert list(results.index) == ['train', 'test'] and results.images.tolist() == [36, 36]
    for split in results.index:
        part = table[table.split == split].reset_index(drop=True)
        assert results.loc[split, 'top-1'] == accuracy(saved, part, progress=False)[1]
    epochs = [float(row.split(', ')[-1].rstrip('%')) for row in log_of(run).splitlines()[1:5]]
    assert 100*results.loc['test', 'top-1'] == pytest.approx(max(epochs), abs=1e-3)


def test_half_precision_leaves_the_programs_line(table, tmp_path):
    learn = tiny(table, tmp_path, epochs=1, precision='bf16')
    fit(learn)
    assert log_of(learn) == expected_log(learn.recorder.values, learn.recorder.columns, [.05],
                                         extra='===== Using Torch AMP =====\n')


class Scripted(Callback):
    "Makes the accuracy of an epoch a given one, after `AccuracyEval` has measured it."
    order = 46

    def __init__(self, script): self.script = script

    def after_validate(self):
        if self.learn.in_run: self.learn.accuracy_eval.values[1] = self.script[self.epoch]


def test_the_best_epoch_is_picked_and_ties_keep_the_first(table, tmp_path):
    learn = tiny(table, tmp_path, epochs=4)
    fit(learn, cbs=Scripted([.1, .6, .6, .2]))
    assert read_record(tmp_path/f'{learn.prefix}_model.safetensors')['epoch'] == 2
    assert [row.split(', ')[-1] for row in log_of(learn).splitlines()[1:]] == ['10.000%', '60.000%', '60.000%', '20.000%']


class Kill(Callback):
    order = 70

    def before_epoch(self):
        if self.epoch == 2: raise KeyboardInterrupt


def test_a_resumed_run_leaves_the_log_and_weights_of_a_whole_one(table, tmp_path):
    whole, killed = tiny(table, tmp_path/'a', epochs=4), tiny(table, tmp_path/'b', epochs=4)
    fit(whole)
    with pytest.raises(KeyboardInterrupt): fit(killed, cbs=Kill())
    assert len(log_of(killed).splitlines()) == 1 + 2
    finish_fgic(killed, table, progress=False)
    resumed = tiny(table, tmp_path/'b', epochs=4)
    fit(resumed, resume=True)
    assert log_of(resumed) == log_of(whole) and not list(run_folder(resumed).glob('acc_*'))
    for a, b in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    before = log_of(resumed)
    fit(tiny(table, tmp_path/'b', epochs=4), resume=True)
    assert log_of(resumed) == before


def test_an_earlier_run_is_overwritten_only_when_asked(table, tmp_path):
    learn = tiny(table, tmp_path, epochs=2)
    fit(learn)
    finish_fgic(learn, table, progress=False)
    before = log_of(learn)
    with pytest.raises(FileExistsError): fit(tiny(table, tmp_path, epochs=1))
    assert log_of(learn) == before
    fit(tiny(table, tmp_path, epochs=1), force=True)
    assert len(log_of(learn).splitlines()) == 2 and not list(run_folder(learn).glob('acc_*'))


def test_validation_passes_write_nothing(table, tmp_path):
    learn = tiny(table, tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.lr_find(num_it=2, show_plot=False, suggest_funcs=None)
    assert not run_folder(learn).exists()


def test_held_out_images_pick_the_epoch(table, tmp_path):
    learn = tiny(hold_out_images(table, .34, 2020), tmp_path, valid=.34, epochs=2)
    train, valid = learn.dls.train.table, learn.dls.valid.table
    assert valid.groupby('label').size().tolist() == [2]*6 and train.groupby('label').size().tolist() == [4]*6
    original = table[table.split == 'train'].path
    assert set(train.path) | set(valid.path) == set(original) and not set(train.path) & set(valid.path)
    fit(learn)
    assert log_of(learn).startswith('Epoch, lr, Train_Loss, Train_Acc, Valid_Acc\n')
    results = finish_fgic(learn, table, progress=False)
    assert results.images.to_dict() == dict(train=24, valid=12, test=36)
    assert [f'Dataset {s}\tACC:{100*results.loc[s, "top-1"]:.2f}' for s in results.index] == log_of(learn).splitlines()[-3:]
    assert results.loc['test', 'top-1'] == accuracy(learn, table[table.split == 'test'], progress=False)[1]


def test_last_epoch_is_kept_when_nothing_picks(table, tmp_path):
    learn = tiny(table, tmp_path, epochs=3, valid='last')
    fit(learn, cbs=Scripted([.9, .1, .1]))
    assert read_record(tmp_path/f'{learn.prefix}_model.safetensors')['epoch'] == 3


# ---- prediction

def test_prediction_is_the_softmax_of_the_logits(run, saved, test):
    answer, net = classify_image(saved, image_path(test, 4), k=3), load_model(saved)
    x = get_transforms('fgic', 32)[1](load_row(test, 4)).float()/255
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.backbone.mean, net.backbone.std))
    x = (x - mean)/std
    with torch.no_grad(): z = net(x[None])[0].double()
    p = (z.exp()/z.exp().sum()).numpy()
    order = np.argsort(-p)[:3]
    assert answer.probability.tolist() == pytest.approx(p[order].tolist(), rel=1e-4)
    names = sorted(test.name.unique())
    assert answer.name.tolist() == [names[i] for i in order] and answer.index.tolist() == [1, 2, 3]
    assert answer.index.name == 'rank'
    for model, how in ((run, {}), (net, dict(size=32))):
        same = classify_image(model, image_path(test, 4), k=3, **how)
        assert same.name.equals(answer.name) and same.probability.tolist() == pytest.approx(answer.probability.tolist())
    everything = classify_image(saved, image_path(test, 4), k=99)
    assert len(everything) == 6 and everything.probability.sum() == pytest.approx(1, abs=1e-5)


def test_prediction_leaves_the_mode_of_the_network(saved, test):
    net = load_model(saved).train()
    classify_image(net, image_path(test, 0), size=32)
    assert net.training and net.backbone.training


def test_prediction_of_a_box(saved, test):
    box = [5, 6, 30, 28]
    a, b = classify_image(saved, image_path(test, 0), box=box), classify_image(saved, image_path(test, 0))
    assert not np.allclose(a.probability, b.probability)
    cut = image_path(test, 0).parent/'cut.png'
    load_row(test, 0).crop(box).save(cut)
    try: assert classify_image(saved, cut).probability.tolist() == pytest.approx(a.probability.tolist())
    finally: cut.unlink()


def test_names_follow_the_labels_after_loading(run, saved, test):
    net = load_model(saved)
    assert net.vocab == run.model.vocab == sorted(test.name.unique())
    by_hand = [classify_image(saved, image_path(test, i), k=1).name.iat[0] for i in range(len(test))]
    assert np.mean(np.array(by_hand) == test.name) == pytest.approx(accuracy(saved, test, progress=False)[1])


def test_names_are_known_however_the_learner_was_made(table, tmp_path):
    learn = learner_from_recipe('fgic', table, out=tmp_path, backbone='test_resnet', pretrained=False, size=32, epochs=1,
                                batch_size=8, loaders=dict(num_workers=0))
    fit(learn)
    assert load_model(tmp_path/f'{learn.prefix}_model.safetensors').vocab == sorted(table.name.unique())


def test_a_broken_file_is_named(saved, test, tmp_path):
    (tmp_path/'cut.jpg').write_bytes(image_path(test, 0).read_bytes()[:300])
    with pytest.raises(BadImage, match='cut.jpg'): classify_image(saved, tmp_path/'cut.jpg')
    with pytest.raises(OSError, match='none.jpg'): classify_image(saved, tmp_path/'none.jpg')
    with pytest.raises(FileNotFoundError, match='none.safetensors'): classify_image(tmp_path/'none.safetensors', 'x.jpg')


# ---- confusion

def test_confusion_equals_counting(saved, test):
    counts, names = confusion(saved, test, progress=False), sorted(test.name.unique())
    expected = {(a, b): 0 for a in names for b in names}
    for i, true in enumerate(test.name): expected[true, classify_image(saved, image_path(test, i), k=1).name.iat[0]] += 1
    assert list(counts.index) == list(counts.columns) == names
    assert {(a, b): counts.loc[a, b] for a in names for b in names} == expected
    assert len({v for (a, b), v in expected.items() if a != b}) > 1


def frame(c, names='abcd'):
    return pd.DataFrame(c, index=list(names), columns=list(names))


def test_closest_classes_are_counted_both_ways():
    counts = frame([[5, 3, 0, 0], [1, 6, 0, 2], [0, 0, 8, 0], [0, 5, 0, 3]])
    pairs = closest_classes(counts)
    assert pairs.to_dict('records') == [
        dict(a='b', b='d', a_as_b=2, b_as_a=5, confused=7, share=pytest.approx(7/17)),
        dict(a='a', b='b', a_as_b=3, b_as_a=1, confused=4, share=pytest.approx(4/17))]
    assert len(closest_classes(counts, 1)) == 1 and len(closest_classes(frame(np.eye(4, dtype=int)))) == 0


def test_pictures_show_the_closest_classes(test):
    names = sorted(test.name.unique())[:4]
    counts = frame([[5, 3, 0, 0], [1, 6, 0, 2], [0, 0, 8, 0], [0, 5, 0, 3]], names)
    ax = show_confusion(counts, 3).axes[0]
    expected = [shorten(names[i].replace('_', ' '), 28, placeholder=' …') for i in (1, 3, 0)]
    assert [t.get_text() for t in ax.get_xticklabels()] == expected
    np.testing.assert_array_equal(ax.images[0].get_array(), [[6, 2, 1], [5, 3, 0], [3, 0, 5]])
    fig = show_closest(counts, test, n=2, per_class=2)
    assert len(fig.axes) == 2*4
    drawn = np.asarray(fig.axes[2].images[0].get_array())
    first = int(np.flatnonzero(test.name == names[3])[0])
    np.testing.assert_array_equal(drawn, np.asarray(load_row(test, first)))
    with pytest.raises(ValueError, match='no image was taken'): show_closest(frame(np.eye(4, dtype=int)), test)


# ---- features

def test_features_of_a_classifier_find_images(saved, test):
    net = load_model(saved)
    features = extract(net, test, size=32, tfms='fgic', progress=False)
    x = features['embedding']
    assert x.shape == (36, net.backbone.n_features) and np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    batch = table_dl(test, 32, bs=36, tfms='fgic', mean=net.backbone.mean, std=net.backbone.std).one_batch()[0]
    with torch.no_grad(): assert np.allclose(x, net.embed(batch.as_subclass(torch.Tensor)), atol=1e-5)
    sims = x @ x.T - 9*np.eye(36)
    right = (test.label.to_numpy()[sims.argmax(1)] == test.label.to_numpy()).mean()
    assert evaluate_recall(features)['R@1'][0] == pytest.approx(right)
    assert evaluate_recall(features)['R@8'][0] > 8*5/35*.4


def by_command(command):
    def describe(run, saved, test, tmp_path):
        write_table(test, tmp_path/'test.csv')
        words = [*command.split(), tmp_path/'test.csv', *(['--out'] if command == 'extract' else []), tmp_path/'x.safetensors']
        assert cli.main([*map(str, words), '--model', str(saved), '--rows', 'all', '--device', 'cpu']) == 0
        return Features.load(tmp_path/'x.safetensors')['embedding']
    return describe


HOW = dict(size=32, tfms='fgic', progress=False)
WAYS = {
    'extract': lambda run, saved, test, out: extract(load_model(saved), test, **HOW)['embedding'],
    'of a Learner': lambda run, saved, test, out: extract(run.model, test, **HOW)['embedding'],
    'extract_shard': lambda run, saved, test, out: extract_shard(load_model(saved), test, out/'x.st', (0, 1), **HOW)['embedding'],
    'describe_all': lambda run, saved, test, out: describe_all(
        dict(net=load_model(saved)), dict(fish=test), out, **HOW)['fish, net']['embedding'],
    'describe_test': lambda run, saved, test, out: describe_test(run, test, progress=False)['embedding'],
    'save_results': lambda run, saved, test, out: save_results(run, test, 1, 1, force=True, progress=False)['embedding'],
    'Views': lambda run, saved, test, out: extract(Views(load_model(saved), flip=False), test, **HOW)['embedding'],
    'Describe': lambda run, saved, test, out: extract(Describe(load_model(saved), 'embedding'), test, **HOW)['embedding'],
    'load_descriptor': lambda run, saved, test, out: extract(
        describe.load_descriptor(saved, device='cpu')[0], test, **HOW)['embedding'],
    'fgir extract': by_command('extract'), 'fgir index build': by_command('index build')}


@pytest.mark.parametrize('way', WAYS)
def test_a_classifier_describes_by_its_pooled_features_by_every_way_in(run, saved, test, tmp_path, way):
    few = test[:6]
    x = WAYS[way](run, saved, few, tmp_path)
    net = load_model(saved)
    batch = table_dl(few, 32, bs=6, tfms='fgic', mean=net.backbone.mean, std=net.backbone.std).one_batch()[0]
    with torch.no_grad(): expected = net.embed(batch.as_subclass(torch.Tensor)).numpy()
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_searches_and_pictures_of_a_classifier_take_its_features(run, saved, test, monkeypatch):
    net, few = load_model(saved), test[:6]
    index = Index.build(extract(net, few, **HOW))
    assert index.search_image(image_path(few, 2), net, 1, leave_out_self=False)['score'][0] == pytest.approx(1, abs=1e-5)
    drawn = {}
    monkeypatch.setattr(learner, 'show_neighbours', lambda *args, **kwargs: drawn.update(kwargs))
    run.show_results(max_n=36, k=1)
    x = extract(net, run.dls.valid, progress=False)['embedding']
    cosines = x @ x.T - 9*np.eye(len(x))
    assert np.allclose(np.ravel(drawn['scores']), cosines.max(1), atol=1e-4)
    a, b = (torch.randn(1, 3, 32, 32) for _ in 'ab')
    with torch.no_grad(): expected = (net.embed(a)*net.embed(b)).sum().item()
    assert evidence(net, a, b)[2] == pytest.approx(expected, abs=1e-5)
    logits, _, names = class_logits(saved, few, progress=False)
    assert logits.shape == (6, 6) and len(names) == 6


def test_public_names():
    assert fgir.papers.classify_image is classify_image and fgir.Classifier is Classifier and fgir.fgic_learner is fgic_learner


def test_a_trained_classifier_predicts_as_classify_image_does(run, test):
    path = image_path(test, 0)
    answer = classify_image(run, path, k=1).iloc[0]
    name, number, p = run.predict(path)
    assert name == answer['name'] and float(p[number]) == pytest.approx(answer['probability'], abs=1e-5)
