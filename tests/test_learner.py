"""The Learner: resume after a real kill, recall columns, parameter groups, precision, checkpoints."""
import json
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.learner import load_learner
from fastai.optimizer import OptimWrapper
from PIL import Image
from processes import Fresh
from timm.utils import ModelEmaV3
from torch import nn

from fgir.backbones.nets import RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import load_model, read_record
from fgir.data.batches import retrieval_dls
from fgir.data.fish import synth_dataset
from fgir.data.readers import read_cub
from fgir.data.table import hold_out_classes, image_path
from fgir.features.exact import neighbours
from fgir.features.metrics import recall_at_k
from fgir.losses.pairs import BatchHardTripletLoss
from fgir.papers.cgd import cgd_learner
from fgir.training import learner
from fgir.training.callbacks import (
    ClipValue,
    FreezeBN,
    KeepState,
    SaveBest,
    WarmUp,
    held_out,
    pick_epoch,
    table_recall,
    too_few,
)
from fgir.training.checkpoints import pack, unpack
from fgir.training.learner import retrieval_learner, split_groups

class Proxies(nn.Module):
    "A minimal loss with parameters."

    def __init__(self, n_classes, dim):
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(n_classes, dim))

    def forward(self, x, y): return nn.functional.cross_entropy(16*x @ nn.functional.normalize(self.proxies).T, y)


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp('synth')/'set'
    return hold_out_classes(synth_dataset(root, n_classes=16, n_per_class=8, size=48, progress=False), .5)


def make_dls(table, **kwargs):
    how = dict(size=32, bs=8, per_class=4, mean=(.5, .5, .5), std=(.5, .5, .5), num_workers=0)
    return retrieval_dls(table, **how | kwargs)


def make_learner(table, path, loss=None, dropout=.2, device=None, **kwargs):
    torch.manual_seed(0)
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=16, dropout=dropout)
    dls = make_dls(table, device=device)
    return retrieval_learner(dls, net, loss or Proxies(dls.n_classes, 16), lr=1e-3, path=path, **kwargs)


def quiet(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn


def test_columns_are_recall_of_the_validation_embeddings(table, tmp_path):
    learn = quiet(make_learner(table, tmp_path), 1)
    shown = learn.validate()
    learn.model.eval()
    with torch.no_grad(): x = torch.cat([learn.model(x.as_subclass(torch.Tensor)) for x, _ in learn.dls.valid])
    expected = recall_at_k(x, learn.dls.valid.table.label.to_numpy())
    assert list(shown) == pytest.approx(list(expected.values()))
    assert list(learn.recorder.metric_names) == ['epoch', 'train_loss', 'R@1', 'R@2', 'R@4', 'R@8', 'time']


def test_query_and_gallery_are_searched_from_one_into_the_other():
    rows = pd.DataFrame({'label': [0, 1, 0, 1], 'split': ['query', 'query', 'gallery', 'gallery']})
    x = torch.tensor([[1., 0], [0, 1], [0, 1], [1, 0]])
    assert table_recall(x, rows, ks=(1, 2)) == {1: 0., 2: 1.}


def test_groups_follow_backbone_head_and_loss(table, tmp_path):
    learn = make_learner(table, tmp_path)
    groups = split_groups(learn.model, learn.loss_func)
    assert len(groups) == 3 and groups[2][0] is learn.loss_func.loss.proxies
    assert len(split_groups(learn.model, BatchHardTripletLoss())) == 2
    learn.freeze()
    trains = [{p.requires_grad for p in g} for g in groups]
    assert False in trains[0] and trains[1:] == [{True}, {True}]


def test_frozen_batch_norm_keeps_statistics_and_trains_the_scale(table, tmp_path):
    learn = make_learner(table, tmp_path, freeze_bn=True)
    bn = learn.model.backbone.bn1
    mean, scale = bn.running_mean.clone(), bn.weight.detach().clone()
    quiet(learn, 1)
    assert torch.equal(bn.running_mean, mean) and not torch.equal(bn.weight, scale)


def test_bfloat16_computes_on_the_cpu(table, tmp_path):
    learn, seen = make_learner(table, tmp_path).to_bf16(), []
    hook = learn.model.backbone.layer4.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    quiet(learn, 1)
    hook.remove()
    assert set(seen) == {torch.bfloat16} and learn.recorder.losses[-1].isfinite()


def test_one_pass_of_bfloat16_embeds_like_float32(table, tmp_path):
    full, labels = make_learner(table, tmp_path).get_preds()
    half, _ = make_learner(table, tmp_path).to_bf16().get_preds()
    full, half = (x - full.mean(0) for x in (full, half))
    assert not torch.equal(full, half) and len(full) == len(labels) == 32
    assert nn.functional.cosine_similarity(full, half).min() > .99


@pytest.mark.parametrize('stop', [1, 2])
def test_resumed_run_equals_uninterrupted_run(table, tmp_path, stop):
    whole = quiet(make_learner(table, tmp_path/'whole', freeze_bn=True), 3, cbs=KeepState())
    first = make_learner(table, tmp_path/'part', freeze_bn=True)
    quiet(first, stop, cbs=KeepState())
    second = make_learner(table, tmp_path/'part', freeze_bn=True)
    start = second.load_state()
    quiet(second, 3, start_epoch=start, cbs=KeepState())
    assert start == stop
    assert [list(v) for v in second.recorder.values] == [list(v) for v in whole.recorder.values]
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.loss_func.loss.proxies, second.loss_func.loss.proxies)


def run_cgd(root, out):
    learn = cgd_learner(read_cub(root), 'synth', feature_dim=16, batch_size=8, epochs=4, backbone='test_resnet',
                        pretrained=False, size=32, valid=.5, out=out, num_workers=0)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(resume=True)
    print('trained:', len(learn.recorder.iters))


def start_run(table, out): return Fresh(run_cgd, table.attrs['root'], out)


def finish(run):
    "The number of epochs that the process trained."
    done = run.end()
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split('trained:')[1])


@pytest.mark.processes
def test_killed_run_resumes_to_the_same_statistics(table, tmp_path):
    whole = start_run(table, tmp_path/'whole')
    killed = start_run(table, tmp_path/'killed')
    deadline = time.monotonic() + 200
    while not list((tmp_path/'killed').glob('*_last.safetensors')):
        assert killed.process.is_alive() and time.monotonic() < deadline
        time.sleep(.05)
    killed.send(signal.SIGKILL)
    assert killed.end().returncode == -signal.SIGKILL
    assert finish(whole) == 4
    assert 1 <= finish(start_run(table, tmp_path/'killed')) < 4
    name = next((tmp_path/'whole').glob('*_statistics.csv')).name
    assert (tmp_path/'killed'/name).read_text() == (tmp_path/'whole'/name).read_text()
    assert len(pd.read_csv(tmp_path/'whole'/name)) == 4


def test_lr_find_changes_nothing(table, tmp_path):
    learn = quiet(make_learner(table, tmp_path), 1)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    proxies = learn.loss_func.loss.proxies.detach().clone()
    with learn.no_bar(): learn.lr_find(num_it=12, show_plot=False)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert torch.equal(learn.loss_func.loss.proxies, proxies)


def test_checkpoint_is_a_model_file_and_a_truncated_one_is_refused(table, tmp_path):
    learn = quiet(make_learner(table, tmp_path), 1)
    path = learn.save('done')
    assert {p.suffix for p in Path(path).parent.iterdir()} == {'.safetensors', '.json'}
    net = load_model(path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(): assert torch.allclose(net(x), learn.model.eval()(x), atol=1e-6)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match='done'): learn.load('done')


def test_state_survives_json():
    state = {'state': {0: {'step': torch.tensor(2.), 'flag': None}}, 'groups': [{'lr': 1e-3, 'betas': (.9, .99)}]}
    tensors = {}
    again = unpack(json.loads(json.dumps(pack(state, 'opt', tensors))), tensors)
    assert again['state'][0]['step'] == 2 and again['state'][0]['flag'] is None
    assert again['groups'] == [{'lr': 1e-3, 'betas': [.9, .99]}]


def own_learner(table, path, **kwargs):
    "A network of no class of fgir's, which is small."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Dropout(.2))
    return retrieval_learner(make_dls(table), net, BatchHardTripletLoss(margin=.1), lr=1e-3, path=path, **kwargs)


class Stop(Callback):
    "Interrupt before an epoch (or while it trains, with `batch`)."
    order = 70

    def __init__(self, at, batch=False): self.at, self.batch = at, batch

    def before_epoch(self):
        if self.epoch == self.at and not self.batch: raise KeyboardInterrupt

    def before_batch(self):
        if self.epoch == self.at and self.batch: raise KeyboardInterrupt


def test_a_validation_pass_writes_nothing(table, tmp_path):
    learn = quiet(own_learner(table, tmp_path, cbs=[KeepState(), SaveBest()]), 2)
    history, files = learn.history, {p: p.read_bytes() for p in (tmp_path/'models').iterdir()}
    learn.model[0].weight.data.normal_()
    learn.validate()
    learn.get_preds()
    with learn.no_bar(): learn.lr_find(num_it=12, stop_div=False, show_plot=False)
    assert {p: p.read_bytes() for p in (tmp_path/'models').iterdir() if p.is_file()} == files
    assert learn.history == history and learn.load_state() == 2


class Seen(Callback):
    "The pixels and the dropout numbers of every training batch, over all fits."
    run_valid = False

    def __init__(self): self.sums = []

    def before_batch(self): self.sums.append((self.xb[0].sum().item(), torch.get_rng_state().sum().item()))


def test_a_second_fit_brings_new_batches_and_resumes_too(table, tmp_path):
    seen = Seen()
    whole = own_learner(table, tmp_path/'whole', cbs=seen)
    quiet(whole, 2)
    n = len(seen.sums)
    quiet(whole, 2)
    assert len({*seen.sums}) == 2*n and len({pixels for pixels, _ in seen.sums}) == 2*n
    first = quiet(own_learner(table, tmp_path/'part'), 2)
    with pytest.raises(KeyboardInterrupt): quiet(first, 2, cbs=[KeepState(), Stop(1, batch=True)])
    second = own_learner(table, tmp_path/'part')
    assert second.load_state() == 1
    quiet(second, 2, start_epoch=1)
    assert second.history == whole.history
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_lr_find_does_not_count_as_epochs(table, tmp_path):
    plain, searched = (own_learner(table, tmp_path) for _ in range(2))
    with searched.no_bar(): searched.lr_find(num_it=12, stop_div=False, show_plot=False)
    assert [list(v) for v in quiet(plain, 1).recorder.values] == [list(v) for v in quiet(searched, 1).recorder.values]


def test_any_network_is_written_and_resumes(table, tmp_path):
    whole = quiet(own_learner(table, tmp_path/'whole'), 3)
    part = own_learner(table, tmp_path/'part')
    untrained = part.save('untrained')
    with part.no_bar(): part.lr_find(num_it=12, stop_div=False, show_plot=False)
    quiet(part, 2, cbs=[KeepState(), SaveModelCallback('R@1', fname='best')])
    again = own_learner(table, tmp_path/'part')
    quiet(again, 3, start_epoch=again.load_state())
    assert again.history == whole.history
    assert own_learner(table, tmp_path/'part').load('untrained').history == []
    with pytest.raises(ValueError, match='not a model of fgir'): load_model(untrained)
    with pytest.raises(ValueError, match='untrained.*not of this network'):
        make_learner(table, tmp_path/'part').load('untrained')


def test_predictions_come_with_one_loss_an_image(table, tmp_path):
    learn = make_learner(table, tmp_path)
    x, y, loss = learn.get_preds(with_loss=True)
    assert x.shape == (32, 16) and y.shape == loss.shape == (32,) and loss.isnan().all()
    assert quiet(learn, 1).recorder.losses[-1].isfinite()


def test_loaders_of_other_colors_are_refused(table, tmp_path):
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=16)
    with pytest.raises(ValueError, match=r'dls: std=\[0.25, 0.25, 0.25\].*mean= and std='):
        retrieval_learner(make_dls(table, std=[.25]*3), net, BatchHardTripletLoss())
    net.backbone.std = (.25, .25, .25)
    retrieval_learner(make_dls(table, std=[.25]*3), net, BatchHardTripletLoss())


def test_results_are_searches_of_the_column(table, tmp_path, monkeypatch):
    asked = table.copy()
    asked.loc[asked.split == 'test', 'split'] = ['query', 'gallery']*((asked.split == 'test').sum()//2)
    dls = make_dls(asked.assign(x1=4., y1=4., x2=40., y2=40.), valid='test', crop=True)
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=16)
    learn, drawn = retrieval_learner(dls, net, BatchHardTripletLoss(), path=tmp_path), {}
    monkeypatch.setattr(learner, 'show_neighbours', lambda table, rows, found, **kwargs: drawn.update(
        kwargs, split=table.split.to_numpy(), rows=rows, found=found))
    learn.show_results(max_n=3, k=4)
    x, split = learn.get_preds()[0].numpy(), drawn['split']
    query, gallery = ((split == s).nonzero()[0] for s in ('query', 'gallery'))
    scores, found = neighbours(x[query], x[gallery], k=4)
    some = [0, (len(query) - 1)//2, len(query) - 1]
    assert drawn['crop'] and list(drawn['rows']) == list(query[some])
    assert (drawn['found'] == gallery[found[some]]).all() and drawn['scores'] == pytest.approx(scores[some], abs=1e-4)
    learn.show_results(ds_idx=0, max_n=2, k=3)
    assert set(drawn['split']) == {'train'} and drawn['found'].shape == (2, 3)


def test_the_optimizer_is_restored_on_the_loaders_device(table, tmp_path, monkeypatch):
    quiet(make_learner(table, tmp_path), 1, cbs=KeepState())
    monkeypatch.setattr(learner, '_check_colors', lambda dls, model: None)
    learn = make_learner(table, tmp_path, device='meta')
    with pytest.warns(UserWarning, match='no-op'): assert learn.load_state() == 1
    moments = [s['exp_avg'].device.type for s in learn.opt.opt.state.values()]
    assert set(moments) == {'meta'} and {p.device.type for p in learn.model.parameters()} == {'meta'}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_run_resumes_on_the_gpu(table, tmp_path):
    quiet(make_learner(table, tmp_path, device='cuda'), 1, cbs=KeepState())
    learn = make_learner(table, tmp_path, device='cuda')
    quiet(learn, 2, start_epoch=learn.load_state(), cbs=KeepState())
    assert len(learn.history) == 2 and {p.device.type for p in learn.model.parameters()} == {'cuda'}


# which epoch

@pytest.mark.parametrize('values, n, epoch', [
    ([.1, .5, .9], 100, 3), ([1, 1, 1, 1], 32, 4), ([1, .97, 1, .97], 32, 4), ([.9, .9, .5, .5], 100, 2), ([.5, .9, .87], 100, 3),
    ([.5, .9, .87], 3000, 2), ([.5, .9, .9, .8], None, 3), ([.2, np.nan], 100, 1), ([np.nan]*2, 100, 2), ([3., 2.], 9, 1)])
def test_the_latest_epoch_within_chance_of_the_best_is_picked(values, n, epoch):
    assert pick_epoch(values, n) == epoch
    assert pick_epoch(values, strict=True) == np.argmax(np.nan_to_num(values, nan=-1)) + 1


def losses_of_picks(curve, n, rng, times=400, strict=False):
    "How far below the last epoch (in true R@1) the picked one is, where `n` images measure each epoch of `curve`."
    measured = rng.binomial(n, curve, (times, len(curve)))/n
    return np.array([curve[-1] - curve[pick_epoch(m, n, strict) - 1] for m in measured])


@pytest.mark.parametrize('n', [30, 80, 300, 3000])
def test_luck_does_not_pick_an_early_epoch_but_overfitting_does(n):
    rng, learns = np.random.default_rng(0), .7 - .5*np.exp(-np.arange(1, 13)/4)
    lost = losses_of_picks(learns, n, rng)
    assert np.median(lost) == 0 and (lost >= .1).mean() < .005
    if n == 30: assert (losses_of_picks(learns, n, rng, strict=True) >= .1).mean() > .01
    assert np.median(losses_of_picks(np.r_[learns, .6, .5, .4, .3, .2], n, rng)) <= -.4


@pytest.mark.parametrize('images, classes, few', [(30, 4, False), (29, 4, True), (1000, 3, True), (1000, 1, True), (30, 0, False)])
def test_what_is_too_few_to_choose_by(images, classes, few):
    assert too_few(images, classes) == few


class Scripted(Callback):
    "Writes the R@1 that an epoch is to have."
    order = 46

    def __init__(self, *values): self.script = values

    def after_validate(self):
        if self.learn.in_run: self.learn.retrieval_eval.values[1] = self.script[self.epoch]


def test_the_file_the_line_and_the_record_tell_the_same_epoch(table, tmp_path, capsys):
    "32 images of 4 classes: .94 is as good as 1., .6 is not; all epochs stay in the history."
    learn = quiet(own_learner(table, tmp_path), 4, cbs=[SaveBest(), CSVLogger(), Scripted(.5, 1., .94, .6)])
    record = read_record(tmp_path/'models'/'best.safetensors')
    assert learn.picked == record['epoch'] == 3
    assert [row[1] for row in learn.history] == [row[1] for row in record['history']] == [.5, 1., .94, .6]
    assert pd.read_csv(tmp_path/'history.csv')['R@1'].tolist() == [.5, 1., .94, .6]
    said = capsys.readouterr().out.strip().splitlines()[-1]
    assert said == ('Picked the weights after 3 of 4 epochs: R@1 0.940 on 32 images of 4 held-out classes; the best, 1.000 '
                    'after 2, is not above by more than chance.')
    assert record['selection'] == learn.selection == (
        'latest epoch within two standard errors of the best R@1 on 32 images of 4 held-out classes')


@pytest.mark.parametrize('cbs, epoch', [(lambda: SaveBest(strict=True), 2), (lambda: SaveModelCallback('R@1'), 2)])
def test_the_first_of_the_best_is_kept_where_that_is_asked_for(table, tmp_path, cbs, epoch):
    learn = quiet(own_learner(table, tmp_path), 4, cbs=[cbs(), Scripted(.5, 1., .9, 1.)])
    assert learn.picked == epoch and len(learn.history) == 4


def test_a_loss_is_watched_downwards(table, tmp_path):
    class Down(Callback):
        order = 51
        def after_epoch(self): self.recorder.values[-1][0] = [3., 1., 1., 2.][self.epoch]
    assert quiet(own_learner(table, tmp_path), 4, cbs=[SaveBest('train_loss'), Down()]).picked == 3


def test_too_few_held_out_classes_keep_the_last_epoch_and_say_so(table, tmp_path, capsys):
    few = table[(table.split != 'valid') | (table.label == table.label[table.split == 'valid'].min())].reset_index(drop=True)
    assert held_out(few[few.split == 'valid'], few[few.split == 'train']) == (8, 1)
    learn = quiet(own_learner(few, tmp_path), 3, cbs=[SaveBest(), Scripted(1., 1., .1)])
    assert learn.picked == 3 and learn.selection == 'the last epoch'
    assert '8 images of 1 held-out classes are too few' in capsys.readouterr().out


def test_a_resumed_run_picks_as_a_whole_one(table, tmp_path):
    values = [1., .95, .2, .94, .3]
    whole = quiet(own_learner(table, tmp_path/'whole'), 5, cbs=[SaveBest(), KeepState(), Scripted(*values)])
    with pytest.raises(KeyboardInterrupt):
        quiet(own_learner(table, tmp_path/'part'), 5, cbs=[SaveBest(), KeepState(), Scripted(*values), Stop(3)])
    learn = own_learner(table, tmp_path/'part')
    quiet(learn, 5, start_epoch=learn.load_state(), cbs=[SaveBest(), KeepState(), Scripted(*values)])
    assert learn.picked == whole.picked == 4 and learn.history == whole.history
    for a, b in zip(whole.model.state_dict().values(), learn.model.state_dict().values(), strict=True): assert torch.equal(a, b)
    again = own_learner(table, tmp_path/'part')
    assert again.load_state('best') == 4 and len(again.history) == 5 and again.load_state() == 5


# fastai as promised

class Tiny(nn.Module):
    "A backbone with batch normalization and a head, both small."
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 16)

    def forward(self, x): return nn.functional.normalize(self.head(self.backbone(x)))

    def groups(self): return [list(self.backbone.parameters()), list(self.head.parameters())]


def tiny_learner(table, path, loss=None, **kwargs):
    torch.manual_seed(0)
    dls = make_dls(table)
    return retrieval_learner(dls, Tiny(), loss or Proxies(dls.n_classes, 16), lr=1e-2, path=path, **kwargs)


def trains(learn): return [p.requires_grad for p in learn.parameters()]


def test_predict_takes_a_path_an_image_or_pixels(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    rows = learn.dls.valid.table
    path, expected = image_path(rows, 3), learn.get_preds()[0][3]
    image = Image.open(path)
    for item in (path, str(path), image, np.array(image)): assert torch.allclose(learn.predict(item), expected, atol=1e-6)
    assert not torch.allclose(learn.predict(path, box=(0, 0, 20, 20)), expected, atol=1e-3)
    with pytest.raises(OSError, match='none.jpg'): learn.predict('none.jpg')
    learn.dls.valid.dataset.crop = True
    with pytest.raises(ValueError, match='box: this network was trained on crops'): learn.predict(path)


def test_predict_of_a_classifier_names_the_class(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    learn.model.vocab = [f'class {i}' for i in range(16)]
    name, number, p = learn.predict(image_path(learn.dls.valid.table, 0))
    assert p.sum().item() == pytest.approx(1) and number == p.argmax() and name == f'class {int(number)}'


def test_tta_averages_variants(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    plain, classes = learn.get_preds()
    (varied, again), same = learn.tta(n=3, beta=None)
    assert torch.equal(plain, again) and torch.equal(classes, same) and not torch.allclose(varied, plain, atol=1e-4)
    mixed, _ = learn.tta(n=3)
    assert torch.allclose(mixed, nn.functional.normalize(.75*varied + .25*plain), atol=1e-6)
    assert torch.equal(learn.tta(n=3)[0], mixed) and learn.tta(ds_idx=0, n=1, use_max=True)[0].shape == (32, 16)


def test_get_preds_gives_inputs_and_classes_in_order(table, tmp_path):
    x, out, classes = tiny_learner(table, tmp_path).get_preds(with_input=True)
    assert x.shape == (32, 3, 32, 32) and out.shape == (32, 16)
    assert classes.tolist() == sorted(classes.tolist()) and len(set(classes.tolist())) == 4


def test_lr_find_suggests_a_rate(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    with learn.no_bar(): assert 1e-7 < learn.lr_find(num_it=20, show_plot=False).valley < 10


def test_batches_and_results_are_shown(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    learn.dls.show_batch(max_n=4)
    assert len(learn.show_results(max_n=2, k=3).axes) == 2*4


@pytest.mark.filterwarnings('ignore:load_learner')
def test_an_exported_learner_predicts_the_same(table, tmp_path):
    learn = quiet(tiny_learner(table, tmp_path).to_bf16(), 1)
    path = image_path(table, 0)
    expected = learn.to_fp32().predict(path)
    learn.to_bf16().export('it.pkl')
    again = load_learner(tmp_path/'it.pkl')
    assert torch.allclose(again.predict(path), expected, atol=1e-6) and len(learn.dls.train.table) == 32
    assert learn.history == again.history and quiet(learn, 1).history


def test_trackers_watch_the_first_measure_upwards(table, tmp_path, capsys):
    learn = quiet(tiny_learner(table, tmp_path), 5, cbs=[EarlyStoppingCallback(patience=2), Scripted(.1, .5, .4, .3, .9)])
    assert len(learn.history) == 4
    assert 'EarlyStoppingCallback watches R@1: there is no valid_loss' in capsys.readouterr().out
    quiet(learn, 3, cbs=[SaveModelCallback(), Scripted(.1, .5, .4)])
    assert learn.picked == 2 and len(learn.history) == 3
    with pytest.raises(ValueError, match="SaveBest: monitor 'R@3' is not among train_loss, R@1, R@2"): learn.add_cb(SaveBest('R@3'))


def test_an_early_stop_keeps_the_state_of_the_last_epoch(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    quiet(learn, 4, cbs=[EarlyStoppingCallback('R@1'), KeepState(), Scripted(.5, .4, .3, .2)])
    assert len(learn.history) == 2 and tiny_learner(table, tmp_path).load_state() == 2


@pytest.mark.parametrize('cb, instead', [(MixUp, 'stronger `tfms`'), (CutMix, 'stronger `tfms`'), (ShowGraphCallback, 'plot_loss'),
                                         (TerminateOnNaNCallback, 'ends by itself'), (ReduceLROnPlateau, 'a schedule')])
def test_what_cannot_work_is_refused_in_a_line(table, tmp_path, cb, instead):
    learn = tiny_learner(table, tmp_path)
    before = len(learn.cbs)
    with pytest.raises(ValueError, match=f'^{cb.__name__}: .*{instead}'): quiet(learn, 1, cbs=cb())
    with pytest.raises(ValueError, match=f'^{cb.__name__}: .*{instead}'): tiny_learner(table, tmp_path, cbs=cb)
    assert len(learn.cbs) == before and quiet(learn, 1).history


def test_freeze_and_unfreeze(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    conv, head = learn.model.backbone[0].weight, learn.model.head.weight
    before, begun = conv.detach().clone(), head.detach().clone()
    learn.freeze()
    quiet(learn, 1)
    assert torch.equal(conv, before) and not torch.equal(head, begun)
    learn.unfreeze()
    quiet(learn, 1)
    assert not torch.equal(conv, before)
    with pytest.raises(ValueError, match='freeze: the network is one group'): own_learner(table, tmp_path).freeze()


class Break(Callback):
    "Ends a fit in some way, in the second batch of an epoch."
    run_valid = False

    def __init__(self, how, epoch=0): self.how, self.at = how, epoch

    def before_batch(self):
        if self.iter == 1 and self.epoch == self.at: raise self.how('broken')


ENDS = [None, RuntimeError, KeyboardInterrupt, CancelFitException]

@pytest.mark.parametrize('how', ENDS)
@pytest.mark.parametrize('cbs', [lambda: FreezeBN(affine=True), lambda: WarmUp(1), lambda: WarmUp(9),
                                 lambda: [WarmUp(1), FreezeBN(affine=True)]])
def test_what_a_fit_froze_trains_again_and_what_was_frozen_stays(table, tmp_path, cbs, how):
    learn = tiny_learner(table, tmp_path)
    learn.model.backbone[0].weight.requires_grad_(False)
    before = trains(learn)
    try: quiet(learn, 2, cbs=[*np.atleast_1d(cbs()), *([Break(how)] if how else [])])
    except (RuntimeError, KeyboardInterrupt): pass
    assert trains(learn) == before and before.count(False) == 1


def test_warm_up_and_frozen_normalization_together(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    conv, bn = learn.model.backbone[0].weight, learn.model.backbone[1].weight
    states, at = [], Callback(before_batch=lambda self: states.append((conv.requires_grad, bn.requires_grad)))
    at.run_valid = False
    quiet(learn, 2, cbs=[FreezeBN(affine=True), WarmUp(1), at])
    assert set(states[:4]) == {(False, False)} and set(states[4:]) == {(True, False)}
    with pytest.raises(ValueError, match='WarmUp: Sequential has no `backbone`'):
        quiet(own_learner(table, tmp_path), 1, cbs=WarmUp(1))


class Steep(Proxies):
    "Proxies with large gradients."
    def forward(self, x, y): return 1000*super().forward(x, y)


@pytest.mark.parametrize('clip, norm', [(GradientClip(.5), lambda g: torch.cat([x.flatten() for x in g]).norm()),
                                        (ClipValue(.01), lambda g: max(x.abs().max() for x in g)*50)])
def test_a_clipped_gradient_is_that_of_network_and_loss(table, tmp_path, clip, norm):
    learn, seen = tiny_learner(table, tmp_path, loss=Steep(4, 16)), []
    watch = Callback(before_step=lambda self: seen.append(float(norm([p.grad for p in learn.parameters()]))))
    watch.order, watch.run_valid = 90, False
    quiet(learn, 1, cbs=[clip, watch])
    assert seen and seen == pytest.approx([.5]*len(seen), rel=1e-3)


def test_accumulated_gradients_step_once_in_n_images(table, tmp_path):
    learn, steps = tiny_learner(table, tmp_path), []
    count = Callback(after_step=lambda self: steps.append(self.iter))
    count.run_valid = False
    quiet(learn, 1, cbs=[GradientAccumulation(16), count])
    assert steps == [1, 3]


@pytest.mark.parametrize('to', ['to_bf16', 'to_fp16'])
def test_half_precision_trains_on_the_cpu_and_is_left_after_an_error(table, tmp_path, to):
    learn = getattr(tiny_learner(table, tmp_path), to)()
    assert np.isfinite(quiet(learn, 1).history[0][0])
    for fails in (lambda: quiet(learn, 1, cbs=Break(RuntimeError)), learn.validate):
        hook = learn.model.head.register_forward_pre_hook(lambda *args: 1/0)
        with pytest.raises((RuntimeError, ZeroDivisionError)): fails()
        hook.remove()
        assert not torch.is_autocast_enabled('cpu')


@pytest.mark.parametrize('to', ['to_bf16', 'to_fp16', 'to_fp32'])
def test_an_error_before_the_first_batch_is_the_one_that_is_seen(table, tmp_path, to):
    learn = tiny_learner(table, tmp_path, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW, betas='x'))
    with pytest.raises((TypeError, ValueError)) as e: quiet(getattr(learn, to)(), 1)
    assert 'inside' not in str(e.value)


def test_a_moving_average_of_the_weights(table, tmp_path):
    "timm's, as the notebook shows it."
    class Average(Callback):
        def before_fit(self): self.ema = ModelEmaV3(self.model, decay=.5)
        def after_step(self): self.ema.update(self.model)
    average = Average()
    learn = tiny_learner(table, tmp_path)
    before = learn.model.head.weight.detach().clone()
    quiet(learn, 1, cbs=average)
    moved, last = (w - before for w in (average.ema.module.head.weight, learn.model.head.weight))
    assert 0 < moved.norm() < last.norm()


def test_epochs_cut_short_train_and_have_no_recall(table, tmp_path):
    learn = quiet(tiny_learner(table, tmp_path), 2, cbs=[ShortEpochCallback(.3), KeepState()])
    assert [len(row) for row in learn.history] == [5, 5] and all(np.isnan(row[1:]).all() for row in learn.history)


def test_fine_tune_freezes_and_unfreezes(table, tmp_path):
    learn = tiny_learner(table, tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, freeze_epochs=1)
    assert all(trains(learn))
