"Files that others replace, lock, spoil or make up, and writers that are killed: what is read is right, or refused by name."
import builtins
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from processes import begin
from safetensors.numpy import load_file

from fgir.backbones.nets import Pooled, RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import load_model, read_record, read_tensors, save_model
from fgir.data import files
from fgir.data.files import OpenFile, alone_with, check, in_use, lay_out, lock_of, write_atomic, write_folder_atomic
from fgir.features.store import Features
from fgir.gallery.index import Index, features_of

def gallery(n=40, first=0, seed=0, dim=8, **record):
    "Features whose vectors tell which image they belong to: the same path always has the same one."
    paths = [f'{first + i}.jpg' for i in range(n)]
    vectors = np.stack([np.random.default_rng((seed, first + i)).normal(size=dim) for i in range(n)])
    table = pd.DataFrame(dict(path=paths, label=np.arange(n) % 5, name=[f'class {i % 5}' for i in range(n)], split='test'))
    table.attrs = dict(root='/images', dataset='folder')
    return Features({'x': vectors.astype(np.float32)}, table, dict(model='m', config=None, weights='w', **record))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    torch.manual_seed(0)
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=4)
    return save_model(net, tmp_path_factory.mktemp('model')/'m', epoch=1)


# opened once

def last_rows(features): return features['x'][-1].tolist(), features.table['path'].iloc[-1]


READERS = {'Features.load': lambda p: last_rows(Features.load(p)), 'features_of': lambda p: last_rows(features_of(p)),
           'Index.load': lambda p: last_rows(Index.load(p).store.features),
           'Index.load, unverified': lambda p: last_rows(Index.load(p, verify=False).store.features),
           'read_record': read_record, 'read_tensors': lambda p: [str(v) for v in read_tensors(p)],
           'load_model': lambda p: ((m := load_model(p)).head.linear.weight.tolist(), m.record)}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('kind', ['flat', 'hnsw'])
def test_a_file_is_opened_once(tmp_path, monkeypatch, name, kind, model):
    "As soon as a reader has opened a file another one takes its place; what is read is the first to the end."
    path, read = tmp_path/'g.safetensors', READERS[name]
    if name.startswith(('read', 'load')):
        if kind == 'hnsw': pytest.skip('a model has no kind')
        path.write_bytes(model.read_bytes())
    else: Index.build(gallery(), kind=kind).save(path)
    expected, opened = read(path), []

    def open_then_replace(file, mode='r', *args, **kwargs):
        handle = open_(file, mode, *args, **kwargs)
        if isinstance(file, (str, Path)) and Path(file) == path:
            opened.append(mode)
            (tmp_path/'other').write_bytes(b'another file')
            os.replace(tmp_path/'other', path)
        return handle

    open_ = builtins.open
    with monkeypatch.context() as m:
        m.setattr(builtins, 'open', open_then_replace)
        found = read(path)
    assert opened == ['rb'] and found == expected


def replace(path, sources, n):
    for i in range(n):
        os.link(sources[i % len(sources)], f'{path}.next')
        os.replace(f'{path}.next', path)


def save(path, n, kind):
    index = Index.build(gallery(30), kind=kind)
    for i in range(n):
        index.update(gallery(1 + i % 7, first=i % 11, seed=i % 3))
        index.save(path, force=True)


def whole(index, seeds=(0,)):
    "Whether the images of a gallery have the vectors that belong to them, and find themselves."
    features = index.store.features.select(~index.store.gone)
    for i in (0, len(features)//2, len(features) - 1):
        number = int(features.table['path'][i].removesuffix('.jpg'))
        mine = [np.random.default_rng((s, number)).normal(size=8).astype(np.float32) for s in seeds]
        if not any(np.array_equal(features['x'][i], v) for v in mine): return False
        found = index.search(features['x'][i], 1)
        if found['path'][0] != features.table['path'][i] or found['score'][0] < .9999: return False
    return True


def test_a_gallery_that_is_replaced_3000_times_is_always_one_of_them(tmp_path):
    "One process replaces it as fast as it can; every load is of one whole state, and none fails."
    a, b, path = (tmp_path/f'{n}.safetensors' for n in 'abg')
    Index.build(gallery(40)).save(a)
    Index.build(gallery(55, first=7)).save(b)
    path.write_bytes(a.read_bytes())
    writer, sizes = begin(replace, path, (a, b), 3000), []
    while writer.is_alive() or not sizes:
        index = Index.load(path, verify=len(sizes) % 2 == 0)
        assert whole(index), f'load {len(sizes)} mixes two galleries'
        assert last_rows(features_of(path))[1] in ('39.jpg', '61.jpg')
        sizes.append(len(index))
    assert writer.exitcode == 0 and set(sizes) <= {40, 55}


@pytest.mark.parametrize('kind', ['flat', 'hnsw'])
def test_a_gallery_that_is_saved_again_and_again(tmp_path, kind):
    "`Index.save` beside `Index.load`: images that are replaced and come, never under another's vector."
    path = tmp_path/'g.safetensors'
    Index.build(gallery(30), kind=kind).save(path)
    writer, loads = begin(save, path, 60, kind), 0
    while writer.is_alive() or not loads:
        assert whole(Index.load(path), seeds=range(3))
        loads += 1
    assert writer.exitcode == 0 and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_writer_killed_at_any_moment_leaves_a_whole_gallery(tmp_path):
    "Writers that replace images until they are killed; the next one removes what they left half."
    path = tmp_path/'g.safetensors'
    Index.build(gallery(30)).save(path)
    for delay in (.05, .08, .13, .21, .34):
        writer = begin(save, path, 10**6, 'flat')
        time.sleep(delay)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL and whole(Index.load(path), seeds=range(3))
    Index.load(path).save(path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# locks

def hold(path, inside):
    with alone_with(path):
        inside.set()
        time.sleep(60)


def test_who_waits_says_for_whom_and_not_for_ever(tmp_path, capsys, monkeypatch):
    path = Index.build(gallery()).save(tmp_path/'g.safetensors')
    inside = multiprocessing.get_context('fork').Event()
    process = begin(hold, path, inside)
    try:
        assert inside.wait(20) and in_use(path)
        with pytest.raises(TimeoutError, match=rf'g.safetensors: process {process.pid} \(.*\) is still at it'):
            with alone_with(path, wait=1.1): pass
        said = capsys.readouterr().err
        assert said.startswith(f'waiting for {path}: process {process.pid} (') and said.count('\n') == 1
        from fgir.app import cli
        monkeypatch.setattr(files.alone_with.__wrapped__, '__defaults__', (.1,))
        assert cli.main(['index', 'remove', str(path), '1.jpg']) == 1
        said = capsys.readouterr().err
        assert said.startswith(f'fgir: {path}: process {process.pid}') and said.count('\n') == 1
    finally: process.kill()
    process.join()
    assert lock_of(path).exists() and not in_use(path)
    with alone_with(path, wait=0): assert in_use(path)
    assert [p.name for p in tmp_path.iterdir()] == ['g.safetensors']


def test_many_at_once_one_after_the_other(tmp_path):
    count = tmp_path/'count'
    count.write_text('0')
    def up():
        for _ in range(10):
            with alone_with(count): count.write_text(str(int(count.read_text()) + 1))
    threads = [threading.Thread(target=up) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert count.read_text() == '80' and [p.name for p in tmp_path.iterdir()] == ['count']


# what killed writers leave

def die_writing(path, folder):
    with write_atomic(path) as tmp, write_folder_atomic(folder) as new:
        tmp.write_bytes(b'half' * 1000)
        (new/'image.jpg').write_bytes(b'half')
        os.kill(os.getpid(), signal.SIGKILL)


def killed_writing(path, folder):
    process = begin(die_writing, path, folder)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def write_slowly(path, inside, go):
    with write_atomic(path) as tmp:
        tmp.write_text('slow')
        inside.set()
        go.wait(60)


def test_the_next_write_removes_what_killed_writers_left(tmp_path):
    "And what writers that live are at stays."
    path, folder = tmp_path/'f.safetensors', tmp_path/'set'
    for _ in range(3):
        killed_writing(path, folder)
        assert len(list(tmp_path.iterdir())) == 2 and all(p.name.startswith('.') for p in tmp_path.iterdir())
    (tmp_path/'.f.backup.safetensors').touch()
    inside, go = (multiprocessing.get_context('fork').Event() for _ in range(2))
    slow = begin(write_slowly, path, inside, go)
    assert inside.wait(20)
    with write_atomic(path) as tmp: tmp.write_text('new')
    with write_folder_atomic(folder) as new: (new/'a').touch()
    assert path.read_text() == 'new' and [p.name for p in folder.iterdir()] == ['a']
    assert len(list(tmp_path.iterdir())) == 4
    go.set()
    slow.join()
    assert slow.exitcode == 0 and path.read_text() == 'slow'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.f.backup.safetensors', 'f.safetensors', 'set']


def test_where_locks_are_not_supported_nothing_is_removed(tmp_path, monkeypatch):
    path = tmp_path/'f.txt'
    killed_writing(path, tmp_path/'set')
    before = sorted(tmp_path.iterdir())
    def none(*_): raise OSError(38, 'Function not implemented')
    monkeypatch.setattr(files.fcntl, 'flock', none)
    with write_atomic(path) as tmp: tmp.write_text('new')
    assert sorted(tmp_path.iterdir()) == sorted([*before, path]) and path.read_text() == 'new'


def test_a_full_disk_is_named_once(tmp_path, monkeypatch):
    "Also where several files are written together."
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files.os, 'posix_fallocate', full)
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=4)
    path = tmp_path/'f.safetensors'
    for save in (lambda p: save_model(net, p), gallery().save, Index.build(gallery()).save):
        with pytest.raises(OSError) as e: save(path)
        assert str(e.value) == f"[Errno 28] No space left on device: '{path}'"
    assert not list(tmp_path.iterdir())


def test_files_are_as_open_as_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        save_model(RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=4), tmp_path/'m')
        gallery().save(tmp_path/'f.safetensors')
        Index.build(gallery()).save(tmp_path/'g.safetensors')
        with write_folder_atomic(tmp_path/'set') as new: (new/'a').touch()
    finally: os.umask(before)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in tmp_path.iterdir()}
    assert modes.pop('set') == '0o750' and len(modes) == 4 and set(modes.values()) == {'0o640'}


# models

def test_a_model_is_loaded_without_fetching_anything(tmp_path, monkeypatch, model):
    "Whatever its record says of weights: the file has all tensors."
    def fetch(*args, **kwargs): raise AssertionError(f'fetched {args}')
    import urllib.request

    monkeypatch.setattr('fgir.backbones.weights._fetch', fetch)
    monkeypatch.setattr(urllib.request, 'urlopen', fetch)
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', fetch)
    record, tensors = read_record(model), load_file(model)
    for more in (dict(weights='http://example.org/w.pth'), dict(weights='/etc/passwd.pth'), dict(pretrained=True),
                 dict(weights='a1_in1k', pretrained=True)):
        spoiled = record | dict(config=record['config'] | dict(backbone=record['config']['backbone'] | more))
        write(tmp_path/'m.safetensors', tensors, dict(record=json.dumps(spoiled)))
        assert torch.equal(load_model(tmp_path/'m').head.linear.weight, load_model(model).head.linear.weight)


def test_models_of_every_precision_come_back(tmp_path):
    net = Pooled(create_backbone('test_resnet', pretrained=False))
    extra = {f'train/{t}'.replace('torch.', ''): torch.ones(2, 3).to(t) for t in
             (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)}
    extra |= {'train/none': torch.empty(0, 3), 'train/one': torch.tensor(7)}
    tensors, _ = read_tensors(save_model(net.to(torch.bfloat16), tmp_path/'m', extra))
    for k, v in (net.state_dict() | extra).items():
        assert torch.equal(tensors[k].float(), v.float()) and tensors[k].dtype == v.dtype


# made up files

def write(path, tensors, metadata, header=None):
    "A safetensors file of arrays, with whatever `header` makes of its header."
    maps = lay_out(path, {n: (a.dtype, a.shape) for n, a in tensors.items()}, metadata)
    for name, a in tensors.items(): maps[name][...] = a
    if header: path.write_bytes(header(path.read_bytes()))


LEAVES = [None, [], {}, '', 'x', 0, -1, 3, 10**23, 1.5, True, [None], ['x', 5], {'x': None}, 'é\0', '9'*50, '[' * 3000]


def mutations(value, rng):
    "A copy of a JSON value in which one part, chosen by chance, is gone, doubled, or something else."
    value = json.loads(json.dumps(value))
    places = [(value, k) for k in value]
    for parent, key in places:
        child = parent[key]
        if isinstance(child, dict): places += [(child, k) for k in child]
        if isinstance(child, list): places += [(child, k) for k in range(len(child))]
    parent, key = rng.choice(places)
    what = rng.choice(['gone', 'other', 'other', 'other', 'double'])
    if what == 'gone': del parent[key]
    elif what == 'double' and isinstance(parent, list): parent.append(parent[key])
    else: parent[key] = rng.choice(LEAVES)
    return value


def spoil(data, seed):
    "The bytes of a file with something changed by chance: a field of its header, of the JSON in its metadata, or bytes."
    rng = random.Random(seed)
    size = int.from_bytes(data[:8], 'little')
    header, body = json.loads(data[8:8 + size]), data[8 + size:]
    way = rng.choice(['metadata', 'metadata', 'metadata', 'inside', 'inside', 'header', 'bytes', 'cut', 'body'])
    if way == 'bytes':
        data = bytearray(data)
        for _ in range(rng.randint(1, 4)): data[rng.randrange(8 + size)] = rng.randrange(256)
        return bytes(data)
    if way == 'cut': return data[:rng.randrange(len(data))]
    if way == 'body': return data[:8 + size] + bytes(rng.randrange(256) if rng.random() < .02 else b for b in body)
    inside = [k for k in header['__metadata__'] if k not in ('format', 'checksum')]
    if way == 'inside' and inside:
        key = rng.choice(inside)
        text = json.loads(header['__metadata__'][key])
        header['__metadata__'][key] = json.dumps(mutations(text, rng) if text else rng.choice(LEAVES))
    elif way == 'metadata': header['__metadata__'][rng.choice([*header['__metadata__'], 'new'])] = rng.choice(
        [json.dumps(leaf) for leaf in LEAVES] + LEAVES[3:5] + LEAVES[-1:])
    else: header = mutations(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + body


def use(kind, path, verify=False):
    "Read a file as its kind is read, and use what came. What faiss wrote is trusted if the file's checksum is right."
    if kind == 'model':
        read_record(path)
        return load_model(path)(torch.zeros(1, 3, 64, 64))
    if kind == 'features': features = Features.load(path)
    elif kind == 'part': features = check_part(path)
    else:
        index = Index.load(path, verify)
        index.info()
        if len(index): index.search(np.ones(index.store.dim, np.float32), 1)
        features = index.store.features
    for name in features.names: assert features[name].shape == (len(features), features[name].shape[1])
    return features.table.to_dict(), features.record, [np.asarray(features[name]).sum() for name in features.names]


def check_part(path):
    from fgir.features.unfinished import UnfinishedFeatures

    store = UnfinishedFeatures(gallery().table, {}, 'float32', path.parent/'out')
    store.part, store.marks = path, path.with_suffix('.done')
    np.zeros(40, bool).tofile(store.marks)
    store._map()
    return Features(store.arrays, store.table)


@pytest.fixture(scope='module')
def kinds(tmp_path_factory, model):
    "The bytes of a file of each kind."
    path = tmp_path_factory.mktemp('kinds')/'f.safetensors'
    how = dict(tfms='cgd', size=32, crop=False, mean=[.5]*3, std=[.5]*3, skipped={'a': 'b'}, note='', date='now',
               source=dict(model=None, backbone='resnet18'))
    found = {'model': model.read_bytes(), 'features': gallery(**how).save(path).read_bytes()}
    for kind in ('flat', 'hnsw'): found[kind] = Index.build(gallery(**how), kind=kind).save(path, force=True).read_bytes()
    return found | {'part': found['features']}


def survives(kinds, tmp_path, kind, seed):
    "None if a spoiled file is read or refused by name; else what went wrong."
    path = tmp_path/f'{kind}.safetensors'
    path.write_bytes(spoil(kinds[kind], seed))
    engine = kinds[kind][kinds[kind].find(b'IHNf'):]
    try: use(kind, path, verify=not path.read_bytes().endswith(engine))
    except (ValueError, FileNotFoundError) as e:
        if str(path) not in str(e) or '\n' in str(e) or type(e) not in (ValueError, FileNotFoundError): return f'{seed}: {e!r}'
    except Exception as e: return f'{seed}: {e!r}'


@pytest.mark.parametrize('kind, first, n', [('features', 0, 100), ('flat', 1000, 80), ('hnsw', 2000, 80), ('model', 3000, 25),
                                            ('part', 4000, 30)])
def test_a_spoiled_file_is_read_or_refused_by_name(kinds, tmp_path, kind, first, n):
    "Never another exception, a hang or a crash. To look at one: `survives(kinds, tmp_path, kind, seed)`."
    assert not [e for seed in range(first, first + n) if (e := survives(kinds, tmp_path, kind, seed))]


def with_metadata(**changes):
    def header(data):
        size = int.from_bytes(data[:8], 'little')
        head = json.loads(data[8:8 + size])
        for key, value in changes.items():
            if value is None: del head['__metadata__'][key]
            else: head['__metadata__'][key] = value if isinstance(value, str) else json.dumps(value)
        text = json.dumps(head).encode()
        return len(text).to_bytes(8, 'little') + text + data[8 + size:]
    return header


@pytest.mark.parametrize('kind, header, says', [
    ('features', with_metadata(about=None), 'about is missing'), ('features', with_metadata(attrs=None), 'attrs is missing'),
    ('features', with_metadata(record=None), 'record is missing'), ('features', with_metadata(record='null'), 'expected a mapping'),
    ('features', with_metadata(record='[]'), r'record: expected a mapping, found \[\]'),
    ('features', with_metadata(attrs=dict(root=5)), 'attrs.root: expected text or nothing, found 5'),
    ('features', with_metadata(record=dict(source='resnet18')), 'record.source: expected'),
    ('features', with_metadata(record=dict(source=dict(model=5))), 'record.source.model: expected text'),
    ('features', with_metadata(about=dict(names='x', columns=[])), 'about.names: expected a list'),
    ('features', with_metadata(about=dict(names=['y'], columns=[])), "array 'y' is not in it"),
    ('features', with_metadata(about='{'), 'about: not JSON'), ('features', with_metadata(about='[' * 10**5), 'about: not JSON'),
    ('features', lambda d: d.replace(b'"F32", ', b'"BF16",').replace(b'[40, 8]', b'[40,16]'), 'BF16'),
    ('features', lambda d: d.replace(b'"F32"', b'"F99"'), 'type that is not known'),
    ('features', lambda d: (2**40).to_bytes(8, 'little') + d[8:], 'a header of 1099511627776 bytes'),
    ('flat', with_metadata(index='null'), 'index: expected a mapping'),
    ('flat', with_metadata(index=dict(version='1', name='x', kind='flat', settings={})), 'index.version: expected a whole number'),
    ('flat', with_metadata(index=dict(version=1, name='x', kind=None, settings={})), 'index.kind: expected text'),
    ('hnsw', with_metadata(index=dict(version=1, name='x', kind='hnsw', settings=dict(look='far'))), 'settings.look: expected'),
    ('hnsw', with_metadata(index=dict(version=1, name='x', kind='ivfpq', settings={})), 'its engine is not one of ivfpq'),
    ('model', with_metadata(record='null'), 'not a model that fgir saved'), ('model', with_metadata(record=None), 'not a model'),
    ('model', with_metadata(record='{'), 'record: not JSON')])
def test_what_a_header_lacks_is_named(kinds, tmp_path, kind, header, says):
    path = tmp_path/f'{kind}.safetensors'
    path.write_bytes(header(kinds[kind]))
    with pytest.raises(ValueError, match=says) as e: use(kind, path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)


def test_an_engine_of_another_gallery_is_refused(tmp_path):
    "The checksum comes first; without it what the engine holds is compared with the vectors."
    path = tmp_path/'g.safetensors'
    small, large = (Index.build(gallery(n, dim=d), kind='hnsw') for n, d in ((30, 8), (40, 8)))
    small.store.engines = large.store.engines
    small.save(path)
    says = 'g.safetensors: engine: it is not one of hnsw over these 30 rows of 8 numbers'
    with pytest.raises(ValueError, match=says): Index.load(path)
    data = path.read_bytes()
    at = data.find(b'IHNf')
    path.write_bytes(data[:at] + bytes(64) + data[at + 64:])
    with pytest.raises(ValueError, match='checksum differs'): Index.load(path)
    with pytest.raises(ValueError, match='its engine is not one of hnsw'): Index.load(path, verify=False)


def test_check_says_where():
    kind = {'a': (int, type(None)), 'b': [str], 'c': [[str, bool]], 'd': ({str: float}, type(None))}
    good = {'b': [], 'c': [['x', True]], 'd': {'y': 1}, 'more': object}
    assert check(good, kind, 'f') is good
    for wrong, says in [({'a': True}, 'f.a: expected a whole number or nothing, found True'), ({'b': 'x'}, 'f.b: expected a list'),
                        ({'b': ['x', 1]}, r'f.b\[1\]: expected text'), ({'c': [['x']]}, r'f.c\[0\]: expected 2 values'),
                        ({'d': {'y': 'z'}}, "f.d.y: expected a number, found 'z'"), ({'d': []}, 'f.d: expected a mapping')]:
        with pytest.raises(ValueError, match=says): check(good | wrong, kind, 'f')


def test_what_cannot_be_read_is_not_written(tmp_path):
    features = gallery()
    for wrong in (dict(source='resnet18'), dict(mean=['x']), dict(date=5)):
        with pytest.raises(ValueError, match=f'record.{next(iter(wrong))}.*: expected'):
            Features(features.arrays, features.table, wrong).save(tmp_path/'f.safetensors')
    features.table.attrs['root'] = 5
    with pytest.raises(ValueError, match='table.attrs.root: expected text'): features.save(tmp_path/'f.safetensors')
    assert not list(tmp_path.iterdir())


def test_mapped_arrays_stay_when_the_file_goes(tmp_path):
    path = gallery().save(tmp_path/'f.safetensors')
    features = Features.load(path)
    kept = features['x'].copy()
    path.unlink()
    np.testing.assert_array_equal(features['x'], kept)
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match='no such file of features'): Features.load(path)
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match='no such file of features'): Features.load(path)
    assert time.monotonic() - begun < 5
    with pytest.raises(ValueError, match='not a safetensors file'): OpenFile(os.devnull)
