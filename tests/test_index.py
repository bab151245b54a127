"The index: agreement with the exact search, refusals, photographs, files, pictures."
import faiss
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import nn

import fgir.index
from fgir.data import BadImage, image_path
from fgir.features import ColorHistogram, Features, extract
from fgir.index import Index, photo_table, show_search, unit_rows
from fgir.search import neighbours
from fgir.synth import synth_dataset

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
    monkeypatch.setattr(fgir.index, 'BLOCK', 7)
    assert Index.build(vectors(fish, array)).search(array, 3).equals(expected)
    array[23] = 0
    with pytest.raises(ValueError, match='gallery, row 23'): Index.build(vectors(fish, array))


def test_what_cannot_be_built_is_said(features):
    with pytest.raises(ValueError, match="kind: expected one of .*found 'hnsw'"): Index.build(features, kind='hnsw')
    with pytest.raises(KeyError, match='there are mean, max'): Index.build(features, 'median')
    with pytest.raises(ValueError, match='one image or more'): Index.build(features.select([False]*36))


def test_nobody_elses_threads_are_touched(features):
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    Index.build(features).search(features['mean'])
    assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == before


def test_unit_rows_leave_their_input_alone():
    x = np.array([[3., 4]])
    assert unit_rows(x).dtype == np.float32 and x.tolist() == [[3, 4]]


def test_a_file_of_features_is_the_index(tmp_path, features):
    index = Index.build(features, 'max')
    path = index.save(tmp_path/'gallery.safetensors')
    again = Index.load(path, 'max')
    assert again.search(features['max']).equals(index.search(features['max']))
    assert again.info() == index.info() and again.info()['images'] == 36 and again.info()['size'] == 48
    with pytest.raises(FileExistsError): index.save(path)
    index.save(path, force=True)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match='not all of one'): Index.load(path)


def test_a_photograph_of_the_gallery_finds_itself(fish, features):
    index, net = Index.build(features), Net().train()
    for row in (0, 20):
        found = index.search_image(image_path(fish, row), net, k=3)
        assert found['row'][0] == row and found['score'][0] > 1 - 1e-6
    assert net.training


def test_boxes_are_cropped_as_the_gallery_was(fish):
    index = Index.build(extract(Net(), fish, size=32, crop=True, progress=False))
    box = fish.loc[7, ['x1', 'y1', 'x2', 'y2']].tolist()
    whole, cropped = (index.search_image(image_path(fish, 7), Net(), k=1, box=b) for b in (None, box))
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
    assert index.search_image(photo, Net(), k=1, tfms='cgd', size=48)['row'][0] == 5


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
