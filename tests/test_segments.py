"A gallery's file that grows: what is in it, when it is written anew, beside readers and other writers, killed, full, spoiled."
import json
import os
import resource
import shutil
import signal

import numpy as np
import pytest
from processes import Fresh, begin
from test_files import gallery, spoil, use, whole

import fgir.data.files
import fgir.gallery.faiss
import fgir.gallery.segments
from fgir.data.files import OpenFile, finish, lay_out, locked
from fgir.features.store import Features, Stacked
from fgir.gallery.index import Index, features_of

SHOWN = ['query', 'rank', 'score', 'path', 'label', 'name']
SMALL = dict(flat={}, hnsw=dict(links=16), ivfpq=dict(bytes=2, cells=4, look=4))


def parts_of(path):
    with OpenFile(path, grows=True) as file: return 1 + len(file.more)


def grown(path, n=400, more=40, kind='flat'):
    "A gallery with a segment of images and one of removed ones."
    Index.build(gallery(n), kind=kind, **SMALL[kind]).save(path)
    change(path, lambda index: index.add(gallery(more, first=n)))
    change(path, lambda index: index.remove(['3.jpg', f'{n + 1}.jpg']))
    assert parts_of(path) == 3
    return path


def change(path, how):
    index = Index.load(path, verify=False)
    how(index)
    index.save(path, force=True)
    return index


# the same answers

def test_what_grew_answers_as_what_was_built_at_once_to_the_last_bit(tmp_path):
    "Added, replaced and removed by turns, in files and in memory; alone, in a batch, behind a filter, with equal vectors."
    path, everything = tmp_path/'g.safetensors', gallery(1500)
    everything = Features({'x': everything['x'].astype('float16')}, everything.table, everything.record)
    everything['x'][100:140] = everything['x'][1000:1040] = everything['x'][7]
    rng, rows = np.random.default_rng(0), list(range(1000))
    Index.build(everything.select(rows)).save(path)
    kept = Index.load(path)
    kept.search(everything['x'][0])
    for n in (1000, 1080, 1180):
        new = list(range(n, n + 60))
        gone, again = rng.choice(rows, 8, replace=False), rng.choice(rows, 5, replace=False)
        for index in (Index.load(path, verify=n % 20 == 0), kept):
            index.add(everything.select([r for r in new if r not in rows]))
            index.remove([f'{r}.jpg' for r in gone])
            index.update(everything.select(again))
            if index is not kept: index.save(path, force=True)
        rows = [r for r in [*rows, *(r for r in new if r not in rows)] if r not in {*gone, *again}] + again.tolist()
        at_once = Index.build(everything.select(rows))
        for query in (everything['x'][::100] + .1, everything['x'][7:8]):
            for filter in (None, dict(label=[1, 3])):
                expected = at_once.search(query, 60, filter)[SHOWN]
                for index in (Index.load(path), Index.load(path, verify=False), kept):
                    assert index.search(query, 60, filter)[SHOWN].equals(expected)
        left = features_of(path)
        assert left.table.equals(everything.select(rows).table) and np.array_equal(left['x'], everything.select(rows)['x'])
        assert parts_of(path) > 1


@pytest.mark.parametrize('kind', ['hnsw', 'ivfpq'])
def test_a_large_gallery_gets_an_engine_beside_the_first(tmp_path, monkeypatch, kind):
    "In segments; a file that is written anew has one engine."
    monkeypatch.setattr(fgir.gallery.faiss, '_FEW', 260)
    path, everything = tmp_path/'g.safetensors', gallery(3000)
    Index.build(everything.select(range(2400)), kind=kind, **SMALL[kind]).save(path)
    sizes = {2600: [2400], 2670: [2400, 270], 2935: [2400, 535], 3000: [3000]}
    for n, wanted in sizes.items():
        index = change(path, lambda index, n=n: index.add(everything.select(range(len(index), n))))
        for opened in (index, Index.load(path)):
            assert [len(engine) for engine in opened.store.engines] == wanted
            found = opened.search(everything['x'][:n:40], 1)
            assert (found['path'] == everything.table['path'][:n:40].to_numpy()).mean() > .98
    assert parts_of(path) == 1


def test_vectors_in_several_places_are_read_as_one():
    arrays = [np.random.default_rng(n).normal(size=(n, 3)) for n in (4, 0, 1, 7)]
    stacked, whole = Stacked(arrays), np.concatenate(arrays)
    assert stacked.shape == whole.shape == np.asarray(stacked).shape and len(stacked) == 12 and stacked.dtype == whole.dtype
    for rows in (3, -1, slice(2, 9), slice(None), [11, 0, 4, 4], np.arange(12) % 2 == 0, np.array([[1, 5], [9, 2]])):
        assert np.array_equal(stacked[rows], whole[rows])
    with pytest.raises(IndexError): stacked[12]


# what a change costs

def test_a_change_writes_what_it_changes(tmp_path):
    path = Index.build(gallery(5000)).save(tmp_path/'g.safetensors')
    before = path.read_bytes()
    for how, most in [(lambda index: index.add(gallery(100, first=5000)), 12_000), (lambda index: index.remove('7.jpg'), 3000)]:
        change(path, how)
        after = path.read_bytes()
        assert after.startswith(before) and len(after) - len(before) < most
        before = after
    assert os.listdir(tmp_path) == ['g.safetensors']


def test_when_a_file_is_written_anew(tmp_path, monkeypatch):
    path, other = tmp_path/'g.safetensors', tmp_path/'h.safetensors'
    def parts(*changes):
        path.unlink(missing_ok=True)
        grown(path)
        for how in changes: change(path, how)
        return parts_of(path)
    assert parts() == 3 and parts(lambda i: i.add(gallery(59, first=440))) == 4
    assert parts(lambda i: i.add(gallery(60, first=440))) == 1
    assert parts(lambda i: i.remove([f'{n}.jpg' for n in range(10, 119)])) == 1
    assert parts(lambda i: None) == 1
    monkeypatch.setattr(fgir.gallery.segments, '_SEGMENTS', 3)
    assert parts(lambda i: i.remove('9.jpg')) == 1
    monkeypatch.undo()
    path.unlink()
    index = Index.load(grown(path))
    index.remove('9.jpg')
    index.save(other)
    assert parts_of(other) == 1 and parts_of(path) == 3 and len(Index.load(other)) == len(Index.load(path)) - 1
    index.save(other, force=True)
    assert whole(Index.load(other))


def test_a_store_that_is_saved_again_and_again_stays_the_one_it_is(tmp_path):
    "Also after its file was written anew, with other numbers for its rows."
    path, index = tmp_path/'g.safetensors', Index.build(gallery(100))
    for n in range(100, 115):
        index.add(gallery(1, first=n))
        if n % 3: index.remove(f'{n - 50}.jpg')
        index.save(path, force=True)
        assert len(Index.load(path)) == len(index) and whole(Index.load(path))
    assert set(features_of(path).table['path']) == {f'{n}.jpg' for n in range(115) if not 50 <= n < 65 or (n + 50) % 3 == 0}


# other programs

def test_a_copy_is_a_gallery(tmp_path):
    copy = shutil.copy(grown(tmp_path/'g.safetensors'), tmp_path/'h.safetensors')
    change(copy, lambda index: index.add(gallery(5, first=900)))
    assert len(Index.load(copy)) == 443 and len(Index.load(tmp_path/'g.safetensors')) == 438


def test_who_comes_second_does_not_mix_two_galleries(tmp_path):
    "As ever the last one wins, whole; the command has one after the other."
    path = grown(tmp_path/'g.safetensors')
    first, second = Index.load(path), Index.load(path)
    first.add(gallery(5, first=500))
    first.save(path, force=True)
    second.add(gallery(4, first=600))
    second.save(path, force=True)
    assert len(Index.load(path)) == 442 and whole(Index.load(path)) and parts_of(path) == 1


def test_a_file_that_cannot_be_locked_is_written_anew(tmp_path, monkeypatch):
    path = grown(tmp_path/'g.safetensors')
    def none(*_): raise OSError(38, 'Function not implemented')
    monkeypatch.setattr(fgir.data.files.fcntl, 'flock', none)
    change(path, lambda index: index.add(gallery(5, first=500)))
    assert parts_of(path) == 1 and len(Index.load(path)) == 443


def add_forever(path):
    for n in range(10**6): change(path, lambda index, n=n: index.update(gallery(1 + n % 3, first=n % 600)))


def test_readers_beside_a_writer_and_writers_killed_at_any_moment(tmp_path):
    "Each load is of one whole state. What a killed writer left is not seen, and the next one takes its place."
    path = grown(tmp_path/'g.safetensors')
    for delay in (.05, .11, .18):
        writer = begin(add_forever, path)
        until, sizes = os.times().elapsed + delay, []
        while os.times().elapsed < until or not sizes:
            index = Index.load(path, verify=len(sizes) % 2 == 0)
            assert whole(index) and len(index) >= 438
            sizes.append(len(index))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL and whole(Index.load(path))
    change(path, lambda index: index.add(gallery(1, first=5000)))
    assert [p.name for p in tmp_path.iterdir()] == ['g.safetensors'] and '5000.jpg' in set(features_of(path).table['path'])


def die_before(name, path):
    def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
    setattr(fgir.gallery.segments, name, die)
    change(path, lambda index: index.add(gallery(9, first=700)))


@pytest.mark.parametrize('name', ['_seal', 'finish'])
def test_a_segment_counts_when_it_is_complete(tmp_path, name):
    path = grown(tmp_path/'g.safetensors')
    before = path.read_bytes()
    writer = begin(die_before, name, path)
    writer.join()
    after = path.read_bytes()
    assert writer.exitcode == -signal.SIGKILL and len(after) > len(before) and after.startswith(before)
    assert len(Index.load(path)) == 438 and parts_of(path) == 3
    change(path, lambda index: index.add(gallery(9, first=800)))
    assert len(Index.load(path)) == 447 and whole(Index.load(path)) and parts_of(path) == 4


def add_on_full_disk(path, n):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + n, size + n))
    change(path, lambda index: index.add(gallery(50, first=900)))


@pytest.mark.processes
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = grown(tmp_path/'g.safetensors')
    before = path.read_bytes()
    done = Fresh(add_on_full_disk, path, 1000).end()
    assert done.returncode and 'OSError' in done.stderr and str(path) in done.stderr
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['g.safetensors']


# spoiled

def test_what_is_damaged_is_found_and_not_written_anew(tmp_path):
    path = grown(tmp_path/'g.safetensors')
    data = path.read_bytes()
    with OpenFile(path, grows=True) as file: places = [(part.start + part.end)//2 for part in [file, *file.more]]
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1:])
        with pytest.raises(ValueError, match=f'{path}: not what was written, its checksum differs'): Index.load(path)
        with pytest.raises(ValueError, match='checksum differs'): change(path, lambda index: index.add(gallery(99, first=700)))
        assert len(path.read_bytes()) == len(data)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    "Unless it is cut where a part ends, or so soon after that its part does not count."
    path = grown(tmp_path/'g.safetensors')
    data = path.read_bytes()
    with OpenFile(path, grows=True) as file: ends = [part.end for part in [file, *file.more]]
    for end in [*range(ends[0] + 10, len(data), 997), ends[1] + 20, len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match='not all of one'): Index.load(path)
    for more in (b'0', b'\0'*3 + b'7', b'a photograph of a bird', bytes(64) + b'1'):
        path.write_bytes(data + more)
        if more.startswith(bytes(16)): assert len(Index.load(path)) == 438
        else:
            with pytest.raises(ValueError, match='not all of one'): Index.load(path)


@pytest.mark.parametrize('kind', ['flat', 'hnsw'])
def test_a_spoiled_segment_is_read_or_refused_by_name(tmp_path, kind, monkeypatch):
    "Never another exception, a hang or a crash."
    monkeypatch.setattr(fgir.gallery.faiss, '_FEW', 30)
    path = grown(tmp_path/'g.safetensors', kind=kind)
    data = path.read_bytes()
    with OpenFile(path, grows=True) as file: at, ends = file.more[0].at, [part.end for part in file.more]
    for seed in range(60):
        path.write_bytes(data[:at] + spoil(data[at:ends[0]], seed) + data[ends[0]:])
        try: use(kind, path, verify=kind == 'hnsw')
        except ValueError as e: assert str(path) in str(e) and '\n' not in str(e), seed


def put(path, changes):
    "Put a segment behind a file that says something else than ours do; the checksum is right."
    with OpenFile(path, 'r+', grows=True) as file:
        arrays = {'x': np.ones((2, 8), np.float32), 'table.path': np.frombuffer(b'a\0b', np.uint8), 'table.label': np.arange(2),
                  'table.name': np.frombuffer(b'a\0b', np.uint8), 'table.split': np.frombuffer(b'a\0b', np.uint8)}
        arrays |= {k: v for k, v in changes.items() if isinstance(v, np.ndarray)}
        texts = {k: v for k, v in changes.items() if not isinstance(v, np.ndarray)}
        metadata = {k: v for k, v in file.metadata.items() if k != 'checksum'} | dict(segment='{"first": 40}') | texts
        at = file.behind
        shapes = {k: (v.dtype, v.shape) for k, v in arrays.items()}
        maps = lay_out(file, shapes, {k: v for k, v in metadata.items() if v} | dict(checksum='0'*32))
        for name, array in arrays.items(): maps[name][...] = array
        fgir.gallery.segments._seal(file.file, at)
        finish(file)


ABOUT = dict(version=1, name='x', kind='flat', settings={})


@pytest.mark.parametrize('changes, says', [
    ({}, None), ({'segment': None}, 'segment is missing'), ({'segment': '{"first": 41}'}, 'a part of it is missing'),
    ({'index': json.dumps(ABOUT | dict(kind='hnsw'))}, 'of another gallery'), ({'index': None}, 'index is missing'),
    ({'index.removed': np.array([3])}, None), ({'index.removed': np.array([42])}, 'index.removed is not of rows'),
    ({'index.removed': np.array([-1])}, 'index.removed is not of rows'), ({'index.removed': np.array([.5])}, 'index.removed'),
    ({'x': np.ones((2, 9), np.float32)}, 'of another gallery'), ({'x': np.ones((2, 8))}, 'of another gallery'),
    ({'x': np.zeros((2, 8), np.float32)}, 'have no direction')])
def test_what_a_segment_must_say(tmp_path, changes, says):
    path = Index.build(gallery(40)).save(tmp_path/'g.safetensors')
    put(path, changes)
    if says is None: assert Index.load(path).info()['images'] in (41, 42)
    else:
        with pytest.raises(ValueError, match=says) as e: Index.load(path)
        assert str(path) in str(e.value) and '\n' not in str(e.value)


def test_features_of_a_gallery_that_grew_are_read_as_such(tmp_path):
    path = grown(tmp_path/'g.safetensors')
    with pytest.raises(ValueError, match='a gallery that has grown; `features_of` reads it'): Features.load(path)
    with pytest.raises(ValueError, match='not all of one'): OpenFile(path)
    assert len(features_of(path)) == 438


def test_a_lock_on_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError), locked(tmp_path/'none'): pass
