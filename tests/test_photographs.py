"Large photographs decoded at a fraction of their size, and folders without labels through the whole house."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fgir.app.cli import main
from fgir.data.batches import table_dl
from fgir.data.cache import ImageCache
from fgir.data.fish import draw_fish, synth_classes, synth_dataset
from fgir.data.images import BadImage, load_image
from fgir.data.readers import read_folder
from fgir.data.table import has_label, make_table, need_labels, title_of
from fgir.data.transforms import TRANSFORMS, Resize, Shrink, Steps, least_side, transform_to_test
from fgir.features.extraction import describe_photo, extract
from fgir.features.retrieval import evaluate_recall, save_retrieval_pictures, show_neighbours
from fgir.features.store import Features
from fgir.gallery.index import Index, photo_table, show_search

BOX = (100, 200, 500, 420)


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "Photographs of 1003 × 805 pixels, stored in each of the eight ways of EXIF and in four modes."
    here = tmp_path_factory.mktemp('large')
    fish = draw_fish(synth_classes(1)[0], size=256)[0].resize((1003, 805), Image.Resampling.BICUBIC)
    for way in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = way
        undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that makes what the tag turns back
        stored = fish if way == 1 else fish.transpose(Image.Transpose(undone[way]))
        stored.save(here/f'{way}.jpg', exif=exif, quality=95)
    for mode in ('L', 'CMYK'): fish.convert(mode).save(here/f'{mode}.jpg', quality=95)
    fish.save(here/'x.png')
    return here, fish


@pytest.mark.parametrize('name', [*(f'{i}.jpg' for i in range(1, 9)), 'L.jpg', 'CMYK.jpg'])
@pytest.mark.parametrize('box', [None, BOX])
@pytest.mark.parametrize('least, scale', [(100, 8), (150, 4), (400, 2), (500, 1)])
def test_a_fraction_shows_the_same(large, name, box, least, scale):
    whole = load_image(large[0]/name, box)
    if box and least > 100: scale = {150: 1, 400: 1, 500: 1}[least]
    elif box: scale = 2
    found = load_image(large[0]/name, box, least)
    assert min(found.size) >= least or scale == 1
    assert np.abs(np.array(found.size) - np.array(whole.size)/scale).max() <= 1
    small = [np.asarray(im.resize((64, 64), Image.Resampling.BILINEAR), float) for im in (whole, found)]
    assert np.abs(small[0] - small[1]).mean() < 2
    if scale == 1: assert found == whole


def test_what_is_no_jpeg_or_cut_short_is_as_before(large, tmp_path):
    here, fish = large
    assert load_image(here/'x.png', None, 10).size == fish.size
    assert load_image(here/'1.jpg', None, 10).size == (126, 101)
    (tmp_path/'cut.jpg').write_bytes((here/'1.jpg').read_bytes()[:20000])
    with pytest.raises(BadImage, match='truncated'): load_image(tmp_path/'cut.jpg', None, 10)
    with pytest.raises(BadImage, match='box 2000 0 2100 10 lies outside of the image, 1003 x 805'):
        load_image(here/'1.jpg', (2000, 0, 2100, 10), 1)


def test_only_transforms_for_any_photograph_allow_a_fraction():
    assert {name for name in TRANSFORMS if least_side(transform_to_test(name))} == {'photos'}
    assert least_side(transform_to_test('photos')) == 448 and least_side(transform_to_test('photos', 100)) == 200
    assert least_side(Steps([Resize(60)], draft=True)) == 120
    assert least_side(Steps([Shrink(60)], draft=True)) is None and least_side(lambda x: x) is None
    image = Image.effect_noise((300, 200), 50).convert('RGB')
    assert torch.equal(*(transform_to_test(name, 32)(image) for name in ('photos', 'cgd')))


def test_the_record_and_the_cache_say_how_photographs_are_decoded(large, tmp_path):
    def mean(x): return x.mean((2, 3))
    table = make_table([f'{i}.jpg' for i in range(1, 9)], root=large[0])
    how = dict(size=32, num_workers=0, progress=False)
    photos, cgd = (extract(mean, table, tfms=name, **how) for name in ('photos', 'cgd'))
    assert photos.record['decoding'] == 'JPEG at a scale that leaves 64 pixels' and cgd.record['decoding'] == 'whole'
    assert 0 < np.abs(photos['embedding'] - cgd['embedding']).max() < .02
    one = describe_photo(mean, photo_table(large[0]/'6.jpg'), 32, 'photos')
    assert np.allclose(one['embedding'], photos['embedding'][5], atol=1e-6) and one.record['decoding'] == photos.record['decoding']
    again = extract(mean, table, tfms='photos', cache=tmp_path, **how)
    assert np.array_equal(again['embedding'], photos['embedding'])
    extract(mean, table, tfms='cgd', cache=tmp_path, **how)
    assert {f.name: ImageCache(f).about.get('least') for f in tmp_path.iterdir()} == {'32x32': None, '32x32-draft': 64}
    loaded = extract(mean, table_dl(table, 32, tfms='photos', num_workers=0), progress=False)
    assert loaded.record['decoding'] == photos.record['decoding']


# ---- images without a label

@pytest.fixture(scope='module')
def loose(tmp_path_factory):
    "Sixteen fish loose in a folder, and the same with six of two kinds in folders."
    here = tmp_path_factory.mktemp('loose')
    synth_dataset(here/'fish', n_classes=4, n_per_class=4, size=48, progress=False)
    for folder in ('photos', 'mixed'): (here/folder).mkdir()
    for i, file in enumerate(sorted((here/'fish'/'images').rglob('*.jpg'))):
        (here/'photos'/f'IMG_{i}.jpg').write_bytes(file.read_bytes())
        kind = here/'mixed'/('' if i > 5 else 'ab'[i % 2])
        kind.mkdir(exist_ok=True)
        (kind/f'IMG_{i}.jpg').write_bytes(file.read_bytes())
    return here


def test_need_labels(loose):
    table = read_folder(loose/'mixed')
    assert has_label(table).sum() == 6 and not has_label(read_folder(loose/'photos')).any()
    with pytest.raises(ValueError) as e: need_labels(table, 'a measure')
    assert str(e.value).startswith(f'{loose}/mixed: 10 of 16 images have no label (first IMG_10.jpg), a measure needs one')
    need_labels(table[has_label(table)], 'a measure')
    assert [title_of(table, i) for i in (0, 15)] == ['IMG_10.jpg', 'b']


def mean(x): return x.flatten(1)[:, ::97]


@pytest.fixture(scope='module')
def described(loose):
    return {name: extract(mean, read_folder(loose/name), 32, progress=False, num_workers=0) for name in ('photos', 'mixed')}


def test_features_and_galleries_without_labels(loose, described, tmp_path):
    features = described['photos']
    assert Features.load(features.save(tmp_path/'f.safetensors')).table.equals(features.table)
    gallery = Index.build(features)
    gallery.save(tmp_path/'g.safetensors')
    gallery = Index.load(tmp_path/'g.safetensors')
    assert gallery.info()['classes'] == 0 and gallery.store.classes() == {}
    photo = loose/'photos'/'IMG_3.jpg'
    found = gallery.search_image(photo, mean, k=3)
    assert len(found) == 3 and set(found['name']) == {''} and 'IMG_3.jpg' not in set(found['path'])
    figure = show_search(gallery, photo, found)
    assert [ax.get_title() for ax in figure.axes][1:] == found['path'].tolist()
    assert not any(s.get_visible() for ax in figure.axes for s in ax.spines.values())
    gallery.add(extract(mean, read_folder(loose/'mixed'), 32, progress=False, num_workers=0))
    assert gallery.store.classes() == {'a': 0, 'b': 1} and gallery.info()['classes'] == 2
    assert gallery.search(features['embedding'][0], 32, dict(name='a'))['label'].tolist() == [0]*3


def test_measures_need_labels(described):
    for features in described.values():
        with pytest.raises(ValueError, match='have no label .*a measure needs one'): evaluate_recall(features)
    some = described['mixed'].select(has_label(described['mixed'].table))
    assert evaluate_recall(some)['n_queries'].tolist() == [6]


def test_frames_are_drawn_where_both_classes_are_known(described, tmp_path):
    table = described['mixed'].table
    known = table.index[table['name'] == 'a'].tolist()
    loose = int(np.flatnonzero(~has_label(table))[0])
    b = table.index[table['name'] == 'b'][0]
    axes = show_neighbours(table, [known[0], loose], [[known[1], b, loose], [known[1], b, loose + 1]]).axes
    drawn = [ax.spines['left'].get_edgecolor()[:2] if ax.spines['left'].get_visible() else None for ax in axes]
    green, red = drawn[1:3]
    assert green != red and drawn == [None, green, red, None, None, None, None, None]
    assert len(list(save_retrieval_pictures(described['mixed'], loose, tmp_path).iterdir())) == 9


def said(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refusal(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    return err


@pytest.fixture(scope='module')
def net(tmp_path_factory):
    from fgir.backbones.nets import RetrievalNet
    from fgir.backbones.registry import create_backbone
    from fgir.backbones.saving import save_model
    torch.manual_seed(0)
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), 'S', 8)
    return save_model(net, tmp_path_factory.mktemp('net')/'net.safetensors', tfms='photos', size=32)


def test_commands_without_labels(loose, net, tmp_path, capsys):
    photos, gallery = loose/'photos', tmp_path/'g.safetensors'
    out = said(capsys, 'index', 'build', photos, gallery, '--model', net, '--device', 'cpu')
    assert f'{photos}: folder, 16 images without a label\n' in out
    out = said(capsys, 'index', 'search', gallery, photos/'IMG_0.jpg', '-k', 2, '--picture', tmp_path/'found.png')
    assert out.splitlines()[0].split() == ['rank', 'score', 'path'] and (tmp_path/'found.png').exists()
    found = json.loads(said(capsys, 'index', 'search', gallery, photos/'IMG_0.jpg', '-k', 2, '--json'))
    assert [row['name'] for row in found] == ['', '']
    assert json.loads(said(capsys, 'index', 'info', gallery))['decoding'] == 'JPEG at a scale that leaves 64 pixels'
    out = said(capsys, 'extract', photos, '--out', tmp_path/'f.safetensors', '--model', net)
    assert 'describing 16 images: --rows all' in out
    assert 'images have no label (first IMG_0.jpg), a measure needs one' in refusal(capsys, 'evaluate', tmp_path/'f.safetensors')
    assert 'training needs one' in refusal(capsys, 'train', 'sane', photos, '--out', tmp_path/'trained')
    words = ['extract', photos, '--out', tmp_path/'x.safetensors', '--model', net, '--rows', 'test']
    assert '--rows test: expected one of all' in refusal(capsys, *words)


def test_commands_with_some_labels(loose, net, tmp_path, capsys):
    out = said(capsys, 'extract', loose/'mixed', '--out', tmp_path/'f.safetensors', '--model', net)
    assert f'{loose}/mixed: folder, 16 images of 2 classes (3 train, 3 test, 10 without a label)' in out
    out = said(capsys, 'evaluate', tmp_path/'f.safetensors', '--ks', 1)
    assert 'f.safetensors: 10 images without a label are left out' in out
    (tmp_path/'list.csv').write_text('path\n' + ''.join(f'{f.name}\n' for f in (loose/'photos').iterdir()))
    for file in (loose/'photos').iterdir(): (tmp_path/file.name).write_bytes(file.read_bytes())
    out = said(capsys, 'index', 'build', tmp_path/'list.csv', tmp_path/'g.safetensors', '--model', net)
    assert 'list.csv: folder, 16 images without a label' in out and 'Index of 16 images' in out


def test_a_broken_photograph_is_named_with_the_way_out(loose, net, tmp_path, capsys):
    (tmp_path/'photos').mkdir()
    whole = (loose/'photos'/'IMG_0.jpg').read_bytes()
    for name, data in dict(a=whole, b=whole[:400]).items(): (tmp_path/'photos'/f'{name}.jpg').write_bytes(data)
    build = ['index', 'build', tmp_path/'photos', tmp_path/'g.safetensors', '--model', net]
    extract = ['extract', tmp_path/'photos', '--out', tmp_path/'f.safetensors', '--model', net]
    for words in (build, extract):
        assert 'b.jpg: ' in (err := refusal(capsys, *words)) and '; --skip-bad leaves out' in err
        assert main([str(word) for word in [*words, '--skip-bad']]) == 0
        assert 'left out 1 image that cannot be read:\nb.jpg: ' in capsys.readouterr().err


def test_the_page_without_labels(loose, described):
    gradio = pytest.importorskip('gradio')
    from fgir.app.page import _facts, answer, evidence_picture, search_page

    gallery = Index.build(described['photos'])
    found, pictures = answer(gallery, mean, [loose/'photos'], str(loose/'photos'/'IMG_2.jpg'), k=3)
    assert [words.partition(' · ')[2] for _, words in pictures] == found['path'].tolist()
    assert 'classes' not in _facts(gallery)
    page = search_page(gallery, mean, [loose/'photos'])
    classes, = (b for b in page.blocks.values() if isinstance(b, gradio.Dropdown))
    assert not classes.visible
    assert evidence_picture(gallery, mean, [loose/'photos'], str(loose/'photos'/'IMG_2.jpg'), found, 0)[1]
