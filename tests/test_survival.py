"""Runs that are killed, interrupted, starved of disk, poisoned or spread over processes end as undisturbed runs do."""
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from fastai.callback.core import Callback
from processes import FRESH, free_port, two_of_a_group
from torch import distributed

from fgir.backbones import saving as backbones
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import read_record, read_tensors
from fgir.data import batches as loaders
from fgir.data.fish import synth_dataset
from fgir.data.images import BadImage
from fgir.data.readers import read_cub
from fgir.data.table import hold_out_classes
from fgir.training.runs import learner_from_recipe

SMALL = dict(backbone='test_resnet', pretrained=False, size=32, batch_size=8, epochs=4, valid=.5, lr=1e-3, warm_up=0,
             drop_last=True)
pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.processes]


@pytest.fixture(autouse=True)
def interruptible():
    "A shell has what it runs in the background ignore Ctrl-C, and whatever that starts; here it is to be heard."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp('synth')/'set'
    return synth_dataset(root, n_classes=16, n_per_class=8, size=48, progress=False)


def make(table, out, recipe='pp_proxy_anchor', num_workers=0, cbs=None, **changes):
    table = hold_out_classes(table, changes.get('valid') if isinstance(changes.get('valid'), float) else .5)
    return learner_from_recipe(recipe, table, out=out, prefix='run', cbs=cbs, **{**SMALL, **changes},
                               loaders=dict(num_workers=num_workers, progress=False, device='cpu'))


def fit(learn, resume=True, cbs=None):
    with learn.no_bar(), learn.no_logging(): return learn.fit_recipe(resume=resume, cbs=cbs)


@pytest.fixture(scope='module')
def whole(table, tmp_path_factory):
    "Folders of undisturbed runs, by the way their weights are picked."
    folders = {}
    for valid in (.5, 'last'):
        folders[valid] = tmp_path_factory.mktemp('whole')
        fit(make(table, folders[valid], valid=valid))
    return folders


def assert_same_files(a, b):
    "The two folders hold the same files, statistics, records and tensors, and nothing else."
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for path in a.iterdir(): assert path.read_bytes() == (b/path.name).read_bytes(), path.name


def assert_whole(out):
    "Every file under its final name can be read to its end."
    for path in out.glob('run_*'):
        if path.suffix == '.safetensors': read_tensors(path)
        elif path.suffix == '.json': json.loads(path.read_text())
        else: pd.read_csv(path)


def epochs_done(out): return read_record(out/'run_last')['epoch'] if (out/'run_last.safetensors').exists() else 0


def begin(target, *args):
    "Start `target(connection, *args)` in a process of its own; this end of the connection, and the process."
    here, there = FRESH.Pipe()
    child = FRESH.Process(target=_begun, args=(target, there, *args))
    child.start()
    there.close()
    return here, child


def _begun(target, *args):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method('fork', force=True)
    torch.set_num_threads(1)
    target(*args)


def heard(connection):
    "What the process says, within a minute."
    assert connection.poll(60), 'the process is silent'
    return connection.recv()


# kill -9

class Moment(Callback):
    "Tell the parent, and wait for its signal, in step `step` of epoch `epoch` (counted from 0)."
    order, run_valid = 70, False

    def __init__(self, tell, epoch, step=None): self.tell, self.at, self.step = tell, epoch, step

    def before_step(self):
        if (self.epoch, self.iter) == (self.at, self.step): self.tell()

    def after_fit(self):
        if self.at == 'end': self.tell()


def meet(connection):
    "A function that says that the moment has come, then waits to be killed."
    def tell():
        connection.send('now')
        time.sleep(60)
    return tell


def run_to_moment(connection, root, out, when, at, changes):
    "Train, and stop for the parent at a moment: a step, half a file of tensors, or one of the renamings."
    tell, save_tensors, replace, epoch = meet(connection), backbones.save_tensors, os.replace, [0]
    def half(tensors, path, metadata):
        save_tensors(tensors, path, metadata)
        if when == 'half' and '_last' in str(path) and epoch[0] == at:
            os.truncate(path, os.path.getsize(path)//2)
            tell()
    def renamed(old, new):
        if epoch[0] == at and Path(new).name == when: tell()
        replace(old, new)
    backbones.save_tensors, os.replace = half, renamed
    class Count(Callback):
        def before_epoch(self): epoch[0] = self.epoch
    moment = Moment(tell, at, when if isinstance(when, int) else None)
    fit(make(read_cub(root), out, cbs=[Count()], **changes), cbs=[moment])


MOMENTS = {  # one after the other in one run: when, in which epoch, and how many epochs are kept then
    .5: [('half', 0, 0), (2, 0, 0), ('run_model.safetensors', 0, 0), ('half', 2, 2), (1, 2, 2), ('run_last.safetensors', 2, 2),
         ('end', 'end', 4)],
    'last': [('run_last.json', 1, (1, 2)), ('run_statistics.csv', 3, 3), ('run_model.json', 3, 3), ('run_last.json', 3, (3, 4))]}


@pytest.mark.parametrize('valid', MOMENTS)
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(table, whole, tmp_path, valid):
    for when, at, done in MOMENTS[valid]:
        here, child = begin(run_to_moment, table.attrs['root'], tmp_path, when, at, dict(valid=valid))
        assert heard(here) == 'now', when
        os.kill(child.pid, signal.SIGKILL)
        child.join(20)
        assert child.exitcode == -signal.SIGKILL
        assert_whole(tmp_path)
        kept = epochs_done(tmp_path)
        assert kept in (done if isinstance(done, tuple) else (done,)), when
    learn = make(table, tmp_path, valid=valid)
    fit(learn)
    assert len(getattr(learn.recorder, 'iters', [])) == 4 - kept
    assert_same_files(whole[valid], tmp_path)


# a loss that is no number

class Poison(Callback):
    "Spoil the loss of one step, and note which files the batches of the steps were read from."
    order, run_valid = 70, False

    def __init__(self, value, opened, epoch=1, step=2): self.value, self.opened, self.at = value, opened, (epoch, step)

    def after_batch(self): self.opened.clear()

    def before_train(self): self.opened.clear()

    def after_pred(self):
        if (self.epoch, self.iter) == self.at: self.learn.pred = self.pred*torch.full((len(self.pred), 1), self.value)


@pytest.mark.parametrize('value, changes', [
    (float('nan'), {}), (float('nan'), dict(recipe='msloss', per_class=2, steps=None, lr=1e-4)),
    (float('inf'), dict(recipe='cosface', per_class=4, sampler='balanced', steps=None, precision='bf16'))])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images(table, tmp_path, monkeypatch, value, changes):
    opened, load_row = [], loaders.load_row
    def noted(table, i, *how):
        opened.append(str(Path(table.attrs['root'])/table['path'].iloc[i]))
        return load_row(table, i, *how)
    changes = dict(valid='last', epochs=2) | changes
    def run(out, cbs=None): return fit(make(table, out, **changes), cbs=cbs)
    monkeypatch.setattr(loaders, 'load_row', noted)
    words = '(loss (nan|inf)|embeddings with NaN or infinity) in epoch 1, step 2'
    with pytest.raises(FloatingPointError, match=words) as error:
        run(tmp_path/'part', Poison(value, opened))
    _, *images = str(error.value).splitlines()
    assert len(images) == 8 and sorted(map(os.path.abspath, images)) == sorted(map(os.path.abspath, opened))
    assert not torch.is_autocast_enabled('cpu') and (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert_whole(tmp_path/'part')
    assert epochs_done(tmp_path/'part') == 1 and len(pd.read_csv(tmp_path/'part/run_statistics.csv')) == 1
    one = make(table, tmp_path/'one', **changes)
    with pytest.raises(KeyboardInterrupt): fit(one, cbs=Interrupt(1, 0))
    assert_same_files(tmp_path/'one', tmp_path/'part')
    run(tmp_path/'part')
    run(tmp_path/'whole')
    assert_same_files(tmp_path/'whole', tmp_path/'part')


class Interrupt(Callback):
    "Ctrl-C before a step, for real: the process sends it to itself, or to its whole group."
    order, run_valid = 70, False

    def __init__(self, epoch, step, group=False): self.at, self.group = (epoch, step), group

    def before_batch(self):
        if (self.epoch, self.iter) != self.at: return
        if self.group: os.killpg(0, signal.SIGINT)
        else: os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


# a full disk

class Full(Callback):
    "No file may grow beyond `size` bytes from the end of epoch `epoch`'s training on."
    order = 70

    def __init__(self, size, epoch=2): self.size, self.at = size, epoch

    def after_train(self):
        if self.epoch == self.at: resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def run_on_full_disk(connection, root, out, size, changes):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try: fit(make(read_cub(root), out, **changes), cbs=Full(size))
    except BaseException as e: connection.send((isinstance(e, (OSError, ValueError)), type(e).__name__, str(e)))
    else: connection.send((False, 'nothing', ''))


def test_a_full_disk_is_named_and_what_was_there_stays(table, whole, tmp_path):
    for size, file in [(100, 'run_statistics.csv'), (20_000, 'run_model.safetensors'), (3_000_000, 'run_last.safetensors')]:
        here, child = begin(run_on_full_disk, table.attrs['root'], tmp_path, size, dict(valid='last'))
        right, kind, message = heard(here)
        child.join(20)
        assert right, f'{kind}: {message}'
        assert child.exitcode == 0
        assert str(tmp_path/file) in message and re.search('too large|No space', message) and '\n' not in message
        assert not list(tmp_path.glob('.*'))
        assert_whole(tmp_path)
        assert epochs_done(tmp_path) == 2
    learn = fit(make(table, tmp_path, valid='last'))
    assert len(learn.recorder.iters) == 2
    assert_same_files(whole['last'], tmp_path)


# an image that can no longer be read

class Truncate(Callback):
    "Cut the file of an image of step `step` before epoch 1."
    order = 70

    def __init__(self, step): self.step = step

    def before_epoch(self):
        if self.epoch != 1: return
        dl = self.dls.train
        self.path = Path(dl.table.attrs['root'])/dl.table['path'].iloc[dl.step_rows(1, self.step)[5]]
        self.before = self.path.read_bytes()
        self.path.write_bytes(self.before[:len(self.before)//2])


@pytest.mark.parametrize('num_workers', [0, 2])
def test_an_unreadable_image_is_named_and_the_run_resumes(table, whole, tmp_path, num_workers):
    cut = Truncate(2)
    try:
        with pytest.raises(BadImage) as error: fit(make(table, tmp_path, num_workers=num_workers), cbs=cut)
    finally: cut.path.write_bytes(cut.before)
    assert str(error.value).startswith(str(cut.path)) and '\n' not in str(error.value)
    assert epochs_done(tmp_path) == 1
    assert_whole(tmp_path)
    learn = make(table, tmp_path, num_workers=num_workers)
    fit(learn)
    assert len(learn.recorder.iters) == 3
    assert_same_files(whole[.5], tmp_path)


# Ctrl-C

def run_until_ctrl_c(connection, root, out, group):
    os.setpgrp()
    try: fit(make(read_cub(root), out, num_workers=2),
             cbs=Moment(lambda: connection.send('now') or time.sleep(30), 1, 0))
    except KeyboardInterrupt: connection.send('interrupted')
    except BaseException: connection.send(traceback.format_exc())
    time.sleep(.1)
    connection.send(len(psutil.Process().children(recursive=True)))
    sys.exit(130)


def test_ctrl_c_ends_the_run_and_its_workers(table, whole, tmp_path):
    "Told to the process alone, then to its group, as a terminal does."
    for group in (False, True):
        here, child = begin(run_until_ctrl_c, table.attrs['root'], tmp_path, group)
        assert heard(here) == 'now'
        workers = psutil.Process(child.pid).children(recursive=True)
        assert len(workers) == 2
        begun = time.monotonic()
        (os.killpg if group else os.kill)(child.pid, signal.SIGINT)
        assert heard(here) == 'interrupted' and heard(here) == 0
        child.join(20)
        assert child.exitcode == 130 and time.monotonic() - begun < 10
        assert not any(w.is_running() for w in workers)
        assert epochs_done(tmp_path) == 1
        assert_whole(tmp_path)
    learn = make(table, tmp_path)
    fit(learn)
    assert len(learn.recorder.iters) == 3
    assert_same_files(whole[.5], tmp_path)


# two processes

SPREAD = {  # recipe and what it is to stress
    'msloss': dict(recipe='msloss', per_class=2, epochs=2, sampler='balanced'),
    'proxy_anchor': dict(recipe='proxy_anchor_cub', epochs=2, warm_up=1, clip_value=.01,
                         lr=dict(backbone=1e-4, head=1e-4, loss=1e-2)),
    'adamp': dict(recipe='pp_proxy_anchor', epochs=2, warm_up=1, drop_last=False,
                  lr=dict(backbone=1e-4, head=1e-4, loss=1e-2)),
    'moving': dict(recipe='pp_moving_proxy', epochs=2, valid=.5),
    'steps': dict(recipe='cosface', per_class=2, steps=8, epochs=None, valid='last', lr=1e-4),
    'cgd': dict(recipe='cgd', epochs=2, per_class=2, valid='last', net=dict(feature_dim=32), lr=1e-4),
    'norm': dict(recipe='msloss', per_class=2, epochs=2, freeze_bn='', clip_norm=.5, valid='last', lr=1e-4)}


def spread(name, root, out, weights, cbs=None, **more):
    "One of the runs of `SPREAD` from the network in the file `weights`, whose batch normalization is frozen then."
    return fit(make(read_cub(root), Path(out)/name, weights=weights, cbs=cbs, **{**SPREAD[name], **more}))


def state(learn):
    return {**learn.model.state_dict(), **{f'loss/{k}': v for k, v in learn.loss_func.state_dict().items()}}


def spread_all(root, out, weights):
    for name in SPREAD:
        learn = spread(name, root, out, weights)
        torch.save(state(learn), f'{out}/{name}_{distributed.get_rank()}.pth')
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights')/'w.pth'
    torch.save(create_backbone('test_resnet', pretrained=False).state_dict(), path)
    return str(path)


def test_two_processes_train_as_one(weights, tmp_path):
    table = synth_dataset(tmp_path/'set', n_classes=16, n_per_class=4, size=48, progress=False)
    one, two = tmp_path/'one', tmp_path/'two'
    two.mkdir()
    for done in two_of_a_group(spread_all, table.attrs['root'], str(two), weights):
        assert done.returncode == 0, done.stderr[-3000:]
    wrong = []
    for name in SPREAD:
        alone = state(spread(name, table.attrs['root'], one, weights))
        first, second = (torch.load(two/f'{name}_{rank}.pth') for rank in range(2))
        assert all(torch.equal(first[k], second[k]) for k in first), name
        assert sorted(p.name for p in (two/name).iterdir()) == sorted(p.name for p in (one/name).iterdir())
        ours, theirs = (pd.read_csv(out/name/'run_statistics.csv').train_loss for out in (one, two))
        losses = ((ours - theirs).abs()/ours.abs()).max()
        tensors = max((first[k].double() - v.double()).abs().max().item() for k, v in alone.items())
        print(f'{name}: losses {losses:.1e}, tensors {tensors:.1e}')
        # Adam moves a weight whose gradient is zero but for rounding by the rate, 1e-4, either way.
        if len(ours) < 2 or losses > 1e-5 or tensors > 3e-4: wrong.append((name, losses, tensors))
    assert not wrong


def join_run(connection, root, out, weights, rank, port, moment):
    "Be one of two processes of a run, up to a moment or to the end."
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank),
                      WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    spread('adamp', root, out, weights, cbs=[Moment(meet(connection), 1, 1)] if moment else None)
    torch.distributed.destroy_process_group()


def test_two_killed_processes_resume(table, weights, tmp_path):
    def start(moment):
        port = free_port()
        return zip(*(begin(join_run, table.attrs['root'], tmp_path/'two', weights, rank, port, moment)
                   for rank in range(2)),
                   strict=True)
    ends, both = start(True)
    assert [heard(end) for end in ends] == ['now']*2
    for p in both: p.kill()
    for p in both: p.join(20)
    assert epochs_done(tmp_path/'two/adamp') == 1
    _, both = start(False)
    for p in both: p.join(60)
    assert [p.exitcode for p in both] == [0, 0]
    alone = spread('adamp', table.attrs['root'], tmp_path/'one', weights)
    again, record = read_tensors(tmp_path/'two/adamp/run_model.safetensors')
    assert record['epoch'] == len(alone.history)
    for k, v in alone.model.state_dict().items(): assert torch.allclose(again[k].float(), v.float(), atol=1e-4), k


# loggers

def test_a_csv_logger_writes_the_shown_columns(table, tmp_path):
    from fastai.callback.progress import CSVLogger
    learn = make(table, tmp_path/'new', epochs=2)
    fit(learn, cbs=CSVLogger())
    log = pd.read_csv(tmp_path/'new/history.csv')
    assert list(log) == list(learn.recorder.metric_names) and log['epoch'].tolist() == [0, 1]
    assert log['train_loss'].tolist() == pytest.approx([v[0] for v in learn.recorder.values], abs=1e-5)


def test_tensorboard_gets_the_columns(table, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = make(table, tmp_path, epochs=2)
    fit(learn, cbs=TensorBoardCallback(tmp_path/'tb', trace_model=False, log_preds=False))
    events = EventAccumulator(str(tmp_path/'tb')).Reload()
    scalars = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}
    assert {'train_loss', 'R@1', 'R@8', 'lr_0'} <= set(scalars) and len(scalars['train_loss']) == 16
    column = list(learn.recorder.metric_names[1:]).index('R@2')
    assert scalars['R@2'] == pytest.approx([v[column] for v in learn.recorder.values])


def run_with_wandb(connection, root, out):
    os.environ.update(WANDB_MODE='offline', WANDB_DIR=str(out), WANDB_SILENT='true', WANDB_DATA_DIR=str(out),
                      WANDB_CACHE_DIR=str(out), WANDB_CONFIG_DIR=str(out))
    try:
        import wandb
        from fastai.callback.wandb import WandbCallback
        run = wandb.init(project='fgir', dir=str(out))
        learn = make(read_cub(root), out/'run', epochs=2)
        fit(learn, cbs=WandbCallback(log_preds=False, log_model=False))
        summary, values = dict(run.summary), [list(v) for v in learn.recorder.values]
        run.finish()
        connection.send(({k: v for k, v in summary.items() if isinstance(v, (int, float))}, values))
    except BaseException: connection.send((traceback.format_exc(), None))


def test_weights_and_biases_gets_the_columns_offline(table, tmp_path):
    pytest.importorskip('wandb')
    here, child = begin(run_with_wandb, table.attrs['root'], tmp_path)
    summary, values = heard(here)
    child.join(30)
    assert values, summary
    assert summary['epoch'] == 2 and [summary[f'R@{k}'] for k in (1, 2, 4, 8)] == pytest.approx(values[-1][-4:])
    assert list(tmp_path.glob('wandb/offline-run-*/*.wandb'))
