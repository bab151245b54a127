"Fault injection for the readers and the image loader: each bad input gives one clear error naming file and line."
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

import fgir
from fgir.data.files import shared_dir, write_atomic, write_folder_atomic
from fgir.data.images import BadImage, check_images, drop_bad, load_image, load_row
from fgir.data.readers import (
    _IMAGE_EXTENSIONS,
    FORMATS,
    read_aircraft,
    read_cars,
    read_cub,
    read_folder,
    read_inshop,
    read_sop,
)
from fgir.data.table import BOX, hold_out_classes, make_table

CLASSES = ['001.Finch', '002.Siskin', '003.Jay', '004.Crow']
CUB = {
    'images.txt': '\n'.join(f'{i} {CLASSES[(i - 1)//3]}/{i}.jpg' for i in range(1, 13)) + '\n',
    'image_class_labels.txt': '\n'.join(f'{i} {(i + 2)//3}' for i in range(1, 13)) + '\n',
    'bounding_boxes.txt': '\n'.join(f'{i} 1.7 2.9 10.6 9.5' for i in range(1, 13)) + '\n',
    'train_test_split.txt': '\n'.join(f'{i} {i % 2}' for i in range(1, 13)) + '\n',
    'classes.txt': '\n'.join(f'{i} {c}' for i, c in enumerate(CLASSES, 1)) + '\n'}
SOP = {
    'Ebay_train.txt': 'image_id class_id super_class_id path\n1 1 1 bicycle_final/1_0.JPG\n2 2 1 bicycle_final/2_0.JPG\n',
    'Ebay_test.txt': 'image_id class_id super_class_id path\n3 3 7 lamp_final/3_0.JPG\n4 4 7 lamp_final/4_0.JPG\n'}
CLOTHES = [f'img/MEN/Shirts/id_0000000{i}/0{j}_1_front.jpg' for i in (1, 2) for j in (1, 2)]
INSHOP = {
    'Eval/list_eval_partition.txt': '4\nimage_name item_id evaluation_status\n' + '\n'.join(
        f'{p} {p.split("/")[3]} {s}' for p, s in zip(CLOTHES, ['train', 'train', 'query', 'gallery'], strict=True)),
    'Anno/list_bbox_inshop.txt': '4\nimage_name clothes_type pose_type x_1 y_1 x_2 y_2\n' + '\n'.join(
        f'{p} 3 1 1 2 15 12' for p in CLOTHES)}
AIRCRAFT = {
    'variants.txt': '747-400\nA320\n',
    'families.txt': 'Boeing 747\nA320\n',
    'images_variant_trainval.txt': '0034309 747-400\n0034958 A320\n',
    'images_variant_test.txt': '0037511 A320\n',
    'images_family_trainval.txt': '0034309 Boeing 747\n0034958 A320\n',
    'images_family_test.txt': '0037511 A320\n',
    'images_box.txt': '0034309 1 2 16 12\n0034958 1 2 16 12\n0037511 1 2 16 12\n'}
IMAGES = {
    'cub': ['images/' + line.split()[1] for line in CUB['images.txt'].splitlines()],
    'cars': [f'car_ims/{i:06}.jpg' for i in range(1, 9)],
    'sop': ['bicycle_final/1_0.JPG', 'bicycle_final/2_0.JPG', 'lamp_final/3_0.JPG', 'lamp_final/4_0.JPG'],
    'inshop': ['Img/' + p for p in CLOTHES],
    'aircraft': [f'images/{i}.jpg' for i in ('0034309', '0034958', '0037511')],
    'folder': [f'{c}/{i}.jpg' for c in CLASSES for i in range(2)]}
TEXTS = {'cub': CUB, 'sop': SOP, 'inshop': INSHOP, 'aircraft': AIRCRAFT, 'cars': {}, 'folder': {}}
READ = {'cub': read_cub, 'cars': read_cars, 'sop': read_sop, 'inshop': read_inshop,
        'aircraft': read_aircraft, 'folder': read_folder}
CARS_FIELDS = ['relative_im_path', 'bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class', 'test']


def cars_records():
    return [[p, 1, 2, 15, 12, 1 + i//2, i % 2] for i, p in enumerate(IMAGES['cars'])]


def write_cars(root, records, names=('A', 'B', 'C', 'D'), fields=CARS_FIELDS):
    records = np.array([[tuple(r) for r in records]], dtype=[(f, object) for f in fields])
    savemat(root/'cars_annos.mat', {'annotations': records, 'class_names': np.array([list(names)], dtype=object)})


@pytest.fixture
def lay_out(tmp_path):
    "Write a small data set in the layout of `name`, return its folder."
    def write(name):
        for file, text in TEXTS[name].items():
            (tmp_path/file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/file).write_text(text)
        for path in IMAGES[name]:
            (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (16, 12), 'teal').save(tmp_path/path)
        if name == 'cars':
            write_cars(tmp_path, cars_records())
        return tmp_path
    return write


def refused(call, error, *parts):
    "Check that `call` raises `error` with one line that holds all `parts`."
    with pytest.raises(error) as e:
        call()
    message = str(e.value)
    assert '\n' not in message
    for part in parts:
        assert part in message, f'{part!r} is not in {message!r}'


@pytest.mark.parametrize('as_path', [str, lambda p: p], ids=['str', 'Path'])
@pytest.mark.parametrize('name', READ)
def test_whole(lay_out, name, as_path):
    table = READ[name](as_path(lay_out(name)))
    assert len(table) == len(IMAGES[name])
    assert set(table['path']) == set(IMAGES[name])
    rule = {'sop': {'split': 'official'}, 'inshop': {'split': 'official'}}.get(name, {'split': 'zero-shot'})
    assert table.attrs == {'root': str(lay_out(name)), 'dataset': name, **rule}
    assert table['label'].dtype == np.int64 and table['label'].min() == 0
    assert isinstance(table.index, pd.RangeIndex)
    assert not check_images(table, progress=False, crop='x1' in table)


@pytest.mark.parametrize('name', READ)
def test_root_missing(tmp_path, name):
    refused(lambda: READ[name](tmp_path/'nowhere'), FileNotFoundError, 'nowhere: no such folder')


@pytest.mark.parametrize('name', READ)
def test_root_is_a_file(tmp_path, name):
    (tmp_path/'file').write_text('')
    refused(lambda: READ[name](tmp_path/'file'), FileNotFoundError, 'file: no such folder')


@pytest.mark.parametrize('name', ['cub', 'cars', 'aircraft', 'folder'])
def test_unknown_split(lay_out, name):
    refused(lambda: READ[name](lay_out(name), split='tset'), ValueError, 'split: expected one of', "found 'tset'")


@pytest.mark.parametrize('name', ['cub', 'cars', 'sop', 'inshop', 'aircraft'])
def test_lost_images(lay_out, name):
    root = lay_out(name)
    first, last = IMAGES[name][1], IMAGES[name][-1]
    (root/first).unlink()
    (root/last).unlink()
    place = 'record 2' if name == 'cars' else 'line '
    refused(lambda: READ[name](root), FileNotFoundError, f'no image {root/first}', place,
            f'(2 of {len(IMAGES[name])} images are missing)')


REQUIRED = [('cub', 'images.txt'), ('cub', 'image_class_labels.txt'), ('cars', 'cars_annos.mat'),
            ('sop', 'Ebay_train.txt'), ('sop', 'Ebay_test.txt'), ('inshop', 'Eval/list_eval_partition.txt'),
            ('aircraft', 'variants.txt'), ('aircraft', 'images_variant_trainval.txt'),
            ('aircraft', 'images_variant_test.txt')]


@pytest.mark.parametrize('name,file', REQUIRED)
def test_annotation_missing(lay_out, name, file):
    root = lay_out(name)
    (root/file).unlink()
    refused(lambda: READ[name](root), FileNotFoundError, f'{file}: annotation file is missing')


@pytest.mark.parametrize('name,file', [r for r in REQUIRED if r[0] != 'cars'])
def test_annotation_empty(lay_out, name, file):
    root = lay_out(name)
    (root/file).write_text('')
    refused(lambda: READ[name](root), ValueError, f'{file}: no rows')


@pytest.mark.parametrize('name,file', [('cub', 'bounding_boxes.txt'), ('cub', 'classes.txt'),
                                       ('cub', 'train_test_split.txt'), ('inshop', 'Anno/list_bbox_inshop.txt'),
                                       ('aircraft', 'images_box.txt')])
def test_optional_file_missing(lay_out, name, file):
    root = lay_out(name)
    (root/file).unlink()
    table = READ[name](root)
    assert len(table) == len(IMAGES[name])
    assert ('x1' in table) == ('box' not in file)


TEXT_FAULTS = [
    ('cub', 'images.txt', '\n5 ', '\nfive ', "images.txt, line 5: expected 'id:int path', found 'five"),
    ('cub', 'images.txt', '5 002.Siskin/5.jpg', '5', "images.txt, line 5: expected 'id:int path', found '5'"),
    ('cub', 'images.txt', '\n5 ', '\n4 ', 'images.txt, line 5: id 4 appears a second time'),
    ('cub', 'images.txt', '/5.jpg', '/4.jpg', "images.txt, line 5: path 'images/002.Siskin/4.jpg' appears a second"),
    ('cub', 'images.txt', '12 004.Crow/12.jpg\n', '', 'image_class_labels.txt, line 12: id 12 is not among the images'),
    ('cub', 'image_class_labels.txt', '12 4\n', '', 'image_class_labels.txt: image 12 has no label (1 of 12'),
    ('cub', 'image_class_labels.txt', '12 4\n', '12 four\n', 'image_class_labels.txt, line 12: expected'),
    ('cub', 'image_class_labels.txt', '12 4\n', '12 4.0\n', 'image_class_labels.txt, line 12: expected'),
    ('cub', 'image_class_labels.txt', '12 4\n', '12 4 4\n', 'image_class_labels.txt, line 12: expected'),
    ('cub', 'image_class_labels.txt', '12 4\n', '12 5\n', 'image_class_labels.txt, line 12: class 5 has no name'),
    ('cub', 'image_class_labels.txt', '12 4\n', '12 0\n', 'image_class_labels.txt, line 12: expected a class from 1'),
    ('cub', 'image_class_labels.txt', '12 4\n', '11 4\n', 'image_class_labels.txt, line 12: id 11 appears a second'),
    ('cub', 'bounding_boxes.txt', '\n7 1.7', '\n7 nan', 'bounding_boxes.txt, line 7: expected a box'),
    ('cub', 'bounding_boxes.txt', '\n7 1.7', '\n7 inf', 'bounding_boxes.txt, line 7: expected a box'),
    ('cub', 'bounding_boxes.txt', '\n7 1.7', '\n7 a', 'bounding_boxes.txt, line 7: expected'),
    ('cub', 'bounding_boxes.txt', '\n7 1.7 2.9 10.6', '\n7 1.7 2.9 .6', 'bounding_boxes.txt, line 7: expected a box'),
    ('cub', 'bounding_boxes.txt', '\n7 1.7 2.9 10.6 9.5', '', 'bounding_boxes.txt: image 7 has no box (1 of 12'),
    ('cub', 'classes.txt', '4 004.Crow', '4 003.Jay', "classes.txt, line 4: class name '003.Jay' appears a second"),
    ('cub', 'classes.txt', '4 004.Crow', '3 004.Crow', 'classes.txt, line 4: class 3 appears a second time'),
    ('cub', 'classes.txt', '4 004.Crow', '4 004.Crow\n5 Owl', "classes.txt, line 5: class 'Owl' has no image"),
    ('sop', 'Ebay_train.txt', '2 2 1 ', '2 x 1 ', "Ebay_train.txt, line 3: expected 'image_id:int class_id:int"),
    ('sop', 'Ebay_train.txt', ' bicycle_final/2_0.JPG', '', 'Ebay_train.txt, line 3: expected'),
    ('sop', 'Ebay_train.txt', '2 2 1 ', '2 0 1 ', 'Ebay_train.txt, line 3: label -1 is negative'),
    ('sop', 'Ebay_train.txt', '2_0.JPG', '1_0.JPG', "Ebay_train.txt, line 3: path 'bicycle_final/1_0.JPG' appears"),
    ('sop', 'Ebay_test.txt', 'lamp_final/4_0', 'bicycle_final/1_0', 'Ebay_test.txt, line 3: path'),
    ('sop', 'Ebay_test.txt', '4 4 7 lamp', '4 4 7 /lamp', 'Ebay_test.txt, line 3: expected a path relative'),
    ('inshop', 'Eval/list_eval_partition.txt', '4\n', '5\n', 'partition.txt, line 1: expected the number of rows, 4'),
    ('inshop', 'Eval/list_eval_partition.txt', ' query', ' probe', "partition.txt, line 5: expected a split of"),
    ('inshop', 'Eval/list_eval_partition.txt', ' query', '', 'partition.txt, line 5: expected'),
    ('inshop', 'Eval/list_eval_partition.txt', ' id_00000002 query', ' item2 query', 'partition.txt, line 5: expected an'),
    ('inshop', 'Eval/list_eval_partition.txt', ' id_00000002 query', ' id_00000000 query', 'line 5: label -1'),
    ('inshop', 'Eval/list_eval_partition.txt', '2/02_1', '2/01_1', 'partition.txt, line 6: image_name'),
    ('inshop', 'Anno/list_bbox_inshop.txt', '2/01_1_front.jpg 3 1 1', '2/01_1_front.jpg 3 1 x', 'line 5: expected'),
    ('inshop', 'Anno/list_bbox_inshop.txt', '2/01_1_front.jpg 3 1 1', '2/01_1_front.jpg 3 1 15', 'line 5: expected a box'),
    ('inshop', 'Anno/list_bbox_inshop.txt', '2/01_1', '2/03_1', 'list_bbox_inshop.txt, line 5: image_name'),
    ('aircraft', 'variants.txt', 'A320', 'A321', "trainval.txt, line 2: variant 'A320' is not in variants.txt"),
    ('aircraft', 'variants.txt', 'A320\n', 'A320\nA321\n', "variants.txt, line 3: class 'A321' has no image"),
    ('aircraft', 'variants.txt', 'A320\n', 'A320\nA320\n', "variants.txt, line 3: name 'A320' appears a second time"),
    ('aircraft', 'images_variant_trainval.txt', ' A320', '', "trainval.txt, line 2: expected 'id name'"),
    ('aircraft', 'images_variant_test.txt', '0037511 A320\n', '0037511 A320\n0034309 A320\n', 'test.txt, line 2: path'),
    ('aircraft', 'images_box.txt', '0034958 1 2 16', '0034958 1 2 x', 'images_box.txt, line 2: expected'),
    ('aircraft', 'images_box.txt', '0034958 1 2 16', '0034958 9 2 8', 'images_box.txt, line 2: expected a box'),
    ('aircraft', 'images_box.txt', '0037511 1 2 16 12\n', '', 'images_box.txt: image 0037511 has no box')]


@pytest.mark.parametrize('name,file,old,new,message', TEXT_FAULTS)
def test_text_fault(lay_out, name, file, old, new, message):
    root = lay_out(name)
    text = (root/file).read_text()
    assert text.count(old) >= 1
    at = text.rindex(old) if old != '4\n' else 0
    (root/file).write_text(text[:at] + new + text[at + len(old):])
    refused(lambda: READ[name](root), ValueError, message, str(root))


def test_cub_official_faults(lay_out):
    root = lay_out('cub')
    official = root/'train_test_split.txt'
    official.write_text(CUB[official.name].replace('\n6 0', '\n6 2'))
    refused(lambda: read_cub(root, 'official'), ValueError, 'train_test_split.txt, line 6', 'found 2')
    official.write_text(CUB[official.name].replace('\n6 0', ''))
    refused(lambda: read_cub(root, 'official'), ValueError, 'train_test_split.txt: image 6 has no split')
    official.unlink()
    refused(lambda: read_cub(root, 'official'), FileNotFoundError, 'train_test_split.txt: annotation file')


def test_cub_splits_and_boxes(lay_out):
    root = lay_out('cub')
    table = read_cub(root)
    assert table['split'].tolist() == ['train']*6 + ['test']*6
    assert table[BOX].iloc[0].tolist() == [1, 2, 11, 11]
    assert read_cub(root, 'official')['split'].tolist() == ['train', 'test']*6


def test_cub_class_zero_without_names(lay_out):
    root = lay_out('cub')
    (root/'classes.txt').unlink()
    (root/'image_class_labels.txt').write_text(CUB['image_class_labels.txt'].replace('\n3 1', '\n3 0'))
    refused(lambda: read_cub(root), ValueError, 'image_class_labels.txt, line 3: expected a class from 1, found 0')


def test_text_in_other_encodings(lay_out):
    root = lay_out('cub')
    (root/'images.txt').write_bytes(b'\xef\xbb\xbf' + CUB['images.txt'].replace('\n', '\r\n').encode() + b'\r\n\r\n')
    assert len(read_cub(root)) == 12
    (root/'images.txt').write_bytes(CUB['images.txt'].replace('003.Jay/7', '003.J\xe4y/7').encode('latin-1'))
    refused(lambda: read_cub(root), FileNotFoundError, 'images.txt, line 7: no image')


def test_loose_images_have_no_label_and_one_class_no_split(lay_out):
    root = lay_out('folder')
    for folder, name in [(root/CLASSES[0], ''), (root/'only', CLASSES[1])]:
        if name:
            folder.mkdir()
            (root/name).rename(folder/name)
        table = read_folder(folder)
        assert set(table['name']) == {name} and set(table['split']) == {''} and 'split' not in table.attrs
        assert set(table['label']) == {0 if name else -1}
        assert set(read_folder(folder, 'gallery')['split']) == {'gallery'}


def test_any_mixture_is_read(lay_out):
    "Loose images, folders in folders, folders of a kind, hidden and empty folders: each image once, under its top folder."
    root, picture = lay_out('folder'), Image.new('RGB', (4, 4))
    before = read_folder(root)
    added = {'IMG_1.JPG': '', 'zz.webp': '', '2023/05/17/a.png': '2023', '2023/b.png': '2023'}
    for path in [*added, '.trash/x.jpg', '001.Finch/.thumbs/x.jpg', '.hidden.jpg']:
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root/path)
    (root/'empty'/'deep').mkdir(parents=True)
    table = read_folder(root)
    paths = sorted([*before['path'], *added], key=lambda p: p.split('/'))
    assert table['path'].tolist() == paths
    assert dict(zip(table['path'], table['name'], strict=True)).items() >= added.items()
    loose = table['name'] == ''
    assert (table['label'][loose] == -1).all() and (table['split'][loose] == '').all()
    assert sorted(set(table['label'])) == [-1, 0, 1, 2, 3, 4] and table.attrs['split'] == 'zero-shot'
    known = table[table['name'].isin(CLASSES)].reset_index(drop=True)
    assert known[['path', 'name']].equals(before[['path', 'name']])


def test_split_folders_of_loose_images(tmp_path):
    for path in ('query/a.png', 'gallery/b.png', 'gallery/jay/c.png', 'd.png'):
        (tmp_path/path).parent.mkdir(exist_ok=True)
        Image.new('RGB', (4, 4)).save(tmp_path/path)
    table = read_folder(tmp_path).set_index('path')
    pairs = {path: (row['split'], row['name']) for path, row in table.iterrows()}
    assert pairs == {'query/a.png': ('query', ''), 'gallery/b.png': ('gallery', ''), 'gallery/jay/c.png': ('gallery', 'jay'),
                     'd.png': ('', '')}


def test_a_folder_is_listed_without_asking_for_each_file(lay_out, monkeypatch):
    root, asked = lay_out('folder'), []
    (root/'link').symlink_to(root/CLASSES[0])
    for name in ('stat', 'lstat'):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *args, real=real, **how: asked.append(path) or real(path, *args, **how))
    assert len(read_folder(root)) == 10
    assert not [path for path in asked if str(path).endswith('.jpg')]


def test_a_bar_shows_how_many_are_found(lay_out, capsys):
    assert read_folder(lay_out('folder'), progress=True).equals(read_folder(lay_out('folder')))
    assert '[0/?' in capsys.readouterr().out


CARS_FAULTS = [
    (5, 0, 'record 3: class 0 has no name'),
    (5, 5, 'record 3: class 5 has no name'),
    (5, 'x', 'record 3: expected one each of'),
    (5, np.array([]), 'record 3: expected one each of'),
    (1, 15, 'record 3: expected a box x1 < x2'),
    (0, 'car_ims/000001.jpg', "record 3: path 'car_ims/000001.jpg' appears a second time"),
    (0, 'car_ims/000099.jpg', 'record 3: no image')]


@pytest.mark.parametrize('field,value,message', CARS_FAULTS)
def test_cars_fault(lay_out, field, value, message):
    root, records = lay_out('cars'), cars_records()
    records[2][field] = value
    write_cars(root, records)
    refused(lambda: read_cars(root), (ValueError, FileNotFoundError), f'cars_annos.mat, {message}')


def test_cars_other_faults(lay_out):
    root = lay_out('cars')
    write_cars(root, cars_records(), names='ABCDE')
    refused(lambda: read_cars(root), ValueError, "cars_annos.mat, class 5: class 'E' has no image")
    write_cars(root, cars_records(), fields=['fname', *CARS_FIELDS[1:]])
    refused(lambda: read_cars(root), ValueError, 'cars_annos.mat, record 1', 'relative_im_path')
    savemat(root/'cars_annos.mat', {'names': [1]})
    refused(lambda: read_cars(root), ValueError, 'cars_annos.mat: expected a .mat file', 'annotations')
    for content in (b'', b'<html>', (root/'cars_annos.mat').read_bytes()[:150]):
        (root/'cars_annos.mat').write_bytes(content)
        refused(lambda: read_cars(root), ValueError, 'cars_annos.mat: expected a .mat file')


def test_cars_order_and_splits(lay_out):
    root, records = lay_out('cars'), cars_records()[::-1]
    write_cars(root, records)
    table = read_cars(root)
    assert table['path'].tolist() == [r[0] for r in records]
    assert table['split'].tolist() == ['test']*4 + ['train']*4
    assert table[BOX].iloc[0].tolist() == [1, 2, 15, 12]
    assert read_cars(root, 'official')['split'].tolist() == ['test', 'train']*4


def test_sop_classes(lay_out):
    table = read_sop(lay_out('sop'))
    assert table['name'].tolist() == ['bicycle 1', 'bicycle 2', 'lamp 3', 'lamp 4']
    assert table['split'].tolist() == ['train', 'train', 'test', 'test']


def test_inshop_layouts(lay_out):
    root = lay_out('inshop')
    boxes = read_inshop(root)[BOX]
    assert boxes.iloc[0].tolist() == [1, 2, 15, 12]
    (root/'Eval'/'list_eval_partition.txt').rename(root/'list_eval_partition.txt')
    (root/'Anno'/'list_bbox_inshop.txt').rename(root/'Eval'/'list_bbox_inshop.txt')
    (root/'Img'/'img').rename(root/'img')
    (root/'Img').rmdir()
    table = read_inshop(root)
    assert table['path'].tolist() == CLOTHES
    assert table['split'].tolist() == ['train', 'train', 'query', 'gallery']
    assert table['label'].tolist() == [0, 0, 1, 1]
    pd.testing.assert_frame_equal(table[BOX], boxes)


def test_aircraft_levels_and_boxes(lay_out):
    root = lay_out('aircraft')
    table = read_aircraft(root, 'family', 'official')
    assert table['name'].tolist() == ['Boeing 747', 'A320', 'A320']
    assert table['split'].tolist() == ['train', 'train', 'test']
    assert table[BOX].iloc[0].tolist() == [0, 1, 16, 12]
    refused(lambda: read_aircraft(root, 'genus'), ValueError, "level: expected one of", "found 'genus'")


def test_folder_splits(lay_out):
    root = lay_out('folder')
    assert read_folder(root)['split'].tolist() == ['train']*4 + ['test']*4
    assert set(read_folder(root, 'query')['split']) == {'query'}
    for split, classes in {'train': CLASSES[:2], 'test': CLASSES[2:]}.items():
        (root/split).mkdir()
        for c in classes:
            (root/c).rename(root/split/c)
    table = read_folder(root)
    assert dict(zip(table['name'], table['split'], strict=True)) == dict(
        zip(CLASSES, ['train', 'train', 'test', 'test'], strict=True))
    assert sorted(set(table['label'])) == [0, 1, 2, 3]
    (root/'005.Owl').mkdir()
    assert read_folder(root).equals(table)
    Image.new('RGB', (4, 4)).save(root/'005.Owl'/'x.jpg')
    refused(lambda: read_folder(root), ValueError, "005.Owl: a class folder beside the split folder 'test'")


def test_the_images_of_cub_are_class_folders(lay_out):
    root, columns = lay_out('cub'), ['label', 'name', 'split']
    by_folder, by_files = (t.sort_values('path')[columns].to_numpy() for t in (read_folder(root/'images'), read_cub(root)))
    assert by_folder.tolist() == by_files.tolist()


def test_folder_faults(lay_out, tmp_path):
    root = lay_out('folder')
    (root/'005.Owl').mkdir()
    (root/'005.Owl'/'Thumbs.db').write_text('')
    assert '005.Owl' not in set(read_folder(root)['name'])
    (root/'005.Owl'/'deeper').mkdir()
    Image.new('RGB', (4, 4)).save(root/'005.Owl'/'deeper'/'A.PNG')
    (root/'readme.txt').write_text('passed over')
    (root/'._a.jpg').write_text('passed over')
    (root/'.cache').mkdir()
    assert read_folder(root)['path'].iloc[-1] == '005.Owl/deeper/A.PNG'
    (tmp_path/'empty').mkdir()
    refused(lambda: read_folder(tmp_path/'empty'), ValueError, 'empty: no image that is read here')


TABLE_FAULTS = [
    (dict(labels=[0, .5]), 'labels: expected integers'),
    (dict(labels=['0', '1']), 'labels: expected integers'),
    (dict(labels=[0, -1]), 'row 1: label -1 is negative'),
    (dict(paths=['a', '/b']), "row 1: expected a path relative to the root, found '/b'"),
    (dict(paths=['a', '']), 'row 1: expected a path'),
    (dict(paths=['a', '../../etc/x.jpg']), "row 1: expected a path relative to the root, found '../../etc/x.jpg'"),
    (dict(paths=['a', 'b/../../x.jpg']), 'row 1: expected a path relative'),
    (dict(paths=['a', 'b/..']), 'row 1: expected a path relative'),
    (dict(paths=['a', '..\\x.jpg']), 'row 1: expected a path relative'),
    (dict(paths=['a', 'C:/x.jpg']), 'row 1: expected a path relative'),
    (dict(paths=['a', 'c:x.jpg']), 'row 1: expected a path relative'),
    (dict(paths=['a', 'a']), "row 1: path 'a' appears"),
    (dict(labels=[0, 0]), "row 1: class name 'y' differs"),
    (dict(names=['x', 'x']), "row 1: class name 'x' belongs to another label"),
    (dict(splits=['train', 'dev']), "row 1: expected a split of"),
    (dict(boxes=[[0, 0, 1, 1], [0, 0, 1, 0]]), 'row 1: expected a box x1 < x2, y1 < y2, found 0 0 1 0'),
    (dict(paths=[], labels=[], names=[], splits=[]), 'no images'),
    (dict(names=['x']), 'length')]


@pytest.mark.parametrize('fault,message', TABLE_FAULTS)
def test_make_table_fault(tmp_path, fault, message):
    good = dict(paths=['a', 'b'], labels=[0, 1], names=['x', 'y'], splits='train', root=tmp_path, dataset='x')
    make_table(**good)
    refused(lambda: make_table(**good | fault), ValueError, message)


def test_paths_with_dots_and_colons(tmp_path):
    paths = ['a..b/c.jpg', '..a/b.jpg', 'a/...jpg', 'owl: barn/x.jpg']
    assert make_table(paths, [0]*4, ['x']*4, 'train', tmp_path, 'x')['path'].tolist() == paths


@pytest.fixture
def picture():
    "A picture with a dark upper left quarter, so that its orientation shows."
    img = Image.new('RGB', (40, 30), (200, 120, 40))
    img.paste((20, 30, 40), (0, 0, 20, 15))
    return img


def saved(path, img, **kwargs):
    img.save(path, **kwargs)
    return load_image(path)


def near(img, xy, color, eps=6):
    assert img.mode == 'RGB'
    assert np.abs(np.subtract(img.getpixel(xy), color)).max() <= eps, img.getpixel(xy)


@pytest.mark.parametrize('mode,ext', [('RGB', 'jpg'), ('RGB', 'png'), ('RGB', 'webp'), ('RGB', 'bmp'), ('RGB', 'tif'),
                                      ('CMYK', 'jpg'), ('CMYK', 'tif'), ('YCbCr', 'jpg'), ('LAB', 'tif')])
def test_color_kinds(tmp_path, picture, mode, ext):
    img = picture
    if mode == 'LAB':
        from PIL import ImageCms
        img = ImageCms.profileToProfile(img, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'),
                                        outputMode='LAB')
    out = saved(tmp_path/f'x.{ext}', img if mode == 'LAB' else img.convert(mode))
    assert out.size == (40, 30)
    near(out, (30, 20), (200, 120, 40), 12)
    near(out, (5, 5), (20, 30, 40), 12)


@pytest.mark.parametrize('mode,ext', [('L', 'jpg'), ('L', 'png'), ('1', 'png'), ('LA', 'png')])
def test_grey_kinds(tmp_path, picture, mode, ext):
    out = saved(tmp_path/f'x.{ext}', picture.convert('L').convert(mode, **({'dither': 0} if mode == '1' else {})))
    near(out, (30, 20), (255,)*3 if mode == '1' else (picture.convert('L').getpixel((30, 20)),)*3)


@pytest.mark.parametrize('ext', ['png', 'gif'])
def test_palette(tmp_path, picture, ext):
    near(saved(tmp_path/f'x.{ext}', picture.quantize(8)), (30, 20), (200, 120, 40))


def test_transparency_goes_over_white(tmp_path, picture):
    mask = Image.new('L', picture.size, 255)
    mask.paste(0, (0, 0, 20, 30))
    mask.paste(128, (20, 0, 40, 15))
    rgba = picture.convert('RGBA')
    rgba.putalpha(mask)
    la = picture.convert('LA')
    la.putalpha(mask)
    for img in (saved(tmp_path/'rgba.png', rgba), saved(tmp_path/'rgba.webp', rgba, lossless=True)):
        near(img, (5, 20), (255,)*3)
        near(img, (30, 20), (200, 120, 40))
        near(img, (30, 5), (227, 187, 147))
    near(saved(tmp_path/'la.png', la), (5, 20), (255,)*3)
    palette = picture.quantize(8)
    clear = palette.getpixel((5, 5))
    near(saved(tmp_path/'index.png', palette, transparency=clear), (5, 5), (255,)*3)
    near(saved(tmp_path/'index.gif', palette, transparency=clear), (5, 5), (255,)*3)
    near(saved(tmp_path/'bytes.png', palette, transparency=bytes([0 if i == clear else 255 for i in range(8)])), (5, 5),
         (255,)*3)
    near(saved(tmp_path/'key.png', picture, transparency=(20, 30, 40)), (5, 5), (255,)*3)


@pytest.mark.parametrize('ext', ['png', 'tif'])
def test_16_bit_is_scaled(tmp_path, ext):
    values = np.array([[0, 257, 65535], [32768, 128, 129]], dtype=np.uint16)
    out = saved(tmp_path/f'x.{ext}', Image.fromarray(values))
    assert out.mode == 'RGB'
    assert np.asarray(out)[..., 0].tolist() == [[0, 1, 255], [128, 0, 1]]


@pytest.mark.parametrize('dtype', [np.uint16, np.int32])
@pytest.mark.parametrize('most, wanted', [(255, lambda v: v), (65535, lambda v: (v + 128)//257)])
def test_the_largest_number_tells_the_range(tmp_path, dtype, most, wanted):
    "8-bit data in files of 16 or 32 bits stay as they are: photographs loaded nearly black."
    values = np.linspace(0, most, 300).astype(int)
    out = saved(tmp_path/'x.tif', Image.fromarray(values.reshape(15, 20).astype(dtype)))
    assert np.asarray(out)[..., 1].ravel().tolist() == wanted(values).tolist()


@pytest.mark.parametrize('values', [[0, 65536], [-1, 200], [-2**31, 2**31 - 1]])
def test_numbers_without_a_range_are_refused(tmp_path, values):
    Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path/'x.tif')
    refused(lambda: load_image(tmp_path/'x.tif'), BadImage, f'x.tif: an image of numbers from {values[0]} to {values[1]}')


def test_floating_point_is_refused(tmp_path):
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path/'x.tif')
    refused(lambda: load_image(tmp_path/'x.tif'), BadImage, 'x.tif: an image of floating-point numbers')


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('ext', ['jpg', 'png', 'webp'])
def test_exif_orientation(tmp_path, picture, orientation, ext):
    T = Image.Transpose
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
            7: T.TRANSVERSE, 8: T.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture.transpose(undo[orientation]) if orientation > 1 else picture
    out = saved(tmp_path/f'x.{ext}', stored, exif=exif)
    assert out.size == (40, 30)
    near(out, (5, 5), (20, 30, 40), 12)
    near(out, (30, 20), (200, 120, 40), 12)
    near(load_image(tmp_path/f'x.{ext}', box=(2, 2, 12, 12)), (5, 5), (20, 30, 40), 12)


@pytest.mark.parametrize('exif', [b'Exif\0\0', b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0MM\0*\0\0\0\x08\xff\xff', b'junk'])
def test_damaged_exif_is_read_or_named(tmp_path, picture, exif):
    picture.save(tmp_path/'x.jpg', exif=exif)
    try:
        assert load_image(tmp_path/'x.jpg').size == (40, 30)
    except BadImage as e:
        assert 'x.jpg: ' in str(e)


@pytest.mark.parametrize('ext', ['jpg', 'png', 'gif', 'webp', 'bmp', 'tif'])
@pytest.mark.parametrize('part', [0, .1, .5, .9])
def test_truncated(tmp_path, ext, part):
    path = tmp_path/f'x.{ext}'
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:int(part*path.stat().st_size)])
    refused(lambda: load_image(path), BadImage, f'{path}: ')


@pytest.mark.parametrize('content', [b'', b'<html>404</html>', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'\0'*999])
def test_not_an_image(tmp_path, content):
    (tmp_path/'x.jpg').write_bytes(content)
    refused(lambda: load_image(tmp_path/'x.jpg'), BadImage, 'x.jpg: ')


def test_files_that_cannot_be_opened(tmp_path):
    refused(lambda: load_image(tmp_path/'no.jpg'), FileNotFoundError, 'no.jpg')
    refused(lambda: load_image(tmp_path), IsADirectoryError, str(tmp_path))


def test_no_image_is_opened_but_by_the_list_of_formats():
    "EPS files, which Pillow gives to Ghostscript, must not be opened anywhere."
    calls = [(f.name, line) for f in Path(fgir.__file__).parent.rglob('*.py') for line in f.read_text().splitlines()
             if re.search(r'Image\.open\(|imread|read_image|PILImage', line)]
    assert calls and [c for c in calls if 'formats=' not in c[1]] == []
    assert set(FORMATS) <= {'JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'AVIF', 'JPEG2000', 'HEIF'}


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch ran) (w) file\n%%EOF\n'
FLI = (b'\x80\0\0\0\x12\xaf\1\0' + b'\x08\0'*2).ljust(128, b'\0')


@pytest.mark.parametrize('content', [EPS, FLI, b'/* XPM */\n"8 8 1 1",\n"a c #000000",\n' + b'"aaaaaaaa",\n'*8, b'<svg/>'])
def test_other_formats_are_not_opened(tmp_path, monkeypatch, content):
    monkeypatch.setattr('subprocess.Popen', lambda *args, **kwargs: pytest.fail('a program was started'))
    (tmp_path/'x.jpg').write_bytes(content)
    refused(lambda: load_image(tmp_path/'x.jpg'), BadImage, 'x.jpg: not an image that can be identified')
    table = make_table(['x.jpg'], [0], ['a'], 'test', tmp_path, 'x')
    assert len(check_images(table, progress=False)) == 1


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes on this system')
def test_pipes_sockets_and_devices_are_no_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    os.mkfifo(tmp_path/'pipe.jpg')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind('socket.jpg')
        (tmp_path/'device.jpg').symlink_to('/dev/zero')
        names = ['pipe.jpg', 'socket.jpg', 'device.jpg']
        for name in names:
            refused(lambda name=name: load_image(tmp_path/name), BadImage, f'{name}: a pipe, socket or device')
        table = make_table(names, [0]*3, ['a']*3, 'test', tmp_path, 'x')
        assert len(check_images(table, progress=False)) == 3


def test_vast_images_are_refused_in_a_line(tmp_path):
    (tmp_path/'x.pgm').write_bytes(b'P5 60000 60000 255\n' + b'\0'*99)
    refused(lambda: load_image(tmp_path/'x.pgm'), BadImage, 'x.pgm: Image size (3600000000 pixels)')


def test_errors_without_words_are_named(tmp_path, monkeypatch, picture):
    picture.save(tmp_path/'x.png')
    def load(*args): raise MemoryError
    monkeypatch.setattr('PIL.PngImagePlugin.PngImageFile.load', load)
    refused(lambda: load_image(tmp_path/'x.png'), BadImage, 'x.png: MemoryError')


@pytest.mark.parametrize('ending', sorted(_IMAGE_EXTENSIONS))
def test_every_ending_that_is_read_is_an_image(tmp_path, picture, ending):
    "A photograph is saved under each ending, and found in its class folder."
    for c in 'ab':
        (tmp_path/c).mkdir()
        picture.save(tmp_path/c/f'x{ending}')
    table = read_folder(tmp_path)
    assert table['path'].tolist() == [f'a/x{ending}', f'b/x{ending}']
    assert load_row(table, 0).size == picture.size


@pytest.mark.parametrize('lost', [['a/1.psd'], ['a/1.JXL', 'b/2.psd', 'b/3.psd'], ['x.psd'], ['a/deep/1.psd']])
def test_what_is_left_out_of_a_folder_is_said_in_a_line(lay_out, caplog, lost):
    root = lay_out('folder')
    table = read_folder(root)
    assert not caplog.records
    for path in lost:
        path = root/path.replace('a/', '001.Finch/').replace('b/', '002.Siskin/')
        path.parent.mkdir(exist_ok=True)
        path.touch()
    again = read_folder(root)
    assert again['path'].equals(table['path']) and len(caplog.records) == 1
    message, ending = caplog.records[0].getMessage(), Path(lost[-1]).suffix
    assert message.startswith(f'{root}: left out ') and f'{len(lost) - (len(lost) > 1)} {ending}' in message and '\n' not in message


def test_links_to_folders(lay_out, caplog, tmp_path_factory):
    "A class folder may be a link; one further down is counted, and circles end."
    root, other = lay_out('folder'), tmp_path_factory.mktemp('other')
    Image.new('RGB', (8, 8)).save(other/'1.png')
    (root/'005.Tit').symlink_to(other)
    assert read_folder(root)['path'].iloc[-1] == '005.Tit/1.png' and not caplog.records
    (root/'001.Finch'/'circle').symlink_to(root)
    (root/'001.Finch'/'more').symlink_to(other)
    assert len(read_folder(root)) == 9 and 'left out 2 linked folder(s); ' in caplog.records[0].getMessage()


def test_a_folder_of_unreadable_formats_is_an_error_that_counts_them(tmp_path):
    for i in range(3): (tmp_path/f'{i}.psd').touch()
    refused(lambda: read_folder(tmp_path), ValueError, 'no image that is read here (3 .psd; ')


WITHOUT_HEIF = """
import sys; sys.modules['pillow_heif'] = None
import importlib.util as u; find = u.find_spec; u.find_spec = lambda name, *a: None if name == 'pillow_heif' else find(name, *a)
from fgir.data.images import load_image; from fgir.data.readers import read_folder
print(len(read_folder(sys.argv[1])))
try: load_image(sys.argv[1] + '/x.heic')
except ValueError as e: print(e)
"""


def test_heic_is_read_or_what_reads_it_is_named(tmp_path, picture):
    pytest.importorskip('pillow_heif', reason='needs pillow-heif, of the tools for development')
    for name in ('x.heic', 'y.HIF', 'z.png'): picture.save(tmp_path/name, **{} if name == 'z.png' else {'format': 'HEIF'})
    assert len(read_folder(tmp_path)) == 3
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.resize((40, 30)).save(tmp_path/'turned.heic', exif=turned.tobytes())
    assert load_image(tmp_path/'turned.heic').size == (30, 40)
    run = subprocess.run([sys.executable, '-c', WITHOUT_HEIF, tmp_path], capture_output=True, text=True)
    needs = 'reading it needs pillow-heif: pip install "fgir[heif]"'
    assert run.stdout.splitlines() == ['1', f'{tmp_path}/x.heic: {needs}'], run.stderr
    assert f'left out 2 .heic, 1 .hif; {needs}; read are JPEG' in run.stderr


def test_boxes(tmp_path, picture):
    path = tmp_path/'x.png'
    picture.save(path)
    assert load_image(path, (10, 5, 30, 20)).size == (20, 15)
    assert load_image(path, (-10, -5, 300, 200)).size == (40, 30)
    refused(lambda: load_image(path, (40, 0, 50, 10)), BadImage, 'x.png: box 40 0 50 10 lies outside')
    refused(lambda: load_image(path, (3.1, 0, 3.2, 10)), BadImage, 'x.png: box')
    table = make_table(['x.png'], [0], ['a'], 'test', tmp_path, 'x')
    refused(lambda: load_row(table, 0, crop=True), ValueError, f'crop: the table of {tmp_path} has no boxes')


def test_check_and_drop(tmp_path, picture):
    names = [f'{i}.jpg' for i in range(40)]
    for n in names:
        picture.save(tmp_path/n)
    (tmp_path/names[3]).write_bytes((tmp_path/names[3]).read_bytes()[:300])
    (tmp_path/names[39]).unlink()
    boxes = [[0, 0, 10, 10]]*39 + [[0, 0, 10, 10]]
    boxes[7] = [50, 0, 60, 10]
    table = make_table(names, [0]*40, ['a']*40, 'test', tmp_path, 'x', boxes)
    for n_workers in (None, 1, 3):
        bad = check_images(table, n_workers, progress=False)
        assert bad.frame['row'].tolist() == [3, 39] and bad.frame['path'].tolist() == [names[3], names[39]]
    bad = check_images(table, progress=False, crop=True)
    assert bad and len(bad) == 3 and bad.n_checked == 40
    assert '3 of 40 images cannot be read' in repr(bad) and 'row 7, 7.jpg: box 50 0 60 10 lies outside' in repr(bad)
    good = drop_bad(table, bad)
    assert good.index.tolist() == list(range(37)) and good.attrs == table.attrs
    assert not check_images(good, progress=False, crop=True)
    assert drop_bad(good, check_images(good, progress=False)).equals(good)


def test_hold_out(tmp_path):
    n = 20
    table = make_table([f'{i}' for i in range(n)], [i//2 for i in range(n)], [f'c{i//2}' for i in range(n)],
                            ['train']*10 + ['test']*10, tmp_path, 'x')
    for fraction, classes in [(.2, 1), (.4, 2), (.01, 1), (.99, 4)]:
        held = hold_out_classes(table, fraction)
        assert held.loc[held['split'] == 'valid', 'label'].nunique() == classes
        assert held[held['split'] == 'test'].equals(table[table['split'] == 'test'])
    assert len({tuple(hold_out_classes(table, seed=s)['split']) for s in range(20)}) > 1
    assert hold_out_classes(table, seed=3).equals(hold_out_classes(table, seed=3))
    refused(lambda: hold_out_classes(held), ValueError, "have the split 'valid' already")
    refused(lambda: hold_out_classes(table, 1), ValueError, 'fraction: expected')
    refused(lambda: hold_out_classes(table[table['split'] == 'test']), ValueError, 'found 0')


def test_write_atomic(tmp_path):
    path = tmp_path/'new'/'x.npy'
    with write_atomic(str(path)) as tmp:
        assert tmp.parent == path.parent and tmp.suffix == '.npy'
        np.save(tmp, np.arange(3))
    with pytest.raises(KeyboardInterrupt):
        with write_atomic(path) as tmp:
            tmp.write_bytes(b'half')
            raise KeyboardInterrupt
    assert [f.name for f in path.parent.iterdir()] == ['x.npy'] and np.load(path).tolist() == [0, 1, 2]


def write_folder(path, name, error=None, force=False):
    with write_folder_atomic(path, force) as tmp:
        (tmp/name).touch()
        if error: raise error


def test_write_folder_atomic(tmp_path):
    path = tmp_path/'new'/'x'
    def found(): return [f.relative_to(tmp_path).as_posix() for f in sorted(tmp_path.rglob('*'))]
    with pytest.raises(KeyboardInterrupt): write_folder(path, 'a', KeyboardInterrupt)
    assert found() == ['new']
    path.mkdir()
    write_folder(str(path), 'a')
    for force in (False, True):
        with pytest.raises((FileExistsError, KeyboardInterrupt)): write_folder(path, 'b', KeyboardInterrupt, force)
        assert found() == ['new', 'new/x', 'new/x/a']
    write_folder(path, 'b', force=True)
    assert found() == ['new', 'new/x', 'new/x/b']


def test_the_old_folder_comes_back(tmp_path, monkeypatch):
    "Renaming the new folder fails after the old one was moved away."
    write_folder(tmp_path/'x', 'a')
    replace, calls = os.replace, []

    def second_fails(*args):
        calls.append(args)
        if len(calls) == 2: raise OSError('the disk is gone')
        replace(*args)

    monkeypatch.setattr(os, 'replace', second_fails)
    with pytest.raises(OSError, match='gone'): write_folder(tmp_path/'x', 'b', force=True)
    assert [p.name for p in tmp_path.iterdir()] == ['x'] and (tmp_path/'x/a').exists()


def test_shared_dir(tmp_path, monkeypatch):
    monkeypatch.setenv('FGIR_SHARED', str(tmp_path))
    assert shared_dir() == tmp_path
    monkeypatch.setenv('FGIR_SHARED', str(tmp_path/'no'))
    assert shared_dir() is None
    monkeypatch.delenv('FGIR_SHARED')
    (tmp_path/'project'/'nbs').mkdir(parents=True)
    (tmp_path/'project'/'pyproject.toml').write_text('[project]\nname = "fgir"\n')
    monkeypatch.chdir(tmp_path/'project'/'nbs')
    assert shared_dir() is None
    (tmp_path/'shared').mkdir()
    assert shared_dir() == tmp_path/'shared'


@pytest.mark.data
@pytest.mark.parametrize('read,folder,counts', [
    (read_cub, 'CUB_100', {('test', 50): 2953, ('train', 50): 2949}),
    (read_cars, 'cars', {('test', 98): 4092, ('train', 98): 4052})])
def test_real(read, folder, counts):
    shared = shared_dir()
    if shared is None:
        pytest.skip('the folder of real photographs (FGIR_SHARED) is absent')
    table = read(shared/'data'/folder)
    groups = table.groupby('split')['label'].agg(['nunique', 'size'])
    assert {(s, r['nunique']): r['size'] for s, r in groups.iterrows()} == counts
