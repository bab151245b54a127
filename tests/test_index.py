"The index: agreement with the exact search, refusals, photographs, galleries that change, files, databases, pictures."
import re
import resource
import shutil
import signal
import sys

import faiss
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from processes import Fresh
from torch import nn

import fgir.gallery.faiss
import fgir.gallery.milvus
from fgir.data.fish import synth_dataset
from fgir.data.images import BadImage
from fgir.data.table import image_path, make_table
from fgir.features.descriptors import ColorHistogram
from fgir.features.exact import neighbours
from fgir.features.extraction import extract
from fgir.features.store import Features
from fgir.gallery.faiss import KINDS, RANGES, Engine, FaissStore, complete_settings, unit_rows
from fgir.gallery.index import Index, features_of, photo_table, show_search
from fgir.gallery.milvus import milvus_client, new_milvus_store

class Net(nn.Module):
    "A few convolutions; `seed` makes the weights."
    def __init__(self, seed=0):
        super().__init__()
        self.config = dict(kind='small')
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2))

    def forward(self, x): return {'mean': self.body(x).mean((2, 3)), 'max': self.body(x).amax((2, 3))}


@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp('fish')/'fish', n_classes=6, n_per_class=6, size=48, progress=False)


@pytest.fixture(scope='module')
def features(fish): return extract(Net(), fish, size=48, progress=False)


def vectors(table, array): return Features({'v': array}, table, {})


def rows_of(found, k): return found['row'].to_numpy().reshape(-1, k)


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64'])
@pytest.mark.parametrize('n_queries', [1, 36])
def test_agrees_with_the_exact_search(fish, dtype, n_queries):
    array = np.random.default_rng(0).normal(size=(36, 24)).astype(dtype)
    scores, rows = neighbours(array[:n_queries], array, k=9)
    found = Index.build(vectors(fish, array)).search(array[:n_queries], 9)
    np.testing.assert_array_equal(rows_of(found, 9), rows)
    np.testing.assert_allclose(found['score'].to_numpy().reshape(-1, 9), scores, atol=1e-6)
    assert found['query'].tolist() == [q for q in range(n_queries) for _ in range(9)]
    assert found['rank'].tolist() == list(range(1, 10))*n_queries


def test_equal_scores_stand_in_the_order_of_the_gallery(fish):
    array = np.eye(4, dtype=np.float32)[np.arange(36) % 4]
    found = Index.build(vectors(fish, array)).search(array[:1], 36)
    assert rows_of(found, 36)[0].tolist() == [*range(0, 36, 4), *(i for i in range(36) if i % 4)]


def test_the_table_is_told_of_each_row(fish, features):
    found = Index.build(features, 'max').search(features['max'], 4)
    for column in ('path', 'label', 'name', 'split'):
        assert found[column].tolist() == fish[column].iloc[found['row']].tolist()
    assert found['row'][::4].tolist() == list(range(36)) and found['score'].between(-1, 1).all()


def test_length_and_type_of_the_query_do_not_matter(features):
    index, q = Index.build(features), features['mean'][3]
    expected = index.search(q)
    t = torch.tensor(q)
    for other in (q[None], q*1e-20, q.astype(float)*1e30, t, t.clone().requires_grad_(), q.tolist()):
        again = index.search(other)
        assert again['row'].tolist() == expected['row'].tolist()
        np.testing.assert_allclose(again['score'], expected['score'], atol=1e-6)
    assert index.search(torch.tensor(q).bfloat16())['row'][0] == 3


@pytest.mark.parametrize('query, message', [
    (np.ones(15), "15 numbers, but 'mean' of the gallery has 16"), (np.zeros(16), 'query, row 0'),
    (np.r_[np.ones((2, 16)), np.full((1, 16), np.nan)], 'query, row 2'), (np.full(16, np.inf), 'query, row 0'),
    (np.ones((1, 1, 16)), r'shape \(1, 1, 16\)')])
def test_queries_without_an_answer_are_refused(features, query, message):
    with pytest.raises(ValueError, match=message): Index.build(features).search(query)


@pytest.mark.parametrize('k', [0, -1, 37])
def test_k_is_between_one_and_the_gallery(features, k):
    with pytest.raises(ValueError, match='k: expected 1 to 36'): Index.build(features).search(features['mean'], k)


def test_blocks_make_the_same_gallery_and_name_the_bad_row(fish, monkeypatch):
    array = np.random.default_rng(0).normal(size=(36, 5))
    expected = Index.build(vectors(fish, array)).search(array, 3)
    monkeypatch.setattr(fgir.gallery.faiss, 'BLOCK', 7)
    assert Index.build(vectors(fish, array)).search(array, 3).equals(expected)
    array[23] = 0
    with pytest.raises(ValueError, match='gallery, row 23'): Index.build(vectors(fish, array))


def test_what_cannot_be_built_is_said(features):
    with pytest.raises(ValueError, match="kind: expected one of .*found 'tree'"): Index.build(features, kind='tree')
    with pytest.raises(KeyError, match='there are mean, max'): Index.build(features, 'median')
    with pytest.raises(ValueError, match='one image or more'): Index.build(features.select([False]*36))


def test_nobody_elses_threads_are_touched(features):
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    Index.build(features).search(features['mean'])
    assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == before


def test_unit_rows_leave_their_input_alone():
    x = np.array([[3., 4]])
    assert unit_rows(x).dtype == np.float32 and x.tolist() == [[3, 4]]


# galleries that change

def many(n=600, d=16, seed=0, first=0):
    rng = np.random.default_rng([seed, first])
    labels = np.arange(first, first + n) % 20
    x = np.random.default_rng(9).normal(size=(20, d))[labels] + .5*rng.normal(size=(n, d))
    paths, names = [f'{i}.jpg' for i in range(first, first + n)], [f'class {c}' for c in labels]
    table = make_table(paths, labels, names, 'test', '/photos', 'many')
    return Features({'x': x.astype(np.float32)}, table, dict(model='m', tfms='cgd'))


SMALL = dict(flat={}, hnsw=dict(links=16, build=80, look=256), ivfpq=dict(bytes=8, cells=4, look=4))


def both(kind, features, where, name=None):
    "A gallery of a kind, or one in a database."
    if kind == 'milvus': return Index.connect(str(where/'g.db'), features, name)
    return Index.build(features, name, kind=kind, **SMALL[kind])


@pytest.mark.parametrize('kind', [*KINDS, 'milvus'])
def test_a_gallery_that_grew_and_shrank_is_the_one_that_is_left(tmp_path, kind):
    "Added, replaced and removed in turns: what is found is what an exact search finds among the images that are there."
    rng, everything = np.random.default_rng(0), many(900)
    index = both(kind, everything.select(range(400)), tmp_path)
    vectors, there = dict(enumerate(everything['x'])), set(range(400))
    for step in range(4):
        new = list(range(400 + 100*step, 500 + 100*step))
        index.add(everything.select(new))
        gone = rng.choice(sorted(there), 60, replace=False).tolist()
        index.remove([f'{i}.jpg' for i in gone])
        there = (there | set(new)) - set(gone)
        changed = rng.choice(sorted(there), 20, replace=False).tolist()
        other = many(900, seed=step + 1).select(changed)
        index.update(other)
        vectors |= dict(zip(changed, other['x'], strict=True))
        assert len(index) == len(there)
    rows = sorted(there)
    scores, near = neighbours(everything['x'][:30], np.stack([vectors[i] for i in rows]), 5)
    found = index.search(everything['x'][:30], 5)
    assert (found['path'].to_numpy().reshape(30, 5) == np.array([f'{i}.jpg' for i in rows])[near]).mean() > .98
    np.testing.assert_allclose(found['score'][::5], scores[:, 0], atol=1e-5)
    assert [f'class {label}' for label in found['label']] == found['name'].tolist()


def search_with_patched_faiss():
    import faiss.contrib.torch_utils  # noqa: F401

    for kind in SMALL:
        features = many()
        index = Index.build(features, kind=kind, **SMALL[kind])
        index.remove(features.table['path'][:300])
        found = index.search(features['x'][300:310], 5, filter={'name': [f'class {c}' for c in range(15)]})
        assert set(found['name']) <= {f'class {c}' for c in range(15)}
        assert (index.search(features['x'][400:410], 1)['row'] == np.arange(400, 410)).all()
        index.add(many(20, first=600))
        assert len(index) == 320


@pytest.mark.processes
def test_a_process_in_which_faiss_was_patched_for_torch():
    "pytorch-metric-learning imports a module of faiss that replaces the methods of its indexes."
    done = Fresh(search_with_patched_faiss).end()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('left', [100, 0])
def test_a_gallery_that_lost_most_of_its_images_is_kept(tmp_path, kind, left):
    "Even where too few are left for IVF-PQ to learn from."
    features, rng = many(350), np.random.default_rng(0)
    index = Index.build(features, kind=kind, **SMALL[kind])
    gone = rng.permutation(350)[left:]
    index.remove(features.table['path'].iloc[gone].tolist())
    index.save(tmp_path/'g.safetensors')
    again = Index.load(tmp_path/'g.safetensors')
    assert len(again) == left
    if left: assert not set(again.search(features['x'][gone[:20]], 5)['path']) & set(features.table['path'].iloc[gone])


@pytest.mark.parametrize('kind', [*KINDS, 'milvus'])
def test_filters_keep_what_they_say(tmp_path, kind, monkeypatch):
    features = many()
    index = both(kind, features, tmp_path)
    labels = features.table['label'].to_numpy()
    for few in (10**6, 0):
        monkeypatch.setattr(fgir.gallery.faiss, '_FEW', few)
        found = index.search(features['x'][:8], 4, filter=dict(label=[3, np.int64(5)], split='test'))
        rows = np.flatnonzero(np.isin(labels, [3, 5]))
        near = neighbours(features['x'][:8], features['x'][rows], 4)[1]
        hits = found['path'].to_numpy().reshape(8, 4) == np.array([f'{i}.jpg' for i in rows])[near]
        assert set(found['label']) <= {3, 5} and hits.mean() > .8
    assert len(index.search(features['x'][0], 50, filter=dict(path='7.jpg'))) == 1
    for hostile in ('" or label >= 0 or name == "', "' or 1==1 or '", 'class 3"]) or path in (["1.jpg', '\\" or true or "'):
        with pytest.raises(ValueError, match='filter: no image'): index.search(features['x'][0], 5, filter=dict(name=hostile))
    with pytest.raises(ValueError, match="filter: no column 'color', there are path"):
        index.search(features['x'][0], 5, filter={'color': 1})
    with pytest.raises(ValueError, match='no column'): index.search(features['x'][0], 5, filter={'label >= 0 or label': 1})


def in_order(kind, n=2000, d=16):
    "Features in 20 clusters one after the other, or in order of one direction."
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, d)).astype(np.float32)
    if kind == 'clustered': x = 3*rng.normal(size=(20, d)).repeat(n//20, 0) + x
    else: x = x[x[:, 0].argsort()]
    table = make_table([f'{i}.jpg' for i in range(n)], np.arange(n)*20//n, np.arange(n)*20//n, 'test', '/photos', 'many')
    return Features({'x': x.astype(np.float32)}, table, {})


def found_of(index, q, rows, x, filter=None):
    "The share of the true ten nearest among some rows that is found; every query must get ten."
    near = neighbours(q, x[rows], 10)[1]
    found = index.search(q, 10, filter)
    assert (np.bincount(found['query'], minlength=len(q)) == 10).all() and (found['rank'].max() == 10)
    paths = found['path'].to_numpy().reshape(-1, 10).tolist()
    return np.mean([len(set(p) & {f'{rows[i]}.jpg' for i in n}) for p, n in zip(paths, near.tolist(), strict=True)])/10


@pytest.mark.parametrize('data', ['clustered', 'even'])
@pytest.mark.parametrize('kind', [*KINDS, 'milvus'])
def test_what_a_filter_or_a_removal_leaves_is_found(tmp_path, kind, data, monkeypatch):
    """Half of the clusters, or of a direction, may be found; queries come from there and from the other half. The engines
    search themselves, as they do where more than `_FEW` rows are left."""
    monkeypatch.setattr(fgir.gallery.faiss, '_FEW', 0)
    features = in_order(data)
    x, index = features['x'], both(kind, features, tmp_path)
    least = dict(hnsw=.95, ivfpq=.9).get(kind, 1)
    for labels in (range(1), range(10), range(19)):
        rows = np.flatnonzero(features.table['label'].isin(labels))
        for q in (x[rows[::50]], x[len(rows)::50]):
            assert found_of(index, q, rows, x, dict(label=list(labels))) >= least, labels
    index.remove([f'{i}.jpg' for i in range(1000, 2000)])
    for q in (x[:1000:50], x[1000::50]): assert found_of(index, q, np.arange(1000), x) >= least


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('data', ['clustered', 'even'])
def test_what_was_added_is_found(kind, data):
    "A gallery of the first tenth, to which the rest is added, of other clusters."
    features = in_order(data)
    index = Index.build(features.select(range(300)), kind=kind, **SMALL[kind])
    for rows in np.array_split(np.arange(300, 2000), 10): index.add(features.select(rows))
    assert found_of(index, features['x'][::50], np.arange(2000), features['x']) >= dict(flat=1, hnsw=.95, ivfpq=.9)[kind]


@pytest.mark.parametrize('kind', ['hnsw', 'ivfpq'])
def test_an_engine_takes_in_what_was_added_when_it_is_much(tmp_path, monkeypatch, kind):
    "Until then, also in a file, what it does not know is compared one by one."
    monkeypatch.setattr(fgir.gallery.faiss, '_FEW', 500)
    features = in_order('clustered')
    x, index = features['x'], Index.build(features.select(range(300)), kind=kind, **SMALL[kind])
    for end, known in ((600, [300]), (800, [300]), (850, [850]), (1300, [850]), (1360, [1360]), (1400, [1360])):
        index.add(features.select(range(len(index), end)))
        index = again(index, tmp_path)
        assert [len(engine) for engine in index.store.engines] == known
        assert found_of(index, x[:end:20], np.arange(end), x) >= .9
    index.update(features.select(range(200)))
    assert len(index) == 1400 and found_of(index, x[:1400:20], np.arange(1400), x) >= .9


def test_an_engine_of_other_rows_is_refused():
    engine = Index.build(many(300), kind='hnsw').store.engines[0]
    others = ('hnsw', many(299)), ('flat', many(301)), ('hnsw', many(300, d=8)), ('ivfpq', many(300)), ('flat', many(300))
    for kind, features in others:
        words = f'engine: it is not one of {kind} over'
        other = Engine(kind, features['x'].shape[1], np.arange(len(features)), lambda: engine.index)
        with pytest.raises(ValueError, match=words): FaissStore(features, 'x', kind, {}, [other]).ready()


def test_few_rows_are_compared_one_by_one(monkeypatch):
    "Exactly, by the engine's own rows or, for IVF-PQ, in blocks of the features."
    features = in_order('even')
    monkeypatch.setattr(fgir.gallery.faiss, 'BLOCK', 70)
    for kind in ('hnsw', 'ivfpq'):
        index = Index.build(features, kind=kind, **SMALL[kind])
        monkeypatch.setattr(type(index.store), '_walked', None)
        monkeypatch.setattr(type(index.store), '_decoded', None)
        assert found_of(index, features['x'][::50], np.arange(1900), features['x'], dict(label=list(range(19)))) == 1
        monkeypatch.undo()
        monkeypatch.setattr(fgir.gallery.faiss, 'BLOCK', 70)


@pytest.mark.parametrize('kind', ['hnsw', 'ivfpq'])
def test_copies_of_one_image_do_not_hide_the_others(kind):
    "A graph of equal rows falls into pieces; whoever asks for all images gets all."
    features = in_order('even', 1000)
    features['x'][100:900] = features['x'][0]
    index = Index.build(features, kind=kind, **SMALL[kind])
    for k in (10, 500, 1000): assert len(set(index.search(features['x'][950], k)['row'])) == k


# empty galleries

@pytest.mark.parametrize('kind', [*KINDS, 'milvus'])
@pytest.mark.parametrize('kept', ['in memory', 'in a file'])
def test_an_empty_gallery_is_a_gallery(tmp_path, kind, kept):
    index = both(kind, many(300), tmp_path)
    index.remove([f'{i}.jpg' for i in range(300)])
    if kept == 'in a file': index = again(index, tmp_path)
    assert len(index) == index.info()['images'] == 0 and not index.store.classes() and '0 images' in repr(index)
    for k in (1, 8): assert not len(index.search(many(3)['x'], k))
    assert {'query', 'rank', 'score', 'path'} <= set(index.search(many(3)['x']))
    with pytest.raises(ValueError, match='k: expected 1'): index.search(many(3)['x'], 0)
    with pytest.raises(ValueError, match='filter: no image of the gallery'): index.search(many(3)['x'], 2, dict(label=3))
    with pytest.raises(ValueError, match='3.jpg is not in the gallery'): index.remove('3.jpg')
    with pytest.raises(ValueError, match='the gallery is empty'): index.store.sample()
    index.add(many(30, first=300))
    if kept == 'in a file': index = again(index, tmp_path)
    found = index.search(many(30, first=300)['x'], 3)
    assert found['path'][::3].tolist() == [f'{i}.jpg' for i in range(300, 330)] and len(index) == 30
    assert found['label'].dtype.kind == 'i' and found['rank'].tolist() == [1, 2, 3]*30


def again(index, where):
    "A gallery, written and opened."
    if not hasattr(index.store, 'engines'): return Index.connect(str(where/'g.db'))
    return Index.load(index.save(where/'g.safetensors', force=True))


def test_a_photograph_asks_an_empty_gallery(fish, features):
    index = Index.build(features)
    index.remove(fish['path'].tolist())
    assert not len(index.search_image(image_path(fish, 3), Net(), k=3))
    index.add(features.select([3, 4]))
    assert index.search_image(image_path(fish, 3), Net(), k=3 - 1)['path'].tolist() == [fish['path'][4]]


# a GPU

@pytest.mark.parametrize('kind, n, free, suits', [
    ('flat', 10**6, 5e9, True), ('flat', 10**6, 4e9, False), ('flat', 10**6, 0, False), ('flat', 49_999, 80e9, False),
    ('hnsw', 10**6, 80e9, False), ('ivfpq', 10**6, .3e9, True), ('ivfpq', 10**6, .2e9, False), ('flat', 0, 80e9, False)])
def test_what_goes_to_a_gpu(kind, n, free, suits):
    "A large gallery, for which half of what is free is enough."
    assert fgir.gallery.faiss._suits_gpu(kind, n, 512, free) == suits


GPU = pytest.mark.skipif(not (faiss.get_num_gpus() and torch.cuda.is_available()), reason='needs a GPU, and faiss-gpu')


@GPU
@pytest.mark.parametrize('kind', ['flat', 'ivfpq'])
def test_cuda_a_gpu_gives_the_same_answers(monkeypatch, kind):
    "Built and searched on either: alone, in a batch, behind a filter, after changes, with equal rows."
    settings = dict(bytes=64, cells=64) if kind == 'ivfpq' else {}
    features = many(20_000, d=128)
    features['x'][50:90] = features['x'][7]
    on_cpu = Index.build(features, kind=kind, **settings)
    assert on_cpu.store.ready().engines[0].gpu is None
    monkeypatch.setattr(fgir.gallery.faiss, '_GPU_ROWS', 0)
    on_gpu, used = Index.build(features, kind=kind, **settings), []
    by_gpu = fgir.gallery.faiss._ask
    def watched(index, *args):
        used.append(type(index).__name__)
        return by_gpu(index, *args)
    monkeypatch.setattr(fgir.gallery.faiss, '_ask', watched)
    more, x = many(500, d=128, first=20_000), many(200, d=128, seed=5)['x']
    def same(filter=None):
        for query in (x, x[:1]):
            a, b = (index.search(query, 10, filter) for index in (on_gpu, on_cpu))
            assert (a['path'] == b['path']).mean() >= (1 if kind == 'flat' else .98)
            np.testing.assert_allclose(a['score'][::10], b['score'][::10], atol=1e-5)
    same()
    assert any(name.startswith('Gpu') for name in used)
    ties = on_gpu.search(features['x'][7], 41)['row'].tolist()
    assert ties == [7, *range(50, 90)]
    same(dict(label=[1, 2, 3]))
    for index in (on_gpu, on_cpu):
        index.add(more)
        index.remove(['3.jpg', '20003.jpg'])
    on_cpu.store.engines[0].gpu = None
    same()


@GPU
def test_cuda_a_gallery_built_on_a_gpu_is_opened_without_one(monkeypatch, tmp_path):
    features = many(20_000, d=128)
    with monkeypatch.context() as m:
        m.setattr(fgir.gallery.faiss, '_GPU_ROWS', 0)
        path = Index.build(features, kind='ivfpq', bytes=64, cells=64).save(tmp_path/'g.safetensors')
    assert found_of(Index.load(path), features['x'][::100], np.arange(20_000), features['x']) > .95


# settings

WRONG = dict(below=0, negative=-5, above=2**21, huge=2**40, float=3., bool=True, text='8', none=None, list=[8])


@pytest.mark.parametrize('kind, name', [(kind, name) for kind in KINDS for name in KINDS[kind]])
def test_a_setting_out_of_range_is_refused_wherever_it_comes_from(tmp_path, kind, name):
    "Built, read from a file, or for a server: one line that names the engine, the setting, its range and what was found."
    low, high = RANGES[name]
    path = Index.build(many(300), kind=kind, **SMALL[kind]).save(tmp_path/'g.safetensors')
    store = Index.load(path).store
    for value in WRONG.values():
        if value is None and KINDS[kind][name] is None: continue
        words = re.escape(f'{kind}: {name}: expected a whole number from {low} to {high}, found {value!r}')
        with pytest.raises(ValueError, match=words): Index.build(many(300), kind=kind, **{name: value})
        with pytest.raises(ValueError, match=words): Index.connect('http://a:1', many(300), kind=kind, **{name: value})
        wrong = store.settings | {name: value}
        with pytest.raises(ValueError, match=words): FaissStore(store.features, 'x', kind, wrong, store.engines)
    assert complete_settings(kind, {name: np.int64(low)})[name] == low and complete_settings(kind, {name: high})[name] == high


@pytest.mark.parametrize('kind, name', [(kind, name) for kind in KINDS for name in KINDS[kind]])
def test_the_ends_of_a_range_build_a_gallery(kind, name):
    for value in RANGES[name]:
        settings = SMALL[kind] | {name: value}
        if name == 'cells' and value > 300:
            words = 'ivfpq: cells: expected at most 300, .* found'
            with pytest.raises(ValueError, match=words): Index.build(many(300), kind=kind, **settings)
        else: assert len(Index.build(many(300), kind=kind, **settings).search(many(300)['x'][:3], 5)) == 15


def test_settings_of_a_kind_that_there_is_not():
    for kind, settings, words in [
            (['hnsw'], {}, 'kind: expected one of'), (None, {}, 'kind: expected one of'), ('hnsw', [3], 'expected a mapping'),
            ('flat', dict(links=3), 'flat: no setting links; there are none'), ('hnsw', dict(cells=3), 'hnsw: no setting cells')]:
        with pytest.raises(ValueError, match=words): complete_settings(kind, settings)


def test_milvus_lite_is_flat(tmp_path):
    "Its approximate engines are wrong behind filters; a gallery that was made with one is exchanged when it is opened."
    for kind in ('hnsw', 'ivfpq'):
        with pytest.raises(ValueError, match=f'kind: Milvus Lite is flat; {kind}'):
            Index.connect(str(tmp_path/'g.db'), many(30), kind=kind)
    client, features = milvus_client(str(tmp_path/'g.db')), many(300)
    old = Index(new_milvus_store(client, 'gallery', features, 'x', 'hnsw'))
    old.add(features)
    old.store.facts = {k: v for k, v in old.store.facts.items() if k not in ('settings', 'rows')}
    old.store.write_facts()
    for _ in range(2):
        index = Index.connect(str(tmp_path/'g.db'))
        assert client.describe_index('gallery', 'vector')['index_type'] == 'FLAT' and index.info()['kind'] == 'flat'
        assert found_of(index, features['x'][:9], np.arange(300), features['x']) == 1


@pytest.mark.parametrize('kind', ['flat', 'milvus'])
def test_what_cannot_be_added_is_not(tmp_path, kind):
    index, more = both(kind, many(300), tmp_path), many(10, first=300)
    bad = more['x'].copy()
    bad[7] = np.nan
    for features, words in [
            (Features({'x': bad}, more.table, more.record), 'features, row 7'),
            (Features(more.arrays, more.table, more.record | dict(model='n')), 'made with model "n", the gallery with "m"'),
            (Features({'y': more['x']}, more.table, more.record), "no array 'x'"),
            (Features({'x': more['x'][:, :5]}, more.table, more.record), '5 numbers an image, the gallery has 16'),
            (Features(more.arrays, more.table.assign(path='a.jpg'), more.record), 'a.jpg is there twice'),
            (Features(more.arrays, more.table.drop(columns='split'), more.record), 'no column split'),
            (many(10, first=295), '295.jpg is in the gallery already')]:
        with pytest.raises(ValueError, match=words): index.add(features)
        assert len(index) == 300
    with pytest.raises(ValueError, match='999.jpg is not in the gallery'): index.remove(['1.jpg', '999.jpg'])
    assert len(index) == 300 and index.search(many()['x'][1], 1)['path'][0] == '1.jpg'


@pytest.mark.parametrize('kind', ['flat', 'milvus'])
def test_images_of_elsewhere_keep_their_path_and_their_class(tmp_path, kind):
    index, more = both(kind, many(40), tmp_path), many(3, first=40)
    names = ['class 7', 'a new one', 'class 0']
    table = more.table.assign(name=names, label=[0, 0, 1])
    table.attrs = dict(root='/elsewhere')
    index.add(Features(more.arrays, table, more.record))
    found = index.search(more['x'], 1)
    assert found['path'].tolist() == ['/elsewhere/40.jpg', '/elsewhere/41.jpg', '/elsewhere/42.jpg']
    assert found['label'].tolist() == [7, 20, 0] and found['name'].tolist() == names


# files

@pytest.mark.parametrize('kind', list(KINDS))
@pytest.mark.parametrize('removed', [0, 40, 300])
def test_a_gallery_comes_back_from_its_file(tmp_path, kind, removed):
    features = many()
    index = both(kind, features, tmp_path)
    if removed: index.remove([f'{i}.jpg' for i in range(removed)])
    again = Index.load(index.save(tmp_path/'g.safetensors'))
    before, after = (i.search(features['x'][400:420], 6) for i in (index, again))
    assert after['path'].tolist() == before['path'].tolist()
    np.testing.assert_allclose(after['score'], before['score'], atol=1e-6)
    kept = (again.info() | dict(removed=0)) == (index.info() | dict(removed=0))
    assert kept and len(again) == 600 - removed and isinstance(again.store.features['x'].base, np.memmap)
    again.add(many(50, first=600))
    assert again.search(many(50, first=600)['x'][:3], 1)['path'].tolist() == ['600.jpg', '601.jpg', '602.jpg']
    assert Features.load(tmp_path/'g.safetensors').names == ['x']


def test_what_is_not_a_gallery_is_refused(tmp_path):
    index, path = Index.build(many()), tmp_path/'gallery.safetensors'
    index.save(path)
    with pytest.raises(FileExistsError): index.save(path)
    whole = path.read_bytes()
    later = whole.replace(b'{\\"version\\": 1', b'{\\"version\\": 2')
    for damaged, words in [
            (whole[:-9], 'not all of one'), (whole[:100], 'not all of one'), (whole + b'0', 'not all of one'),
            (b'', 'not a safetensors'), (b'a photograph', 'not a safetensors'), (later, 'version 2, this fgir reads 1')]:
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=words): Index.load(path)
    rng = np.random.default_rng(0)
    for at in rng.choice(np.arange(len(whole) - 40_000, len(whole)), 20, replace=False).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
        with pytest.raises(ValueError, match='checksum differs'): Index.load(path)
    many().save(path, force=True)
    with pytest.raises(ValueError, match='a file of features, not of a gallery'): Index.load(path)
    with pytest.raises(FileNotFoundError): Index.load(tmp_path/'none.safetensors')


def save_on_full_disk(path):
    index = Index.load(path)
    index.add(many(3000, first=300))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    index.save(path, force=True)


@pytest.mark.processes
def test_a_full_disk_leaves_the_gallery_as_it_was(tmp_path):
    path = Index.build(many(300)).save(tmp_path/'g.safetensors')
    before = path.read_bytes()
    done = Fresh(save_on_full_disk, path).end()
    assert done.returncode and 'OSError' in done.stderr
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['g.safetensors']


# databases

def test_a_database_is_opened_again(tmp_path):
    features, uri = many(), str(tmp_path/'g.db')
    with pytest.raises(FileNotFoundError, match="no gallery 'gallery' there; features"): Index.connect(uri)
    assert not (tmp_path/'g.db').exists()
    index = Index.connect(uri, features)
    assert index.info()['images'] == 600 and index.info()['kind'] == 'flat' and index.info()['model'] == 'm'
    second = Index.connect(uri, many(30), collection='second')
    index.store.client.close()
    again = Index.connect(uri)
    assert again.search(features['x'][:9], 1)['path'].tolist() == [f'{i}.jpg' for i in range(9)]
    assert len(Index.connect(uri, collection='second')) == len(second) == 30
    with pytest.raises(ValueError, match="there is a gallery 'gallery' already"): Index.connect(uri, features)


def test_a_database_that_was_not_finished_is_made_anew(tmp_path, monkeypatch):
    features, uri, upsert, calls = many(2500), str(tmp_path/'g.db'), [], []
    def dying(client, collection, rows):
        calls.append(len(rows))
        if len(calls) == 3: raise KeyboardInterrupt
        return upsert[0](client, collection, rows)
    from pymilvus import MilvusClient

    upsert.append(MilvusClient.upsert)
    with monkeypatch.context() as m:
        m.setattr(MilvusClient, 'upsert', dying)
        with pytest.raises(KeyboardInterrupt): Index.connect(uri, features)
    assert calls == [1, 1000, 1000]
    with pytest.raises(FileNotFoundError, match="no gallery 'gallery'"): Index.connect(uri)
    assert len(Index.connect(uri, many(40))) == 40
    assert len(Index.connect(uri)) == 40


@pytest.mark.parametrize('uri, error, words', [
    ('gallery.faiss', ValueError, 'ends with .db'), ('http://localhost:1', ConnectionError, 'http://localhost:1')])
def test_what_is_no_database_is_said(tmp_path, uri, error, words):
    with pytest.raises(error, match=words): Index.connect(uri)


@pytest.mark.parametrize('uri, extra, note', [
    ('g.db', 'milvus-lite', ', which replaces faiss-gpu by faiss-cpu'), ('http://localhost:1', 'milvus', '')])
def test_what_a_database_needs_is_said(monkeypatch, uri, extra, note):
    "The client of a server alone, or Milvus Lite, too, which brings a faiss of its own."
    says = re.escape(f'{uri} needs {extra}: pip install "fgir[{extra}]"{note}') + '$'
    if extra == 'milvus-lite':
        with monkeypatch.context() as m:
            m.setattr(fgir.gallery.milvus, 'find_spec', lambda name: None)
            with pytest.raises(ImportError, match=says): milvus_client(uri)
    monkeypatch.setitem(sys.modules, 'pymilvus', None)
    with pytest.raises(ImportError, match=says): milvus_client(uri)


def test_photographs_are_searched_in_a_database(tmp_path, fish, features):
    index = Index.connect(str(tmp_path/'g.db'), features, 'max')
    found = index.search_image(image_path(fish, 20), Net(), leave_out_self=False, k=3)
    assert found['path'][0] == fish['path'][20] and len(show_search(index, image_path(fish, 20), found).axes) == 4
    with pytest.raises(ValueError, match='other weights'): index.search_image(image_path(fish, 3), Net(seed=1))


# photographs

def test_a_photograph_of_the_gallery_finds_itself_where_it_is_kept(fish, features):
    index, net = Index.build(features), Net().train()
    for row in (0, 20):
        found = index.search_image(image_path(fish, row), net, k=3, leave_out_self=False)
        assert found['row'][0] == row and found['score'][0] > 1 - 1e-6 and found.attrs['left_out'] == []
    assert net.training


@pytest.mark.parametrize('kind', ['flat', 'milvus'])
def test_a_photograph_of_the_gallery_is_left_out_of_its_own_answer(tmp_path, fish, features, kind, monkeypatch):
    "By whatever path it is named; a copy of it, and an image that is not there any more, are others."
    index, photo = both(kind, features, tmp_path), image_path(fish, 20)
    kept = index.search_image(photo, Net(), k=4, leave_out_self=False)
    (tmp_path/'link').symlink_to(fish.attrs['root'])
    (tmp_path/'linked.png').symlink_to(photo)
    monkeypatch.chdir(photo.parent)
    linked = tmp_path/'link'/fish['path'][20], tmp_path/'linked.png'
    for name in (photo, photo.name, f'../{photo.parent.name}/{photo.name}', *linked):
        found = index.search_image(name, Net(), k=3)
        assert found['path'].tolist() == kept['path'][1:].tolist() and found['rank'].tolist() == [1, 2, 3]
        assert found.attrs['left_out'] == [fish['path'][20]]
    assert len(index.search_image(photo, Net(), k=36)) == 35
    assert not len(index.search_image(photo, Net(), k=3, filter=dict(path=fish['path'][20])))
    with pytest.raises(ValueError, match='k: expected 1 to 36'): index.search_image(photo, Net(), k=37)
    copy = shutil.copy(photo, tmp_path/'copy.png')
    assert index.search_image(copy, Net(), k=1)['path'][0] == fish['path'][20]
    index.remove(fish['path'][20])
    assert index.search_image(photo, Net(), k=1)['path'][0] == kept['path'][1]
    moved = fish.copy()
    moved.attrs = dict(root='/')
    moved['path'] = [str(image_path(fish, i)) for i in range(36)]
    index.add(Features(features.arrays, moved, features.record).select([20]))
    assert index.search_image(photo, Net(), k=1).attrs['left_out'] == [str(photo)]


def test_boxes_are_cropped_as_the_gallery_was(fish):
    index = Index.build(extract(Net(), fish, size=32, crop=True, progress=False))
    box = fish.loc[7, ['x1', 'y1', 'x2', 'y2']].tolist()
    whole, cropped = (index.search_image(image_path(fish, 7), Net(), leave_out_self=False, k=1, box=b) for b in (None, box))
    assert cropped['row'][0] == 7 and cropped['score'][0] > 1 - 1e-6
    assert whole['score'][0] < cropped['score'][0]


def test_another_descriptor_is_refused(tmp_path, fish, features):
    photo = image_path(fish, 3)
    index = Index.load(Index.build(features).save(tmp_path/'g.safetensors'))
    with pytest.raises(ValueError, match='its model is "fgir.features.Col'): index.search_image(photo, ColorHistogram())
    with pytest.raises(ValueError, match='other weights'): index.search_image(photo, Net(seed=1))
    other = Net()
    other.config = dict(kind='large')
    with pytest.raises(ValueError, match='its config is {"kind": "large"}'): index.search_image(photo, other)


def test_a_gallery_whose_photographs_are_gone_still_answers(tmp_path, fish, features):
    moved = fish.copy()
    moved.attrs = fish.attrs | {'root': str(tmp_path/'gone')}
    index = Index.build(Features(features.arrays, moved, features.record))
    assert index.search_image(image_path(fish, 5), Net(), k=1)['row'][0] == 5


def test_a_transform_that_has_no_name_must_be_given(fish, features):
    index = Index.build(Features(features.arrays, fish, features.record | {'tfms': 'Resize(48)', 'size': None}))
    photo = image_path(fish, 5)
    with pytest.raises(ValueError, match="made with 'Resize.48.'; give one of cgd"): index.search_image(photo, Net())
    assert index.search_image(photo, Net(), leave_out_self=False, k=1, tfms='cgd', size=48)['row'][0] == 5


def test_photographs_of_every_kind(tmp_path, fish, features):
    index, name = Index.build(features), 'grün <b>.png'
    for mode in ('L', 'P', 'CMYK', 'RGBA'):
        path = tmp_path/(name if mode != 'CMYK' else 'c.jpg')
        Image.open(image_path(fish, 2)).convert(mode).save(path)
        assert len(index.search_image(path, Net(), k=4)) == 4
    (tmp_path/'no.png').write_bytes(b'no image')
    with pytest.raises(BadImage, match='no.png'): index.search_image(tmp_path/'no.png', Net())
    with pytest.raises(FileNotFoundError): index.search_image(tmp_path/'none.png', Net())
    with pytest.raises(ValueError, match='box'): index.search_image(image_path(fish, 2), Net(), box=(5, 5, 5, 9))
    assert photo_table(tmp_path/'c.jpg')[['x1', 'y1', 'x2', 'y2']].iloc[0].tolist() == [0, 0, 48, 48]


def test_frames_tell_right_from_wrong_only_where_the_class_is_known(fish, features):
    index, photo = Index.build(features), image_path(fish, 8)
    found = index.search_image(photo, Net(), k=5)
    framed = show_search(index, photo, found, name=fish['name'][8])
    colors = [ax.spines['top'].get_edgecolor()[:3] for ax in framed.axes[1:]]
    assert colors == [to_rgb('green' if label == fish['label'][8] else 'red') for label in found['label']]
    assert not any(ax.spines['top'].get_visible() for ax in show_search(index, photo, found).axes)
    unknown = show_search(index, photo, found, name='a whale')
    assert {ax.spines['top'].get_edgecolor()[:3] for ax in unknown.axes[1:]} == {to_rgb('red')}


@pytest.mark.parametrize('kind', ['flat', 'hnsw', 'ivfpq'])
def test_what_was_removed_is_removed_for_every_reader(tmp_path, kind):
    features = in_order('clustered')
    index = Index.build(features, kind=kind, **SMALL[kind])
    index.remove(list(features.table['path'][:100]))
    index.save(tmp_path/'g.safetensors')
    left = features_of(tmp_path/'g.safetensors')
    assert len(left) == len(features_of(tmp_path/'g.safetensors')) == 1900
    assert list(features_of(tmp_path/'g.safetensors').table['path']) == list(features.table['path'][100:])


def test_vectors_made_in_another_way_are_not_added():
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    table = make_table([f'{i}.jpg' for i in range(40)], np.arange(40)//4, np.arange(40)//4, 'test', '/photos', 'many')
    first, second = (Features({'v': x}, table, {'made': {'v': f'pca {name} of w'}}) for name in 'ab')
    index = Index.build(first.select(range(20)))
    with pytest.raises(ValueError, match="'v' is pca b of w, in the gallery pca a of w"): index.add(second.select(range(20, 40)))
    index.add(first.select(range(20, 40)))
    assert len(index) == 40


def images_in_database(db, file=None):
    index = Index.connect(db, file and features_of(file))
    print(len(index), index.info()['images'])


@pytest.mark.processes
def test_a_database_is_opened_by_another_process(features, tmp_path):
    pytest.importorskip('pymilvus')
    features.save(tmp_path/'f.safetensors')
    for file in ([tmp_path/'f.safetensors'], []):
        done = Fresh(images_in_database, str(tmp_path/'g.db'), *file).end()
        assert done.stdout.split() == ['36', '36'], done.stderr[-2000:]


def test_a_gallery_of_a_derived_array_says_what_the_descriptor_lacks(features, fish):
    index = Index.build(Features({'short': features['mean'][:, :2]}, features.table, features.record))
    with pytest.raises(ValueError, match="descriptor: it gives mean, max, not 'short' of the gallery"):
        index.search_image(image_path(fish, 0), Net())
