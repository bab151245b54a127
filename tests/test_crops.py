"""Crops travel with models: what was trained on boxes expects boxes, by every way in, and says so where there are none."""
import json
import re
import warnings
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

from fgir.app import cli
from fgir.backbones.nets import RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import load_model, read_record, save_model
from fgir.data.csv import write_table
from fgir.data.fish import synth_dataset
from fgir.data.images import load_row
from fgir.data.readers import read_cub
from fgir.data.table import BOX, image_path
from fgir.features.descriptors import CropWarning, crop_for, say_crop, trained_crop
from fgir.features.extraction import extract
from fgir.features.shards import extract_shard
from fgir.features.store import Features
from fgir.gallery.index import Index
from fgir.gallery.rerank import Views
from fgir.papers.cfga import Describe
from fgir.papers.explain import explain_match
from fgir.papers.fgic import accuracy, class_logits, classify_image, fgic_learner

WHOLE, CUT = 'taken whole, without a box, but the .* boxes', 'cut to a box, but the .* whole images'


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp('crops')/'fish'
    synth_dataset(root, n_classes=5, n_per_class=10, size=48, progress=False)
    return read_cub(root, split='official')


@pytest.fixture(scope='module')
def test(table): return table[table.split == 'test'].reset_index(drop=True)


@pytest.fixture(scope='module')
def learns(table, tmp_path_factory):
    """Two classifiers, trained on boxes and on whole images."""
    def trained(crop):
        learn = fgic_learner(table, 'test_resnet', 32, pretrained=False, epochs=4, batch_size=8, lr=.05, crop=crop,
                             out=tmp_path_factory.mktemp('model'), num_workers=0)
        with learn.no_bar(), learn.no_logging(): return learn.fit_recipe()
    return {crop: trained(crop) for crop in (True, False)}


@pytest.fixture(scope='module')
def files(learns): return {crop: f.path/f'{f.prefix}_model.safetensors' for crop, f in learns.items()}


def shell(*words):
    assert cli.main([str(w) for w in words]) == 0


def box_words(box): return [] if box is None else ['--box', *map(float, box)]


@contextmanager
def quiet():
    """No image is cut in another way than the model's."""
    with warnings.catch_warnings():
        warnings.simplefilter('error', CropWarning)
        yield


# ---- one number

def named_by_command(capsys, file, photo, box):
    capsys.readouterr()
    shell('classify', photo, '--model', file, '-k', 1, '--json', *box_words(box))
    out, err = capsys.readouterr()
    return json.loads(out)[str(photo)][0]['name'], err


def test_accuracy_with_a_box_is_one_number_by_every_way_in(learns, files, test, capsys):
    test = test[::2].reset_index(drop=True)
    photos, boxes = [image_path(test, i) for i in range(len(test))], test[BOX].to_numpy()
    net = load_model(files[True])
    with quiet():
        logits, targets, names = class_logits(files[True], test, progress=False)
        ways = {
            'learner': accuracy(learns[True], test, progress=False)[1],
            'file': accuracy(files[True], test, progress=False)[1],
            'network': accuracy(net, test, size=32, progress=False)[1],
            'logits': (logits.argmax(1) == targets).float().mean().item()}
        for name, model, how in (('photo, learner', learns[True], {}), ('photo, network', net, dict(size=32))):
            found = [classify_image(model, p, 1, b, **how)['name'].iat[0] for p, b in zip(photos, boxes, strict=True)]
            ways[name] = np.mean(np.array(found) == test['name'])
        asked = [named_by_command(capsys, files[True], p, b) for p, b in zip(photos, boxes, strict=True)]
    ways['command'] = np.mean(np.array([name for name, _ in asked]) == test['name'])
    assert not any(err for _, err in asked)
    assert ways == {way: pytest.approx(ways['file']) for way in ways} and len(set(found)) > 1, ways
    whole = class_logits(files[True], test, crop=False, progress=False)[0]
    assert (whole.argmax(1) != logits.argmax(1)).any(), 'the fish do not need their boxes'


# ---- a line where there is no box, and where there is one too many

PHOTO_WAYS = {
    'classify_image': lambda file, photo, box, gallery: classify_image(file, photo, box=box),
    'classify_image of a network': lambda file, photo, box, gallery: classify_image(load_model(file), photo, box=box, size=32),
    'classify': lambda file, photo, box, gallery: shell('classify', photo, '--model', file, *box_words(box)),
    'search_image': lambda file, photo, box, gallery: Index.build(Features.load(gallery)).search_image(
        photo, load_model(file), 2, box),
    'index search': lambda file, photo, box, gallery: shell(
        'index', 'search', gallery, photo, '--model', file, '-k', 2, '--device', 'cpu', *box_words(box))}


@pytest.mark.parametrize('way', PHOTO_WAYS)
@pytest.mark.parametrize('crop', [True, False])
def test_a_photograph_in_another_way_than_the_model_gets_one_line(files, table, tmp_path, capsys, way, crop):
    gallery = tmp_path/'gallery.safetensors'
    features = extract(load_model(files[crop]), table[:9], size=32, tfms='fgic', progress=False)
    assert features.record['crop'] == crop
    if way == 'index search': Index.build(features).save(gallery)
    else: features.save(gallery)
    photo, box = image_path(table, 20), table.loc[20, BOX].tolist()
    ask, right, wrong = PHOTO_WAYS[way], *((box, None) if crop else (None, box))
    capsys.readouterr()
    command = 'image' not in way
    with quiet(): ask(files[crop], photo, right, gallery)
    assert not capsys.readouterr().err
    if command: ask(files[crop], photo, wrong, gallery)
    else:
        with pytest.warns(CropWarning, match=f'{photo.name}: {WHOLE if crop else CUT}') as said:
            ask(files[crop], photo, wrong, gallery)
        assert sum(w.category is CropWarning for w in said) == 1
    err = capsys.readouterr().err
    assert (err.count('\n') == 1 and err.startswith('fgir: ') and photo.name in err) if command else not err, err


TABLE_WAYS = {
    'extract': lambda file, table, crop, out: extract(load_model(file), table, size=32, crop=crop, progress=False),
    'extract_shard': lambda file, table, crop, out: extract_shard(
        load_model(file), table, out/'x.st', (0, 1), size=32, crop=crop, progress=False),
    'accuracy': lambda file, table, crop, out: accuracy(file, table, crop=crop, progress=False),
    'Views': lambda file, table, crop, out: extract(
        Views(load_model(file)), table, size=32, crop=crop, progress=False),
    'Describe': lambda file, table, crop, out: extract(
        Describe(load_model(file), ['pool_norm_joint']), table, size=32, crop=crop, progress=False)}


@pytest.mark.parametrize('way', TABLE_WAYS)
def test_a_table_in_another_way_than_the_model_gets_one_line(files, test, tmp_path, way):
    few, ask = test[:2], TABLE_WAYS[way]
    with quiet():
        for crop in (True, False): ask(files[crop], few, None, tmp_path/f'a{crop}')
    for crop, images, given in ((True, few.drop(columns=BOX), None), (True, few, False), (False, few, True)):
        images.attrs = few.attrs
        with pytest.warns(CropWarning, match=f'^images of {few.attrs["root"]}: {WHOLE if crop else CUT}') as said:
            ask(files[crop], images, given, tmp_path/f'b{crop}{given}')
        assert sum(w.category is CropWarning for w in said) == 1


@pytest.mark.parametrize('command', ['extract', 'index build'])
def test_the_command_describes_as_the_model_was_trained(files, test, tmp_path, capsys, command):
    few = test[:4].copy()
    few.attrs = test.attrs
    write_table(few, tmp_path/'boxes.csv')
    def made(name, data, file, *more):
        out = tmp_path/f'{name}.safetensors'
        words = [*command.split(), data, *(['--out', out] if command == 'extract' else [out])]
        capsys.readouterr()
        shell(*words, '--model', file, '--rows', 'all', '--device', 'cpu', *more)
        return Features.load(out), capsys.readouterr().err
    features, err = made('a', tmp_path/'boxes.csv', files[True])
    assert features.record['crop'] is True and not err
    x = extract(load_model(files[True]), few, size=32, tfms='fgic', crop=True, progress=False)['embedding']
    np.testing.assert_allclose(features['embedding'], x, atol=1e-5)
    features, err = made('b', tmp_path/'boxes.csv', files[False], '--crop')
    assert features.record['crop'] is True and err.count('\n') == 1 and 'cut to a box' in err, err
    folder = test.attrs['root'] + '/images'
    features, err = made('c', folder, files[True])
    assert features.record['crop'] is False and err.count('\n') == 1 and 'taken whole' in err, err


def test_what_is_added_is_cut_as_the_gallery_is(files, test, tmp_path, capsys):
    parts = [test[:4], test[4:6].reset_index(drop=True)]
    for part, name in zip(parts, 'ab', strict=True):
        part.attrs = test.attrs
        write_table(part, tmp_path/f'{name}.csv')
    shell('index', 'build', tmp_path/'a.csv', tmp_path/'g.safetensors', '--model', files[True], '--device', 'cpu')
    shell('index', 'add', tmp_path/'g.safetensors', tmp_path/'b.csv', '--device', 'cpu')
    capsys.readouterr()
    assert cli.main(['index', 'add', str(tmp_path/'g.safetensors'), test.attrs['root'] + '/images', '--device', 'cpu']) == 1
    assert 'has no boxes' in capsys.readouterr().err


def test_a_match_of_whole_photographs_is_explained_with_a_line(files, table):
    a, b = (image_path(table, i) for i in (0, 1))
    with quiet(): explain_match(load_model(files[False]), a, b, size=32)
    with quiet(): explain_match(load_model(files[True]), *(load_row(table, i, crop=True) for i in (0, 1)), size=32)
    with pytest.warns(CropWarning, match=f'{a.name}: {WHOLE}') as said: explain_match(load_model(files[True]), a, b, size=32)
    assert sum(w.category is CropWarning for w in said) == 2


# ---- where it is written

def test_the_crop_survives_files_copies_and_wrappers(learns, files, tmp_path):
    for crop in (True, False):
        net = load_model(files[crop])
        again = load_model(save_model(net, tmp_path/'again'))
        for model in (learns[crop].model, net, again, net.descriptor, Views(net), Describe(net, ['pool_norm_joint']),
                      RetrievalNet(net.backbone), torch.nn.Sequential(net)):
            assert trained_crop(model) is crop
    assert read_record(tmp_path/'again')['crop'] is False
    fresh = create_backbone('test_resnet', pretrained=False)
    assert trained_crop(fresh) is None and trained_crop(lambda x: x) is None
    assert 'crop' not in read_record(save_model(RetrievalNet(fresh), tmp_path/'fresh'))


@pytest.mark.parametrize('made, crop, line', [(None, True, None), (None, False, None), (True, True, None),
                                              (False, False, None), (True, False, WHOLE), (False, True, CUT)])
def test_one_function_decides_and_words_it(made, crop, line):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        say_crop(made, crop, 'x.jpg')
    assert len(said) == (line is not None)
    if line: assert said[0].category is CropWarning and re.match(f'x.jpg: {line}', str(said[0].message))


def test_an_untrained_network_takes_whole_images_unless_told(table):
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False))
    assert not crop_for(net, table) and crop_for(net, table, True)
    net.backbone.trained_crop = True
    assert crop_for(net, table) and not crop_for(net, table, False) and not crop_for(net, pd.DataFrame(dict(path=[])))
