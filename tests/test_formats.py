"Crops, the programs' file formats, archives, downloads and `prepare`: round trips and everything that can go wrong."

import io
import json
import os
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import miniature
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from scipy.io import savemat

import fgir.data.archives as archives
import fgir.papers.formats as formats
from fgir.data.archives import SOURCES, download, extract_archive, read_cars_devkit
from fgir.data.csv import read_table, write_table
from fgir.data.images import BadImage, check_images, drop_bad, load_image
from fgir.data.readers import read_cub, read_inshop, read_sop
from fgir.data.table import image_path, make_table
from fgir.papers.formats import (
    CFGA_FILES,
    prepare,
    read_cfga_json,
    read_cgd_dicts,
    write_cfga_json,
    write_cgd_dicts,
    write_crops,
)

def tree(folder: Path) -> dict[str, bytes]:
    "All files below a folder, hidden ones too."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def images(table: pd.DataFrame) -> list[Path]:
    return [image_path(table, i) for i in range(len(table))]


@pytest.fixture
def birds(tmp_path):
    return read_cub(miniature.cub(tmp_path/'cub'))


# Tables


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_table_round_trip(tmp_path, drawn):
    letters = st.characters(exclude_categories=['C', 'Zl', 'Zp'])
    names = drawn.draw(st.lists(st.text(letters, min_size=1), min_size=1, max_size=4, unique=True))
    n = len(names)
    coordinates = st.floats(-1e6, 1e6, allow_subnormal=False)
    corners = [sorted(drawn.draw(st.lists(coordinates, min_size=2, max_size=2, unique=True))) for _ in range(2*n)]
    boxes = np.array(corners).reshape(n, 2, 2).transpose(0, 2, 1).reshape(n, 4)
    labels = drawn.draw(st.lists(st.integers(0, 2**40), min_size=n, max_size=n, unique=True))
    table = make_table([f'{i}.jpg' for i in range(n)], labels, names, 'train', tmp_path, 'folder',
                       boxes if drawn.draw(st.booleans()) else None)
    write_table(table, tmp_path/'t.csv')
    back = read_table(tmp_path/'t.csv')
    pd.testing.assert_frame_equal(back, table)
    assert back.attrs == table.attrs


def test_table_errors_name_the_line(tmp_path, birds):
    file = tmp_path/'t.csv'
    write_table(birds, file)
    text = file.read_text()
    file.write_text(text.replace(',0,001', ',x,001', 1))
    with pytest.raises(ValueError, match="t.csv, line 2: expected an integer label, found 'x'"):
        read_table(file)
    file.write_text(text.replace(',test,', ',tset,', 1))
    with pytest.raises(ValueError, match='t.csv, line 6: expected a split'):
        read_table(file)
    file.write_text(text.replace('label', 'lable', 1))
    with pytest.raises(ValueError, match="t.csv, line 1: no column 'label'"):
        read_table(file)
    file.write_text(text)
    assert read_table(file, root='/elsewhere').attrs['root'] == '/elsewhere'
    file.with_suffix('.json').write_text('{')
    with pytest.raises(ValueError, match='t.json'):
        read_table(file)
    file.with_suffix('.json').unlink()
    assert read_table(file).attrs == dict(root=str(tmp_path), dataset='folder')
    file.unlink()
    with pytest.raises(FileNotFoundError, match='t.csv: no such table'):
        read_table(file)


@pytest.mark.parametrize('text, labels, names', [
    ('path\na\nb\n', [-1, -1], ['', '']), ('path,name\na,jay\nb,\n', [0, -1], ['jay', '']),
    ('path,name\na,jay\nb,crow\n', [1, 0], ['jay', 'crow']), ('path,label\na,7\nb,\n', [7, -1], ['7', '']),
    ('path,label,name,split\na,-1,,\nb,3,jay,test\n', [-1, 3], ['', 'jay'])])
def test_a_list_of_photographs_is_a_table(tmp_path, text, labels, names):
    (tmp_path/'list.csv').write_text(text)
    table = read_table(tmp_path/'list.csv')
    assert table['path'].tolist() == ['a', 'b'] and table['label'].tolist() == labels and table['name'].tolist() == names
    write_table(table, tmp_path/'again.csv')
    assert read_table(tmp_path/'again.csv').equals(table)


@pytest.mark.parametrize('text, says', [
    (b'', 'No columns to parse'), (b'path,label,name,split\na,0\nb,0,x,train,1,2\n', 'Expected 4 fields in line 3, saw 6'),
    (b'path,label,name,split\n\xff,0,x,train\n', "can't decode byte"),
    (b'path,label,name,split\na,0\n', 'line 2: label 0 has no name'),
    (b'path,name,split,label\na,x\n', 'line 2: expected an integer label'),
    (b'path,label,name,split,x1\na,0,x,train,1\n', "line 1: no column 'y1'"),
    (b'path,label,name,split,y1,x2,y2\na,0,x,train,1,2,2\n', "line 1: no column 'x1'")])
def test_broken_tables_are_named(tmp_path, birds, text, says):
    write_table(birds, tmp_path/'t.csv')
    (tmp_path/'t.csv').write_bytes(text)
    with pytest.raises(ValueError, match=says) as e: read_table(tmp_path/'t.csv')
    assert str(e.value).startswith(f"{tmp_path/'t.csv'}") and '\n' not in str(e.value)


# Crops


@pytest.mark.parametrize('crop', [True, False])
def test_crop_has_the_bytes_of_the_program(tmp_path, birds, crop):
    crops = write_crops(birds, tmp_path/'out', crop=crop, progress=False)
    for i, line in enumerate((tmp_path/'cub/bounding_boxes.txt').read_text().splitlines()):
        x, y, w, h = (int(float(v)) for v in line.split()[1:])
        img = Image.open(image_path(birds, i)).convert('RGB')
        if crop:
            img = img.crop((x, y, x + w, y + h))
        img.save(tmp_path/'seed.jpg')
        assert image_path(crops, i) == tmp_path/'out'/image_path(birds, i).name
        assert image_path(crops, i).read_bytes() == (tmp_path/'seed.jpg').read_bytes()
    assert ('x1' in crops) is not crop
    assert crops[['label', 'name', 'split']].equals(birds[['label', 'name', 'split']])


def test_car_crop_takes_the_corners_as_they_are(tmp_path):
    cars = prepare('cars', miniature.cars(tmp_path/'cars'), tmp_path/'out', crop=True, progress=False)
    assert {Image.open(p).size for p in images(cars)} == {(38 - 2, 29 - 3)}
    assert list(cars['path']) == [f'{k:06}.jpg' for k in range(1, 9)]


def test_colliding_names_keep_their_folders(tmp_path):
    birds = read_cub(miniature.cub(tmp_path/'cub', repeat_names=True))
    crops = write_crops(birds, tmp_path/'out', progress=False)
    assert list(crops['path']) == list(birds['path'])
    assert len(tree(tmp_path/'out')) == len(birds) + 1


def test_names_differing_in_case_collide(tmp_path):
    for name in ('a/x.jpg', 'b/X.jpg'):
        miniature.photograph(tmp_path/'in'/name)
    table = make_table(['a/x.jpg', 'b/X.jpg'], [0, 1], ['a', 'b'], 'train', tmp_path/'in', 'folder')
    assert list(write_crops(table, tmp_path/'out', crop=False, progress=False)['path']) == ['a/x.jpg', 'b/X.jpg']


def test_inshop_name_has_the_item(tmp_path):
    shop = read_inshop(miniature.inshop(tmp_path/'shop'))
    crops = write_crops(shop, tmp_path/'out', crop=False, progress=False)
    assert crops['path'][0] == 'id_00000001_02_1_front.jpg'


def test_crops_without_boxes(tmp_path):
    table = read_sop(miniature.sop(tmp_path/'sop'))
    with pytest.raises(ValueError, match='has no boxes'):
        write_crops(table, tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_crops_never_overwrite_their_sources(tmp_path, birds):
    before = tree(tmp_path)
    with pytest.raises(ValueError, match='would overwrite'):
        write_crops(birds.assign(path=birds['path'].str.split('/').str[-1]), tmp_path/'cub', crop=False, force=True)
    with pytest.raises(FileExistsError, match='other files'):
        write_crops(birds, tmp_path/'cub')
    assert tree(tmp_path) == before


def test_crops_never_overwrite_their_sources_by_another_way(tmp_path, birds):
    write_crops(birds, tmp_path/'plain', progress=False)
    plain = make_table(sorted(f.name for f in (tmp_path/'plain').glob('*.jpg')), range(8), list('abcdefgh'), 'train',
                       tmp_path/'plain', 'cub')
    (tmp_path/'link').symlink_to('plain')
    before = tree(tmp_path/'plain')
    for out in (tmp_path/'link', tmp_path/'plain/../plain'):
        with pytest.raises(ValueError, match='would overwrite'): write_crops(plain, out, crop=False, force=True)
    assert tree(tmp_path/'plain') == before


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_interrupted_crops_resume(tmp_path, birds, error):
    whole = tree(Path(write_crops(birds, tmp_path/'whole', progress=False).attrs['root']))
    save, calls = Image.Image.save, []

    def failing(self, path, **kwargs):
        calls.append(path)
        if len(calls) == 4:
            Path(path).write_bytes(b'half')
            raise error
        save(self, path, **kwargs)

    with patch.object(Image.Image, 'save', failing), pytest.raises(type(error)):
        write_crops(birds, tmp_path/'out', n_workers=1, progress=False)
    left = tree(tmp_path/'out')
    assert 3 < len(left) < len(whole) and all(whole[name] == content for name, content in left.items())
    with patch.object(Image.Image, 'save', autospec=True, side_effect=save) as counted:
        write_crops(birds, tmp_path/'out', progress=False)
    assert counted.call_count == len(whole) - len(left)
    assert tree(tmp_path/'out') == whole


def test_other_settings_are_not_mixed_in(tmp_path, birds):
    write_crops(birds, tmp_path/'out', progress=False)
    with pytest.raises(FileExistsError, match='use another folder or force=True'):
        write_crops(birds, tmp_path/'out', quality=90, progress=False)
    write_crops(birds, tmp_path/'out', quality=90, force=True, progress=False)
    write_crops(birds, tmp_path/'fresh', quality=90, progress=False)
    assert tree(tmp_path/'out') == tree(tmp_path/'fresh')


def test_bad_image_stops_no_other(tmp_path, birds):
    image_path(birds, 2).write_bytes(image_path(birds, 2).read_bytes()[:300])
    with pytest.raises(BadImage, match=r'Bird_2_0000.jpg.*\(1 of 8 images'):
        write_crops(birds, tmp_path/'out', progress=False)
    assert len(tree(tmp_path/'out')) == 7 + 1
    good = drop_bad(birds, check_images(birds, progress=False))
    assert len(write_crops(good, tmp_path/'out', progress=False)) == 7


def test_other_kinds_of_image(tmp_path):
    Image.new('L', (9, 7), 100).save(tmp_path/'grey.png')
    Image.new('CMYK', (9, 7)).save(tmp_path/'print.jpg')
    table = make_table(['grey.png', 'print.jpg'], [0, 0], ['a', 'a'], 'train', tmp_path, 'folder')
    for path in images(write_crops(table, tmp_path/'out', crop=False, progress=False)):
        img = Image.open(path)
        assert (img.mode, img.size) == ('RGB', (9, 7))


# CFGA


@pytest.mark.parametrize('name', ['cub', 'cars', 'sop', 'folder'])
def test_cfga_round_trip(tmp_path, name):
    table = formats.READERS[name](miniature.SETS[name](tmp_path/name))
    write_cfga_json(table, tmp_path/'out')
    back = read_cfga_json(tmp_path/'out')
    expected = table.sort_values('split', key=lambda s: s != 'train', kind='stable').reset_index(drop=True)
    assert images(back) == images(expected)
    assert back[['label', 'split']].equals(expected[['label', 'split']])
    again = tmp_path/'again'
    write_cfga_json(back, again)
    assert tree(again) == tree(tmp_path/'out')


def test_cfga_files_are_flat_lists_in_file_order(tmp_path):
    table = formats.READERS['cars'](miniature.cars(tmp_path/'cars'))
    write_cfga_json(table, tmp_path/'out')
    assert sorted(tree(tmp_path/'out')) == sorted(CFGA_FILES.values())
    values = {name: json.loads(text) for name, text in tree(tmp_path/'out').items()}
    assert values['train_labels.json'] == [0, 1, 0, 1]
    assert values['test_labels.json'] == [2, 3, 3, 2]
    assert values['test_paths.json'] == [f'{tmp_path}/cars/car_ims/{k:06}.jpg' for k in (2, 4, 5, 7)]
    write_cfga_json(table, tmp_path/'out', root='/data/cars')
    assert json.loads((tmp_path/'out/test_paths.json').read_text())[0] == '/data/cars/car_ims/000002.jpg'


def test_cfga_class_names(tmp_path, birds):
    write_cfga_json(birds, tmp_path/'a')
    assert list(read_cfga_json(tmp_path/'a')['name']) == list(birds['name'])
    cars = formats.READERS['cars'](miniature.cars(tmp_path/'cars'))
    write_cfga_json(cars, tmp_path/'b')
    assert set(read_cfga_json(tmp_path/'b')['name']) == {'1', '2', '3', '4'}


@pytest.mark.parametrize(('file', 'text', 'message'), [
    ('train_labels.json', '[0]', 'train_labels.json: 1 labels for the 4 paths of train_paths.json'),
    ('test_labels.json', '[2, 2, 3, true]', 'test_labels.json, entry 3: expected an integer, found True'),
    ('test_labels.json', '[2, 2, 3, 3.0]', 'test_labels.json, entry 3: expected an integer, found 3.0'),
    ('test_labels.json', '[2, 2, 3, -1]', 'entry 3: label -1 is negative'),
    ('train_paths.json', '["a", 1, "b", "c"]', 'train_paths.json, entry 1: expected a path, found 1'),
    ('train_paths.json', '["/a/1", "/a/2", "/b/3", "/b/4"]', 'train_paths.json, entry 0: no image /a/1'),
    ('train_paths.json', '{"a": 1}', 'train_paths.json: expected a list, found dict'),
    ('train_paths.json', '["a",', 'train_paths.json'),
    ('test_paths.json', None, 'test_paths.json: no such file'),
])
def test_cfga_malformed(tmp_path, birds, file, text, message):
    write_cfga_json(birds, tmp_path/'out')
    if text is None:
        (tmp_path/'out'/file).unlink()
    else:
        (tmp_path/'out'/file).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_cfga_json(tmp_path/'out')


def test_cfga_knows_two_splits(tmp_path):
    with pytest.raises(ValueError, match=r"\['gallery', 'query'\]"):
        write_cfga_json(read_inshop(miniature.inshop(tmp_path/'shop')), tmp_path/'out')
    assert not (tmp_path/'out').exists()


# CGD


@pytest.mark.parametrize('name', list(miniature.SETS))
def test_cgd_round_trip(tmp_path, name):
    table = formats.READERS[name](miniature.SETS[name](tmp_path/name))
    write_cgd_dicts(table, tmp_path/'a.pth')
    back = read_cgd_dicts(tmp_path/'a.pth')
    columns = ['label', 'split']
    expected = pd.Series(table[columns].itertuples(index=False, name=None), images(table))
    assert pd.Series(back[columns].itertuples(index=False, name=None), images(back)).to_dict() == expected.to_dict()
    write_cgd_dicts(back, tmp_path/'b.pth')
    assert torch.load(tmp_path/'b.pth') == torch.load(tmp_path/'a.pth')


def test_cgd_labels_and_order(tmp_path):
    cars = formats.READERS['cars'](miniature.cars(tmp_path/'cars'))
    write_cgd_dicts(cars, tmp_path/'cars.pth')
    dicts = torch.load(tmp_path/'cars.pth', weights_only=True)
    assert list(dicts) == ['train', 'test']
    assert list(dicts['train']) == ['1', '2'] and list(dicts['test']) == ['3', '4']
    assert [Path(p).name for p in dicts['train']['1']] == ['000001.jpg', '000006.jpg']
    shop = read_inshop(miniature.inshop(tmp_path/'shop'))
    write_cgd_dicts(shop, tmp_path/'shop.pth')
    dicts = torch.load(tmp_path/'shop.pth', weights_only=True)
    assert {s: list(d) for s, d in dicts.items()} == {
        'train': ['id_00000001', 'id_00000005'], 'query': ['id_00000002', 'id_00000007'],
        'gallery': ['id_00000002', 'id_00000007']}
    assert read_cgd_dicts(tmp_path/'shop.pth')['name'][0] == 'id_00000001'
    products = read_sop(miniature.sop(tmp_path/'sop'))
    write_cgd_dicts(products, tmp_path/'sop.pth')
    assert list(torch.load(tmp_path/'sop.pth')['test']) == ['11319', '11320']


def test_cgd_reads_the_format_of_2020_and_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    miniature.photograph(Path('car/uncropped/000001.jpg'))
    dicts = {'train': {'1': ['car/uncropped/000001.jpg']}, 'test': {}}
    torch.save(dicts, 'old.pth', _use_new_zipfile_serialization=False)
    table = read_cgd_dicts('old.pth')
    assert images(table) == [tmp_path/'car/uncropped/000001.jpg'] and table['label'][0] == 0


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(('content', 'message'), [
    ([1], 'expected a dictionary of splits'),
    ({}, 'no images'),
    ({'trian': {}}, "trian: expected a split"),
    ({'train': ['a']}, 'train: expected a dictionary'),
    ({'train': {1: ['a']}}, "train: expected a label such as '1'"),
    ({'train': {'0': ['a']}}, "found '0'"),
    ({'train': {'01': ['a']}}, "found '01'"),
    ({'train': {'one': ['a']}}, "found 'one'"),
    ({'train': {'1': 'a.jpg'}}, "train, label '1': expected a list of paths"),
    ({'train': {'1': []}}, 'expected a list of paths'),
    ({'train': {'1': [2]}}, 'expected a list of paths'),
    ({'train': {'1': ['/a'], 'id_00000002': ['/b']}}, 'in one file'),
    ({'train': {'1': ['/nowhere/a.jpg']}}, 'no image /nowhere/a.jpg'),
    ({'train': {'1': ['/a']}, 'test': {'2': ['/a']}}, "test, label '2': path 'a' appears a second time"),
])
def test_cgd_malformed(tmp_path, content, message):
    torch.save(content, tmp_path/'bad.pth')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_cgd_dicts(tmp_path/'bad.pth')


def test_cgd_runs_nothing(tmp_path):
    torch.save({'train': {'1': Trap(tmp_path/'sprung')}}, tmp_path/'trap.pth')
    with pytest.raises(ValueError, match='trap.pth: .*mkdir, which is code and is not run') as e:
        read_cgd_dicts(tmp_path/'trap.pth')
    assert not (tmp_path/'sprung').exists() and 'weights_only' not in str(e.value)


@pytest.mark.parametrize('content', [b'', b'not a pickle', b'PK\x03\x04'])
def test_cgd_not_a_pickle(tmp_path, content):
    (tmp_path/'bad.pth').write_bytes(content)
    with pytest.raises(ValueError, match='bad.pth: not a whole .pth file of tensors and plain values'):
        read_cgd_dicts(tmp_path/'bad.pth')
    with pytest.raises(FileNotFoundError, match='none.pth'):
        read_cgd_dicts(tmp_path/'none.pth')


@pytest.mark.parametrize('write', [
    lambda table, out: write_cgd_dicts(table, out/'old'), lambda table, out: write_table(table, out/'old')])
def test_interrupted_write_keeps_the_old_file(tmp_path, birds, write):
    (tmp_path/'out').mkdir()
    (tmp_path/'out/old').write_text('old')

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    broken = patch.object(torch, 'save', fail), patch.object(pd.DataFrame, 'to_csv', fail)
    with broken[0], broken[1], pytest.raises(KeyboardInterrupt):
        write(birds, tmp_path/'out')
    assert (tmp_path/'out/old').read_text() == 'old'
    assert not [f for f in os.listdir(tmp_path/'out') if f.startswith('.')]


# Archives


def tar_of(*members: tuple, mode: str = 'w:gz') -> bytes:
    "A tar archive of (name, content or type, link name)."
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content, *link in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content.encode()))
            else:
                info.type, info.linkname = content, link[0] if link else ''
                archive.addfile(info)
    return buffer.getvalue()


def zip_of(*members: tuple[str, str], mode: int = stat.S_IFREG | 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo('placeholder')
            info.filename, info.external_attr = name, mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


GOOD = ('good.txt', 'good')
CLIMBING = ['../out.txt', 'a/../../out.txt', '/tmp/fgir-out.txt', '//host/share/out.txt', '..\\out.txt',
            'a\\..\\..\\out.txt', 'C:\\out.txt', 'C:out.txt', '\\out.txt']
MALICIOUS = {
    **{f'tar {n}': tar_of(GOOD, (n, 'x')) for n in CLIMBING},
    **{f'zip {n}': zip_of(GOOD, (n, 'x')) for n in CLIMBING},
    'tar folder outside': tar_of(GOOD, ('../out', tarfile.DIRTYPE)),
    'tar symbolic link out': tar_of(GOOD, ('link', tarfile.SYMTYPE, '../..')),
    'tar absolute symbolic link': tar_of(GOOD, ('link', tarfile.SYMTYPE, '/etc/passwd')),
    'tar write through a link': tar_of(GOOD, ('link', tarfile.SYMTYPE, '..'), ('link/out.txt', 'x')),
    'tar hard link out': tar_of(GOOD, ('link', tarfile.LNKTYPE, '../victim')),
    'tar absolute hard link': tar_of(GOOD, ('link', tarfile.LNKTYPE, '/etc/passwd')),
    'tar pipe': tar_of(GOOD, ('pipe', tarfile.FIFOTYPE)),
    'tar device': tar_of(GOOD, ('null', tarfile.CHRTYPE)),
    'zip symbolic link': zip_of(GOOD, ('link', '/etc/passwd'), mode=stat.S_IFLNK | 0o777),
    'tar empty': tar_of(),
    'zip empty': zip_of(),
    'nothing': b'',
    'text': b'<html>404</html>'*100,
}


@pytest.mark.parametrize('kind', MALICIOUS)
def test_malicious_archive_leaves_nothing(tmp_path, kind):
    (tmp_path/'a').mkdir()
    (tmp_path/'victim').write_text('unharmed')
    (tmp_path/'bad.archive').write_bytes(MALICIOUS[kind])
    before = tree(tmp_path)
    with pytest.raises(ValueError, match='bad.archive: cannot be unpacked: '):
        extract_archive(tmp_path/'bad.archive', tmp_path/'a/b', progress=False)
    assert tree(tmp_path) == before and not list((tmp_path/'a').iterdir())
    assert not Path('/tmp/fgir-out.txt').exists()


@pytest.mark.parametrize('kind', ['', 'gz', 'bz2', 'xz', 'zip'])
@pytest.mark.parametrize('files', [[2**19], [2**17]*4, [0]*1024], ids=['one', 'four', 'many'])
def test_archives_that_unpack_to_too_much(tmp_path, monkeypatch, kind, files):
    "The first file that is too much is not written, nor the others kept."
    monkeypatch.setitem(archives._ROOM, 'bytes', 2**18)
    monkeypatch.setitem(archives._ROOM, 'times', 0)
    members = [(f'{i}.txt', '0'*size) for i, size in enumerate(files)]
    (tmp_path/'bomb').write_bytes(zip_of(*members) if kind == 'zip' else tar_of(*members, mode=f'w:{kind}'))
    with pytest.raises(ValueError, match=r'bomb: cannot be unpacked: more than 262144 bytes come out of \d+$'):
        extract_archive(tmp_path/'bomb', tmp_path/'out', progress=False)
    assert os.listdir(tmp_path) == ['bomb']
    monkeypatch.setitem(archives._ROOM, 'bytes', 2**20)
    assert extract_archive(tmp_path/'bomb', tmp_path/'out', progress=False)


def packed(folder: Path, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == 'zip':
        with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
            for name, content in tree(folder).items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode=f'w:{kind}') as archive:
            archive.add(folder, '.')
    return buffer.getvalue()


@pytest.mark.parametrize('kind', ['', 'gz', 'bz2', 'xz', 'zip'])
def test_archive_whole_or_not_at_all(tmp_path, birds, kind):
    content = tree(tmp_path/'cub')
    whole = packed(tmp_path/'cub', kind)
    (tmp_path/'whole').write_bytes(whole)
    assert tree(extract_archive(tmp_path/'whole', tmp_path/'unpacked', progress=False)) == content
    (tmp_path/'x').mkdir()
    refused = 0
    blocks = range(512, len(whole), max(512, len(whole)//20480*512))
    for cut in sorted({*np.linspace(0, len(whole) - 1, 40, dtype=int), *blocks}):
        (tmp_path/'cut').write_bytes(whole[:cut])
        try:
            extract_archive(tmp_path/'cut', tmp_path/f'x/{cut}', progress=False)
            assert tree(tmp_path/f'x/{cut}') == content
        except ValueError as e:
            assert str(e).startswith(f"{tmp_path/'cut'}: cannot be unpacked")
            assert not [f for f in os.listdir(tmp_path/'x') if f.startswith('.') or f == str(cut)]
            refused += 1
    assert refused > 30


@pytest.mark.parametrize('kind', ['gz', 'bz2', 'xz', 'zip'])
def test_damaged_archive(tmp_path, birds, kind):
    whole = bytearray(packed(tmp_path/'cub', kind))
    content = tree(tmp_path/'cub')
    for at in np.linspace(20, len(whole) - 30, 25, dtype=int):
        damaged = whole.copy()
        damaged[at] ^= 0x55
        (tmp_path/'damaged').write_bytes(damaged)
        try:
            out = extract_archive(tmp_path/'damaged', tmp_path/f'x{at}', progress=False)
            assert list(tree(out).values()) == list(content.values())
        except ValueError:
            assert not (tmp_path/f'x{at}').exists()


def test_damaged_header_inside_a_plain_tar(tmp_path):
    whole = bytearray(tar_of(GOOD, ('second.txt', 'x'), mode='w'))
    whole[1024:1536] = b'\xff'*512
    (tmp_path/'damaged.tar').write_bytes(whole)
    assert tarfile.open(tmp_path/'damaged.tar').getnames() == ['good.txt']
    with pytest.raises(ValueError, match='the end is missing'):
        extract_archive(tmp_path/'damaged.tar', tmp_path/'x', progress=False)


def test_interrupted_unpacking(tmp_path, birds):
    (tmp_path/'a.tgz').write_bytes(packed(tmp_path/'cub', 'gz'))
    before = set(os.listdir(tmp_path))
    for error in (KeyboardInterrupt(), OSError(28, 'No space left on device')):
        with patch.object(tarfile.TarFile, 'extract', side_effect=[None, error]), pytest.raises(type(error)):
            extract_archive(tmp_path/'a.tgz', tmp_path/'out', progress=False)
        assert set(os.listdir(tmp_path)) == before


def test_unpacking_overwrites_nothing(tmp_path):
    (tmp_path/'a.tgz').write_bytes(tar_of(GOOD))
    (tmp_path/'out').mkdir()
    with pytest.raises(FileExistsError, match='out: exists already'):
        extract_archive(tmp_path/'a.tgz', tmp_path/'out')
    with pytest.raises(FileNotFoundError, match='none.tgz'):
        extract_archive(tmp_path/'none.tgz', tmp_path/'x')


def test_unpacked_files_can_be_read_by_others(tmp_path):
    (tmp_path/'a.tgz').write_bytes(tar_of(('d/f', 'x')))
    out = extract_archive(tmp_path/'a.tgz', tmp_path/'out')
    plain = tmp_path/'plain'
    plain.mkdir()
    assert out.stat().st_mode == plain.stat().st_mode


# Downloads


class Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}
    half = False
    count = 0

    def do_GET(self):
        type(self).count += 1
        body = self.files.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header('Content-Length', str(len(body or b'')))
        self.end_headers()
        self.wfile.write((body or b'')[:len(body or b'')//2 if self.half else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type('TestHandler', (Handler,), {'files': {}})
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handler.url = f'http://127.0.0.1:{server.server_address[1]}'
        yield handler
        server.shutdown()


def archive_of(folder: Path, top: str, extra: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        archive.add(folder, top)
        if extra:
            info = tarfile.TarInfo(extra)
            archive.addfile(info)
    return buffer.getvalue()


def test_download_cub(tmp_path, birds, server):
    server.files['/CUB_200_2011.tgz'] = archive_of(tmp_path/'cub', 'CUB_200_2011', 'attributes.txt')
    with patch.dict(archives.ARCHIVES, cub=(f'{server.url}/CUB_200_2011.tgz', 'images.txt')):
        server.half = True
        with pytest.raises(OSError, match='CUB_200_2011.tgz: could not be downloaded: .*(cut short|only)'):
            download('cub', tmp_path/'out', progress=False)
        assert not list((tmp_path/'out').iterdir())
        server.half = False
        root = download('cub', tmp_path/'out')
        assert root == tmp_path/'out/CUB_200_2011/CUB_200_2011'
        fetched = server.count
        assert download('cub', tmp_path/'out') == root and server.count == fetched
    table = read_cub(root)
    assert table.equals(birds)


def test_download_cars_lacks_labels_and_says_so(tmp_path, server):
    kit = miniature.cars_devkit(tmp_path/'kit')
    (kit/'devkit').rename(tmp_path/'devkit')
    server.files['/stanford-cars.tgz'] = archive_of(kit, 'stanford-cars')
    with patch.dict(archives.ARCHIVES, cars=(f'{server.url}/stanford-cars.tgz', 'cars_train')):
        with pytest.warns(UserWarning, match='labels are missing.*cars_test_annos_withlabels.mat'):
            root = download('cars', tmp_path/'out', progress=False)
    with pytest.raises(FileNotFoundError, match='cars_annos.mat: annotation file is missing. Cars-196: ROOT holds'):
        prepare('cars', root, tmp_path/'ready')
    (tmp_path/'devkit').rename(root/'devkit')
    table = prepare('cars', root, tmp_path/'ready', format='both', crop=True, progress=False)
    assert len(table) == 8 and set(table['split']) == {'train', 'test'}


def test_download_errors(tmp_path, server):
    with patch.dict(archives.ARCHIVES, cub=(f'{server.url}/none.tgz', 'images.txt')):
        with pytest.raises(OSError, match='none.tgz: could not be downloaded'):
            download('cub', tmp_path/'out', progress=False)
    server.files['/odd.tgz'] = tar_of(GOOD)
    with patch.dict(archives.ARCHIVES, cub=(f'{server.url}/odd.tgz', 'images.txt')):
        with patch.object(archives, 'check', return_value=False), pytest.raises(OSError, match='not the file that fastai'):
            download('cub', tmp_path/'out', progress=False)
        assert not list((tmp_path/'out').iterdir())
        with pytest.raises(ValueError, match=r"expected images.txt in it, found \['good.txt'\]"):
            download('cub', tmp_path/'out', progress=False)


@pytest.mark.parametrize('name', ['sop', 'inshop', 'aircraft', 'folder'])
def test_no_address(tmp_path, name):
    with pytest.raises(ValueError, match=f'{name} has no stable address') as error:
        download(name, tmp_path/'out')
    assert SOURCES[name] in str(error.value)
    assert not (tmp_path/'out').exists()


def test_unknown_name(tmp_path):
    for call in (lambda: download('birds', tmp_path), lambda: prepare('birds', tmp_path, tmp_path/'out')):
        with pytest.raises(ValueError, match="expected one of .*'cub', 'cars', 'sop', 'inshop', 'aircraft', 'folder'"):
            call()


def test_addresses_are_fastai_s():
    checks = archives.checks_module(archives.fastai.data).read_text()
    assert all(f"'{url}'" in checks for url, _ in archives.ARCHIVES.values())
    assert set(SOURCES) == set(formats.READERS) == set(miniature.SETS)


# The development kit of the cars


@pytest.mark.parametrize('folder', ['devkit', '.'])
def test_devkit(tmp_path, folder):
    root = miniature.cars_devkit(tmp_path/'cars', folder)
    table = read_cars_devkit(root)
    assert list(table['path'][:2]) == ['cars_train/00001.jpg', 'cars_train/00002.jpg'] and len(table) == 8
    assert list(table['label']) == [3, 1, 0, 2]*2
    assert list(table['split']) == ['test', 'train', 'train', 'test']*2
    assert table['name'][0] == miniature.CAR_CLASSES[3]
    assert list(table.loc[0, ['x1', 'y1', 'x2', 'y2']]) == [2, 3, 38, 29]
    assert list(read_cars_devkit(root, 'official')['split']) == ['train']*4 + ['test']*4


def test_devkit_errors(tmp_path):
    root = miniature.cars_devkit(tmp_path/'cars')
    test = root/'devkit/cars_test_annos_withlabels.mat'
    fields = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'fname')
    savemat(test, {'annotations': np.array([(1, 1, 9, 9, '00001.jpg')], [(f, object) for f in fields])})
    with pytest.raises(ValueError, match='withlabels.mat, record 1: expected one each of .*class'):
        read_cars_devkit(root)
    test.write_bytes(b'MATLAB')
    with pytest.raises(ValueError, match='withlabels.mat: expected a .mat file with annotations'):
        read_cars_devkit(root)
    test.unlink()
    with pytest.raises(FileNotFoundError, match='withlabels.mat: annotation file is missing'):
        read_cars_devkit(root)


# Everything together


@pytest.mark.parametrize(('name', 'how'), [
    *((name, how) for name in miniature.SETS for how in ('plain', 'copy')), ('cub', 'crop'), ('cars', 'crop')])
def test_prepare(tmp_path, name, how):
    root, out = miniature.SETS[name](tmp_path/name), tmp_path/'out'
    before = tree(root)
    format = 'cgd' if name == 'inshop' else 'both'
    table = prepare(name, root, out, format=format, progress=False, **{how: True} if how != 'plain' else {})
    kind = 'cropped' if how == 'crop' else 'uncropped'
    assert tree(root) == before
    assert Path(table.attrs['root']) == (root if how == 'plain' else out/kind)
    pd.testing.assert_frame_equal(read_table(out/f'{kind}_table.csv'), table)
    assert set(images(read_cgd_dicts(out/f'{kind}_data_dicts.pth'))) == set(images(table))
    if format == 'both':
        assert set(images(read_cfga_json(out))) == set(images(table))
    assert all(load_image(p) for p in images(table))
    assert not [p for p in out.rglob('*') if p.name.startswith('.')]


def test_prepare_passes_options_to_the_reader(tmp_path):
    root = miniature.cub(tmp_path/'cub')
    assert list(prepare('cub', root, tmp_path/'out', split='official')['split']) == ['train', 'test']*4
    root = miniature.aircraft(tmp_path/'aircraft')
    planes = prepare('aircraft', root, tmp_path/'planes', split='official', level='variant')
    assert list(planes['split']) == ['train']*4 + ['test']*4


def test_prepare_overwrites_only_by_force(tmp_path, birds):
    prepare('cub', tmp_path/'cub', tmp_path/'out', crop=True, format='both', progress=False)
    before = tree(tmp_path/'out')
    for kwargs in ({'crop': True}, {'crop': True, 'format': 'cfga'}, {'format': 'cfga'}):
        with pytest.raises(FileExistsError, match='exists already; use another folder or force=True'):
            prepare('cub', tmp_path/'cub', tmp_path/'out', progress=False, **kwargs)
    assert tree(tmp_path/'out') == before
    prepare('cub', tmp_path/'cub', tmp_path/'out', crop=True, format='both', force=True, progress=False)
    assert tree(tmp_path/'out').keys() == before.keys()
    prepare('cub', tmp_path/'cub', tmp_path/'out', progress=False)
    assert (tmp_path/'out/uncropped_data_dicts.pth').exists()


def test_prepare_refuses_before_it_works(tmp_path):
    root = miniature.inshop(tmp_path/'shop')
    for kwargs, message in (({'format': 'both', 'copy': True}, 'train and test only'), ({'crop': True}, 'has no boxes'),
                            ({'format': 'json'}, "expected one of .*'cgd', 'cfga', 'both'")):
        with pytest.raises(ValueError, match=message):
            prepare('inshop', root, tmp_path/'out', **kwargs)
        assert not (tmp_path/'out').exists()


def test_prepare_interrupted_and_started_again(tmp_path, birds):
    with patch.object(formats, 'write_cgd_dicts', side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        prepare('cub', tmp_path/'cub', tmp_path/'out', crop=True, progress=False)
    with patch.object(Image.Image, 'save', side_effect=AssertionError('written again')):
        prepare('cub', tmp_path/'cub', tmp_path/'out', crop=True, progress=False)


@pytest.mark.parametrize('name', list(miniature.SETS))
def test_prepare_says_where_to_get_missing_files(tmp_path, name):
    with pytest.raises(FileNotFoundError, match='no such folder') as error:
        prepare(name, tmp_path/'none', tmp_path/'out')
    assert SOURCES[name] in str(error.value)
