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
from torch import nn

from fgir.backbones import RetrievalNet, create_backbone, load_model
from fgir.data import hold_out_classes
from fgir.learner import KeepState, pack, retrieval_learner, split_groups, table_recall, unpack
from fgir.loaders import retrieval_dls
from fgir.losses import BatchHardTripletLoss
from fgir.metrics import recall_at_k
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


def make_learner(table, path, loss=None, dropout=.2, **kwargs):
    torch.manual_seed(0)
    net = RetrievalNet(create_backbone('resnet18', pretrained=False), dim=16, dropout=dropout)
    dls = make_dls(table)
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


def test_one_pass_of_bfloat16_scores_like_float32(table, tmp_path):
    full = make_learner(table, tmp_path).validate()
    half = make_learner(table, tmp_path).to_bf16().validate()
    assert list(half) == pytest.approx(list(full), abs=.15)


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
    with learn.no_bar(): learn.fit_recipe(resume=True)
''')


def start_run(table, out):
    command = [sys.executable, '-W', 'ignore', '-c', RUN, table.attrs['root'], str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def test_killed_run_resumes_to_the_same_statistics(table, tmp_path):
    whole = start_run(table, tmp_path/'whole')
    killed = start_run(table, tmp_path/'killed')
    deadline = time.monotonic() + 200
    while not list((tmp_path/'killed').glob('*_statistics.csv')):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    finish(whole)
    finish(start_run(table, tmp_path/'killed'))
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
