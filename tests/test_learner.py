"""The Learner: resume after a real kill, recall columns, parameter groups, precision, checkpoints."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from torch import nn

from fgir import learner
from fgir.backbones import RetrievalNet, create_backbone, load_model
from fgir.data import hold_out_classes
from fgir.learner import KeepState, SaveBest, pack, retrieval_learner, split_groups, table_recall, unpack
from fgir.loaders import retrieval_dls
from fgir.losses import BatchHardTripletLoss
from fgir.metrics import recall_at_k
from fgir.search import neighbours
from fgir.synth import synth_dataset

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


def make_dls(table, **kwargs): return retrieval_dls(table, size=32, bs=8, per_class=4, num_workers=0, **kwargs)


def make_learner(table, path, loss=None, dropout=.2, device=None, **kwargs):
    torch.manual_seed(0)
    net = RetrievalNet(create_backbone('resnet18', pretrained=False), dim=16, dropout=dropout)
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


RUN = textwrap.dedent('''
    import sys
    from fgir.cgd import cgd_learner
    from fgir.data import read_cub
    learn = cgd_learner(read_cub(sys.argv[1]), 'synth', feature_dim=16, batch_size=8, epochs=4, backbone='resnet18',
                        pretrained=False, size=32, valid=.5, out=sys.argv[2], num_workers=0)
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(resume=True)
    print('epochs:', len(learn.recorder.iters))
''')


def start_run(table, out):
    command = [sys.executable, '-W', 'ignore', '-c', RUN, table.attrs['root'], str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    "The number of epochs that the process trained."
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return int(out.split('epochs:')[1])


def test_killed_run_resumes_to_the_same_statistics(table, tmp_path):
    whole = start_run(table, tmp_path/'whole')
    killed = start_run(table, tmp_path/'killed')
    deadline = time.monotonic() + 200
    while not list((tmp_path/'killed').glob('*_last.safetensors')):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
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
    net = RetrievalNet(create_backbone('resnet18', pretrained=False), dim=16)
    with pytest.raises(ValueError, match=r'dls: std=\[0.5, 0.5, 0.5\].*mean= and std='):
        retrieval_learner(make_dls(table, std=[.5]*3), net, BatchHardTripletLoss())
    net.backbone.std = (.5, .5, .5)
    retrieval_learner(make_dls(table, std=[.5]*3), net, BatchHardTripletLoss())


def test_results_are_searches_of_the_column(table, tmp_path, monkeypatch):
    asked = table.copy()
    asked.loc[asked.split == 'test', 'split'] = ['query', 'gallery']*((asked.split == 'test').sum()//2)
    dls = make_dls(asked.assign(x1=4., y1=4., x2=40., y2=40.), valid='test', crop=True)
    net = RetrievalNet(create_backbone('resnet18', pretrained=False), dim=16)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_run_resumes_on_the_gpu(table, tmp_path):
    quiet(make_learner(table, tmp_path, device='cuda'), 1, cbs=KeepState())
    learn = make_learner(table, tmp_path, device='cuda')
    quiet(learn, 2, start_epoch=learn.load_state(), cbs=KeepState())
    assert len(learn.history) == 2 and {p.device.type for p in learn.model.parameters()} == {'cuda'}
