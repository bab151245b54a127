"Shares of a table, described by several processes, killed, resumed, spoiled: together they are what one process makes."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from processes import Fresh, command, command_in_copies, two_of_a_group
from torch import distributed

import fgir.features.shards
from fgir.app import cli
from fgir.backbones.nets import Pooled
from fgir.backbones.registry import create_backbone
from fgir.data.fish import synth_dataset
from fgir.data.images import BadImage, load_row
from fgir.data.readers import read_cub, read_folder
from fgir.features.extraction import extract
from fgir.features.shards import extract_all, extract_shard
from fgir.features.store import Features

HOW = dict(size=48, bs=4, num_workers=0, progress=False)
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    root = tmp_path_factory.mktemp('fish')/'fish'
    synth_dataset(root, n_classes=6, n_per_class=7, size=48, progress=False)
    return read_cub(root)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save(create_backbone('resnet18', pretrained=False).state_dict(), tmp_path/'net.pth')
    return tmp_path/'net.pth'


def network(weights): return Pooled(create_backbone('resnet18', weights=weights))


def names(folder): return sorted(p.name for p in folder.iterdir())


def shares(folder): return sorted(p.stem.rpartition('.')[2] for p in folder.glob('*.shard-*.safetensors'))


def extract_in_group(root, weights, out):
    distributed.init_process_group('gloo')
    done = extract_shard(network(weights), read_cub(root), out, **HOW)
    ends = [None]*2
    distributed.all_gather_object(ends, done is None)
    assert sorted(ends) == [False, True], ends
    distributed.destroy_process_group()


@pytest.mark.processes
def test_two_processes_of_a_group_make_the_file_of_one(fish, weights, tmp_path):
    "torch.distributed over gloo: the shares are those of the ranks, the file is the same to the last bit."
    (tmp_path/'out').mkdir()
    for done in two_of_a_group(extract_in_group, fish.attrs['root'], weights, tmp_path/'out'/'two.safetensors'):
        assert done.returncode == 0, done.stderr[-3000:]
    assert names(tmp_path/'out') == ['two.safetensors']
    one, two = extract(network(weights), fish, **HOW), Features.load(tmp_path/'out'/'two.safetensors')
    np.testing.assert_array_equal(one['native'], two['native'])
    assert two.table.equals(one.table) and two.table.attrs == one.table.attrs
    assert {k: v for k, v in two.record.items() if k != 'date'} == {k: v for k, v in one.record.items() if k != 'date'}


@pytest.mark.processes
@pytest.mark.parametrize('way', ['processes', 'torchrun', 'shares'])
def test_the_command_line_in_shares(fish, weights, tmp_path, way):
    out = tmp_path/'out'
    words = ['extract', fish.attrs['root'], '--backbone', 'resnet18', '--weights', str(weights), '--size', '48',
             '--batch-size', '4', '--workers', '0', '--device', 'cpu', '--rows', 'all', '--out', str(out/'f.safetensors')]
    if way == 'processes': done = [Fresh(command_in_copies, *words, '--processes', 2).end()]
    elif way == 'torchrun': done = two_of_a_group(command, *words)
    else: done = [Fresh(command, *words, '--shard', f'{i}/3').end() for i in (2, 0, 1)]
    assert not any(d.returncode for d in done), done[-1].stderr[-3000:]
    assert any('Features of 42 images' in d.stdout for d in done) and names(out) == ['f.safetensors']
    np.testing.assert_array_equal(Features.load(out/'f.safetensors')['native'], extract(network(weights), fish, **HOW)['native'])


@pytest.mark.parametrize('share', ['8/8', '-1/2', '1', 'a/b', '0/0'])
def test_shares_that_there_are_not(fish, weights, share):
    words = ['extract', fish.attrs['root'], '--backbone', 'resnet18', '--weights', str(weights), '--out', 'x.safetensors']
    assert cli.main([*words, f'--shard={share}']) == 1


def test_only_what_is_missing_is_described_again(fish, tmp_path):
    "A share that was killed goes on after its last batch; a share that is done is not touched."
    seen = []

    def dying(x):
        if len(seen) == 7: raise KeyboardInterrupt
        seen.append(len(x))
        return x.mean((2, 3))

    def mean(x):
        seen.append(len(x))
        return x.mean((2, 3))

    dying.__module__, dying.__qualname__ = mean.__module__, mean.__qualname__
    out = tmp_path/'out'/'f.safetensors'
    assert extract_shard(dying, fish, out, (0, 2), **HOW) is None
    assert sum(seen) == 22
    with pytest.raises(KeyboardInterrupt): extract_shard(dying, fish, out, (1, 2), **HOW)
    assert len(seen) == 7
    assert extract_shard(mean, fish, out, (0, 2), **HOW) is None
    assert len(seen) == 7
    whole = extract_shard(mean, fish, out, (1, 2), **HOW)
    assert sum(seen) == len(fish) and names(tmp_path/'out') == ['f.safetensors']
    np.testing.assert_array_equal(whole['embedding'], extract(mean, fish, **HOW)['embedding'])
    with pytest.raises(FileExistsError): extract_shard(mean, fish, out, (0, 2), **HOW)


def test_images_of_many_shapes_that_cannot_all_be_read(fish, tmp_path):
    "Shares of batches by size, some of whose images are no images: the same rows, vectors and reasons as in one process."
    folder = tmp_path/'odd'
    for i in range(40):
        (folder/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        image = load_row(fish, i).resize([(80, 60), (60, 90), (64, 64)][i % 3], Image.Resampling.NEAREST)
        image.save(folder/'ab'[i % 2]/f'{i:02}.png')
    table = read_folder(folder)
    spoiled = [0, 7, 19, 39]
    for i in spoiled: (folder/table['path'][i]).write_bytes((folder/table['path'][i]).read_bytes()[:30*i])
    how = dict(size=56, tfms='cfga_pretrained', bs=3, num_workers=0, progress=False, skip_bad=True)
    def mean(x): return {'mean': x.mean((2, 3)), 'max': x.amax((2, 3))}
    one = extract(mean, table, **how)
    for i in (3, 1, 2, 0): parts = extract_shard(mean, table, tmp_path/'f.safetensors', (i, 4), **how)
    for name in one.names: np.testing.assert_array_equal(one[name], parts[name])
    assert parts.table['path'].tolist() == one.table['path'].tolist() == table['path'].drop(spoiled).tolist()
    assert parts.record['skipped'] == one.record['skipped']
    assert sorted(one.record['skipped']) == table['path'][spoiled].tolist()
    with pytest.raises((ValueError, OSError), match=Path(table['path'][0]).name):
        extract_shard(mean, table, tmp_path/'g.safetensors', (0, 1), **how | dict(skip_bad=False))


def test_a_share_without_a_readable_image(fish, tmp_path):
    "It is finished without rows, and the others make the file; where no share has any, that is said."
    folder = tmp_path/'some'
    for i in range(12):
        (folder/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        load_row(fish, i).save(folder/'ab'[i % 2]/f'{i:02}.png')
    table = read_folder(folder)
    spoiled = [0, 1, 4, 5, 8, 9]
    for i in spoiled: (folder/table['path'][i]).write_bytes(b'no image')
    def mean(x): return x.mean((2, 3))
    how = HOW | dict(bs=2, skip_bad=True)
    assert extract_shard(mean, table, tmp_path/'f.safetensors', (0, 2), **how) is None
    whole, one = extract_shard(mean, table, tmp_path/'f.safetensors', (1, 2), **how), extract(mean, table, **how)
    np.testing.assert_array_equal(whole['embedding'], one['embedding'])
    assert whole.record['skipped'] == one.record['skipped'] and len(one.record['skipped']) == 6
    for i in range(12): (folder/table['path'][i]).write_bytes(b'no image')
    assert extract_shard(mean, table, tmp_path/'g.safetensors', (0, 2), **how) is None
    with pytest.raises(BadImage, match='no image can be read'): extract_shard(mean, table, tmp_path/'g.safetensors', (1, 2), **how)


def test_one_share_is_described_by_one_process(fish, tmp_path, monkeypatch):
    out = tmp_path/'f.safetensors'

    def again(x):
        with pytest.raises(ValueError, match='another process is describing this share'):
            extract_shard(again, fish, out, (0, 2), **HOW)
        return x.mean((2, 3))

    assert extract_shard(again, fish, out, (0, 2), **HOW) is None
    assert shares(tmp_path) == ['shard-0-of-2']
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='described by one process'): extract_all(again, fish, out, '0/2', **HOW)
    twice = pd.concat([fish, fish.iloc[:1]], ignore_index=True)
    with pytest.raises(ValueError, match='is there twice'): extract_shard(again, twice, out, (0, 2), **HOW)


def test_a_merge_that_fails_is_made_again(fish, tmp_path, monkeypatch):
    "A disk that is full while the shares are put together leaves them as they are."
    def mean(x): return x.mean((2, 3))
    def full(*_): raise OSError(28, 'No space left on device')
    out = tmp_path/'f.safetensors'
    extract_shard(mean, fish, out, (0, 2), **HOW)
    with monkeypatch.context() as m:
        m.setattr(fgir.features.shards, 'write_rows', full)
        with pytest.raises(OSError, match='No space'): extract_shard(mean, fish, out, (1, 2), **HOW)
    assert not out.exists() and shares(tmp_path) == ['shard-0-of-2', 'shard-1-of-2']
    assert len(extract_shard(mean, fish, out, (1, 2), **HOW)) == len(fish)


def test_a_share_of_other_work_neither_blocks_nor_is_taken(fish, tmp_path, capsys):
    def mean(x): return x.mean((2, 3))
    def largest(x): return x.amax((2, 3))
    out = tmp_path/'f.safetensors'
    extract_shard(mean, fish, out, (0, 2), **HOW)
    for change in (dict(descriptor=largest), dict(bs=5), dict(dtype='float16'), dict(tfms='squash'), dict(size=32), dict(n=3)):
        call = dict(descriptor=mean, n=2) | HOW | change
        describe, n = call.pop('descriptor'), call.pop('n')
        capsys.readouterr()
        for i in range(n): made = extract_shard(describe, fish, out, (i, n), **call)
        assert 'shard-0-of-2.safetensors: a share of other work for f.safetensors; it is kept' in capsys.readouterr().err
        np.testing.assert_array_equal(made.arrays['embedding'], extract(describe, fish, **call)['embedding'])
        assert shares(tmp_path) == ['shard-0-of-2']
        out.unlink()
    with pytest.raises(ValueError, match='2 of 2 shares'): extract_shard(mean, fish, out, (2, 2), **HOW)
    assert len(extract_shard(mean, fish, out, (1, 2), **HOW)) == len(fish) and names(tmp_path) == ['f.safetensors']
