"`fgir index`: build, change and search galleries from the shell, interrupted and at once."
import json
import re
import time

import numpy as np
import pytest
import typer
from processes import begin

import fgir.app.gallery
import fgir.features.extraction
import fgir.features.unfinished
from fgir.app import cli
from fgir.app.describe import SOURCE
from fgir.app.gallery import source_of
from fgir.data.fish import synth_dataset
from fgir.features.store import Features
from fgir.gallery.index import Index

@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp('fish')/'fish', n_classes=8, n_per_class=6, size=40, progress=False)


@pytest.fixture
def gallery(fish, tmp_path):
    """A gallery of the training half, of the pooled maps of a small network with its weights in a file."""
    import torch

    from fgir.backbones.registry import create_backbone

    torch.manual_seed(0)
    torch.save(create_backbone('test_resnet', pretrained=False).state_dict(), tmp_path/'net.pth')
    file = tmp_path/'fish.safetensors'
    assert not call('index', 'build', fish.attrs['root'], file, '--backbone', 'test_resnet', '--weights', tmp_path/'net.pth',
                    '--rows', 'train', '--size', 32, '--workers', 0)
    return file


def call(*words): return cli.main([str(w) for w in words])


def said(capsys, *words, status=0):
    capsys.readouterr()
    assert call(*words) == status
    out, err = capsys.readouterr()
    return err if status else out


SOURCES = [
    (dict(backbone='test_resnet', weights='https://evil.example/net.pth'), '--weights https://evil.example/net.pth'),
    (dict(model='http://evil.example/m.safetensors'), 'is not fetched'),
    (dict(backbone='test_resnet', weights='//evil/share/a.pth'), 'not fetched'),
    (dict(backbone='test_resnet', weights='\\\\evil\\share\\a.pth'), 'not fetched'),
    (dict(model='none.safetensors'), 'none.safetensors: no such file'),
    (dict(weights='a.pth'), 'a.pth: no such file'), ({}, 'does not say what described its images')]


def test_nothing_that_a_gallery_names_is_fetched(fish, gallery, tmp_path, capsys, monkeypatch):
    "Somebody else may have made it: an address in its record is refused."
    monkeypatch.setattr('torch.hub.download_url_to_file', lambda *args: pytest.fail('fetched'))
    made, photo, theirs = Features.load(gallery), f"{fish.attrs['root']}/{fish['path'][0]}", tmp_path/'theirs.safetensors'
    for source, says in SOURCES:
        Index.build(Features(made.arrays, made.table, {**made.record, 'source': source})).save(theirs, force=True)
        assert says in said(capsys, 'index', 'search', theirs, photo, status=1)
        assert says in said(capsys, 'index', 'add', theirs, fish.attrs['root'], status=1)


def test_a_gallery_grows_and_answers_without_being_told_how(fish, gallery, capsys):
    root, photo = fish.attrs['root'], f"{fish.attrs['root']}/{fish['path'][30]}"
    assert json.loads(said(capsys, 'index', 'info', gallery))['images'] == 24
    assert json.loads(said(capsys, 'index', 'search', gallery, photo, '--json', '-k', 1))[0]['score'] < .99999
    assert '48 images, 24 more' in said(capsys, 'index', 'add', gallery, root, '--rows', 'test', '--workers', 0)
    found = json.loads(said(capsys, 'index', 'search', gallery, photo, '--json', '-k', 3, '--keep-self'))
    assert found[0]['path'] == fish['path'][30] and found[0]['score'] > .99999
    assert call('index', 'search', gallery, photo, '--json', '-k', 2) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]['path'] == found[1]['path']
    assert err == f"{fish['path'][30]} is the photograph itself and was left out; --keep-self keeps it\n"
    only = json.loads(said(capsys, 'index', 'search', gallery, photo, '--json', '--where', f"name={fish['name'][0]}"))
    assert {f['name'] for f in only} == {fish['name'][0]} and len(only) == 6
    assert '47 images' in said(capsys, 'index', 'remove', gallery, fish['path'][30])
    assert json.loads(said(capsys, 'index', 'search', gallery, photo, '--json', '-k', 2))[0]['path'] == found[1]['path']
    assert '48 images, 1 more' in said(capsys, 'index', 'add', gallery, root, '--replace', '--workers', 0)
    assert sorted(p.name for p in gallery.parent.iterdir()) == ['fish.safetensors', 'net.pth']


@pytest.mark.parametrize('words, says', [
    ('build {root} {dir}/g.faiss --backbone test_resnet', 'g.faiss: expected a file .safetensors, a folder .db'),
    ('build {root} {file} --backbone test_resnet', 'exists already; --force'),
    ('build {root} {dir}/g.safetensors', 'name one of --model FILE and --backbone NAME'),
    ('build {root} {dir}/g.safetensors --backbone test_resnet --kind tree', "found 'tree'"),
    ('build {root} {dir}/g.safetensors --backbone test_resnet --kind hnsw --engine links', 'expected NAME=NUMBER'),
    ('build {root} {dir}/g.safetensors --backbone test_resnet --kind flat --engine links=3', 'no setting links'),
    ('add {file} {root} --rows train', 'in the gallery already; --replace replaces it'),
    ('add {file} {root} --backbone resnet34 --rows test', 'weights'),
    ('remove {file} none.jpg', 'none.jpg is not in the gallery'),
    ('add {dir}/none.safetensors {root}', 'none.safetensors: no such gallery'),
    ('remove {dir}/none.safetensors a.jpg', 'none.safetensors: no such gallery'),
    ('build {root} {dir}/g.safetensors --backbone test_resnet --kind hnsw --engine links=0',
     'hnsw: links: expected a whole number'),
    ('build {root} {dir}/g.safetensors --backbone test_resnet --kind hnsw --engine links=4 --engine links=5', 'one setting twice'),
    ('search {file} {photo} --picture {dir}/found', 'found: give it a name that ends in .'),
    ('search {file} {photo} --picture {dir}/found.xyz', 'found.xyz: give it a name that ends in .'),
    ('search {file} {photo} --force', '--force: it goes with --picture'),
    ('search {file} {photo} --where color=red', "no column 'color'"), ('search {file} {photo} --where red', 'COLUMN=VALUE'),
    ('search {file} {dir}/none.jpg', 'none.jpg'), ('info {dir}/none.safetensors', 'no such gallery'),
    ('info {dir}/none.db', "no gallery 'gallery'"), ('info {dir}/net.pth', 'expected a file .safetensors')])
def test_mistakes_are_one_line_and_change_nothing(fish, gallery, capsys, words, says, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', '/dev/null/none')
    before = gallery.read_bytes()
    words = words.format(root=fish.attrs['root'], dir=gallery.parent, file=gallery, photo=f"{fish.attrs['root']}/{fish['path'][3]}")
    err = said(capsys, 'index', *words.split(), status=1)
    assert err.startswith('fgir: ') and err.count('\n') == 1 and (says in err or says == 'weights')
    assert gallery.read_bytes() == before


def test_two_that_add_at_once_both_do(fish, gallery, tmp_path):
    vectors, table = Index.load(gallery), fish[fish['split'] == 'test'].reset_index(drop=True)
    rng, halves = np.random.default_rng(0), []
    for i, rows in enumerate((slice(0, 12), slice(12, 24))):
        part = table.iloc[rows].reset_index(drop=True)
        features = Features({'native': rng.normal(size=(12, 96)).astype(np.float32)}, part, vectors.record)
        halves.append(features.save(tmp_path/f'{i}.safetensors'))
    adding = [begin(call, 'index', 'add', gallery, h) for h in halves]
    for process in adding: process.join()
    assert [p.exitcode for p in adding] == [0, 0]
    assert len(Index.load(gallery)) == 48


def slowly(*words):
    "Call a command that takes its time after each image."
    fill = fgir.features.unfinished.UnfinishedFeatures.fill
    fgir.features.unfinished.UnfinishedFeatures.fill = lambda *a: (fill(*a), time.sleep(.05))
    return call(*words)


def killed_halfway(*words, folder):
    "Run a command that describes an image at a time, kill it among them, and give its part and how many were described."
    run = begin(slowly, *words)
    while not (marks := [*folder.glob('*.done')]) or sum(marks[0].read_bytes()) < 4:
        assert run.is_alive()
        time.sleep(.01)
    run.kill()
    run.join()
    return marks[0].with_suffix('.part'), sum(marks[0].read_bytes())


def test_commands_that_were_killed_go_on_and_are_in_nobodys_way(fish, gallery, capsys, monkeypatch):
    "Killed among its images, the same command describes only those that are left; others neither stop nor take them."
    root, folder, other = fish.attrs['root'], gallery.parent, gallery.parent/'other.safetensors'
    add = ['index', 'add', gallery, root, '--rows', 'test', '--workers', 0, '--batch-size', 1]
    part, done = killed_halfway(*add, folder=folder)
    assert 3 < done < 20 and len(Index.load(gallery)) == 24
    kept = part.read_bytes()
    call('index', 'remove', gallery, fish['path'][0])
    for words in (['add', gallery, root, '--rows', 'train', '--replace'],
                  ['build', root, gallery, '--force', '--backbone', 'test_resnet', '--weights', folder/'net.pth', '--rows', 'train',
                   '--size', 32]):
        capsys.readouterr()
        assert not call('index', *words, '--workers', 0)
        assert capsys.readouterr().err == (f'{str(part)[:-18]}: from another command that was interrupted; '
                                           'it is kept, delete it if nobody needs it\n')
        assert part.read_bytes() == kept and len(Index.load(gallery)) == 24
    seen, fill = [], fgir.features.unfinished.UnfinishedFeatures.fill
    monkeypatch.setattr(fgir.features.unfinished.UnfinishedFeatures, 'fill',
                        lambda self, rows, named: (seen.extend(rows), fill(self, rows, named)))
    assert not call(*add)
    assert len(seen) == 24 - done and len(Index.load(gallery)) == 48
    assert sorted(p.name for p in folder.iterdir()) == ['fish.safetensors', 'net.pth'] and not other.exists()


def test_descriptions_wait_for_a_gallery_that_could_not_be_written(fish, gallery, monkeypatch):
    "A disk that is full, and then is not: nothing is described twice. What is wrong with the images is another matter."
    add, calls, save = ['index', 'add', gallery, fish.attrs['root'], '--workers', 0], [], Index.save
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Index, 'save', full)
    assert call(*add, '--rows', 'test') == 1
    kept, = gallery.parent.glob('*.new.safetensors')
    monkeypatch.setattr(Index, 'save', save)
    monkeypatch.setattr(fgir.features.extraction, '_describe', lambda *_: calls.append(1))
    assert not call(*add, '--rows', 'test')
    assert len(Index.load(gallery)) == 48 and not calls and not kept.exists()
    monkeypatch.undo()
    assert call(*add, '--rows', 'test') == 1
    assert sorted(p.name for p in gallery.parent.iterdir()) == ['fish.safetensors', 'net.pth']


def test_a_database_is_a_gallery_of_the_same_commands(fish, gallery, tmp_path, capsys):
    db, photo = tmp_path/'fish.db', f"{fish.attrs['root']}/{fish['path'][3]}"
    said(capsys, 'index', 'build', gallery, db)
    assert json.loads(said(capsys, 'index', 'search', db, photo, '--json', '-k', 1, '--keep-self'))[0]['path'] == fish['path'][3]
    said(capsys, 'index', 'remove', db, fish['path'][3])
    assert '47 images, 24 more' in said(capsys, 'index', 'add', db, fish.attrs['root'], '--rows', 'test', '--workers', 0)
    assert 'gallery' in said(capsys, 'index', 'build', gallery, db, status=1)


# every option is used or refused

def options(command):
    "The options of a command of `fgir index`, by the name of their parameter."
    found = typer.main.get_command(cli.app).commands['index'].commands[command].params
    return {p.name: p for p in found if p.param_type_name == 'option' and p.name != 'help'}


DESCRIBE = dict(
    model='--model net.pth', backbone='--backbone test_resnet', weights='--weights net.pth', pool='--pool M',
    descriptor='--descriptor layers', data='--data cub', split='--split official', level='--level family', crop='--crop',
    size='--size 40', tfms='--tfms squash', batch_size='--batch-size 2', workers='--workers 0', device='--device cpu',
    skip_bad='--skip-bad')
REFUSED = dict(build=DESCRIBE, add={k: v for k, v in DESCRIBE.items() if k not in ('crop', 'size', 'tfms')})
USED = dict(
    build=dict(kind='--kind hnsw', engine='--kind hnsw --engine links=5', array='--array max', rows='--rows test',
               force='--force'),
    add=dict(replace='--replace', rows='--rows test'))


@pytest.mark.parametrize('command', ['build', 'add'])
def test_with_a_file_of_features_each_option_is_used_or_refused(fish, tmp_path, capsys, command):
    "A new option must be put into one of the tables."
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(48, 8)).astype(np.float32) for name in ('embedding', 'max')}
    file, gallery = Features(arrays, fish, dict(model='m')).save(tmp_path/'f.safetensors'), tmp_path/'g.safetensors'
    assert options(command).keys() == USED[command].keys() | REFUSED[command].keys()
    words = [file, gallery] if command == 'build' else [gallery, file]
    def start(): Index.build(Features(arrays, fish, dict(model='m')).select(range(6)), 'embedding').save(gallery, force=True)
    def outcome(more):
        start() if command == 'add' or '--force' in more else gallery.unlink(missing_ok=True)
        capsys.readouterr()
        status = call('index', command, *words, *more.split())
        return status, capsys.readouterr(), Index.load(gallery).info() if gallery.exists() else None
    plain = outcome('')
    for name, more in USED[command].items():
        status, said, made = outcome(more)
        assert name == 'force' or (status, made) != (plain[0], plain[2]), name
    for name, more in REFUSED[command].items():
        status, said, made = outcome(more)
        assert status == 1 and said.err == f'fgir: {more.split()[0]}: {file} is described already\n', name
    start()
    assert call('index', 'build', file, gallery) == 1 and call('index', 'build', file, gallery, '--force') == 0


@pytest.mark.parametrize('command', ['build', 'add'])
def test_with_images_each_option_goes_to_what_it_is_for(fish, gallery, tmp_path, capsys, command, monkeypatch):
    "What reads, describes and keeps images is called otherwise for each option."
    calls, net = [], ['--backbone', 'test_resnet', '--weights', str(gallery.parent/'net.pth')]
    def note(name, result):
        def noted(*args, **kwargs):
            calls.append((name, repr(args), repr(kwargs)))
            return result
        return noted
    described = Features.load(gallery).select(range(4))
    monkeypatch.setattr(fgir.app.gallery, 'read_data', note('read', fish))
    monkeypatch.setattr(fgir.app.gallery, 'load_descriptor', note('load', (None, dict(tfms='cgd'))))
    monkeypatch.setattr(fgir.features.extraction, 'extract', note('extract', described))
    monkeypatch.setattr(fgir.app.gallery, 'make_gallery', note('make', None))
    monkeypatch.setattr(Index, 'add', note('add', None))
    words = [fish.attrs['root'], tmp_path/'new.safetensors'] if command == 'build' else [gallery, fish.attrs['root']]
    def outcome(more):
        calls.clear()
        status = call('index', command, *words, *more.split())
        return status, [(name, args.replace('0x', ''), kwargs) for name, args, kwargs in calls]
    here = gallery.parent
    other = dict(model=f'--model {here}/net.pth', weights=f'--backbone test_resnet --weights {here}/none.pth',
                 backbone='--backbone resnet34')
    base = outcome(' '.join(net))
    assert base[0] == 0 and len(base[1]) >= 3
    for name, more in {**REFUSED[command], **USED[command]}.items():
        if name == 'force': continue
        alone = other.get(name, ' '.join([*net, more]))
        assert outcome(alone)[1] != base[1], name


SEARCH = dict(
    k='-k 2', name='--name Trout', where='--where label=3', leave_self='--keep-self', box='--box 0 0 20 20', as_json='--json',
    picture='--picture {dir}/p.png',
    model='--model {dir}/net.pth', backbone='--backbone resnet34', weights='--weights {dir}/net.pth', pool='--pool M',
    descriptor='--descriptor layers', device='--device meta', force='--force',
    array='--array S', pictures='--pictures {dir}/ps', metric='--metric cosine')


def test_each_option_of_search_is_used_or_refused(fish, gallery, capsys, monkeypatch):
    "Each changes what is called, what is printed or written, or ends the command with one line."
    assert options('search').keys() == SEARCH.keys() and not options('remove') and not options('info')
    words, calls = ['index', 'search', gallery, f"{fish.attrs['root']}/{fish['path'][3]}"], []
    index = Index.load(gallery)
    found = index.search(index.store.features['native'][:1], 3)
    found.attrs['left_out'] = []
    monkeypatch.setattr(fgir.app.gallery, 'load_descriptor', lambda **how: calls.append(repr(how)) or (None, {}))
    monkeypatch.setattr(Index, 'search_image', lambda self, *a, **how: calls.append(repr((a, how))) or found)
    def outcome(more):
        calls.clear()
        capsys.readouterr()
        return call(*words, *more.format(dir=gallery.parent).split()), capsys.readouterr(), list(calls)
    plain = outcome('')
    assert plain[0] == 0
    for name, more in SEARCH.items():
        status, said, called = outcome(more)
        if name == 'picture': assert (gallery.parent/'p.png').stat().st_size
        else: assert (status, said, called) != plain, name
        assert status == 0 or said.err.startswith('fgir: ') and said.err.count('\n') == 1, name


def test_a_database_refuses_what_it_does_not_have(fish, gallery, tmp_path, capsys):
    for more, says in [('--force', '--force: a gallery in a database is not overwritten'),
                       ('--kind hnsw', 'kind: Milvus Lite is flat; hnsw'), ('--engine links=3', 'flat: no setting links')]:
        assert says in said(capsys, 'index', 'build', gallery, tmp_path/'g.db', *more.split(), status=1)
    assert not (tmp_path/'g.db').exists()


# the model of a gallery

def test_a_gallery_finds_its_model_from_every_folder(fish, gallery, tmp_path, capsys, monkeypatch):
    "Named by a relative path when it was made; moved, or taken to another machine beside the gallery; or lost."
    photo, far = f"{fish.attrs['root']}/{fish['path'][3]}", tmp_path/'far'
    monkeypatch.chdir(tmp_path)
    said(capsys, 'index', 'build', fish.attrs['root'], 'near.safetensors', '--backbone', 'test_resnet', '--weights', 'net.pth',
         '--rows', 'train', '--size', 32, '--workers', 0)
    far.mkdir()
    monkeypatch.chdir(far)
    assert said(capsys, 'index', 'search', tmp_path/'near.safetensors', photo)
    for name in ('near.safetensors', 'net.pth'): (tmp_path/name).rename(far/name)
    assert said(capsys, 'index', 'search', 'near.safetensors', photo)
    monkeypatch.chdir(tmp_path)
    assert said(capsys, 'index', 'search', far/'near.safetensors', photo)
    (far/'net.pth').unlink()
    err = said(capsys, 'index', 'search', far/'near.safetensors', photo, status=1)
    assert err == (f'fgir: {tmp_path}/net.pth: no such file, but {far}/near.safetensors was described with it; '
                   'give --weights FILE\n')


@pytest.mark.parametrize('source, says', [
    (dict(backbone='test_resnet', weights='http://example.org/net.pth'), 'give --weights http://example.org/net.pth to fetch it'),
    (dict(backbone='hf-hub:somebody/net'), 'give --backbone hf-hub:somebody/net to fetch it'),
    (dict(model='none.safetensors'), 'none.safetensors: no such file'), (dict(model=5), 'not one of fgir'),
    (dict(model='a.pth', backbone='test_resnet'), 'a.pth: no such file'), ('x', 'not one of fgir'), ([1], 'not one of fgir')])
def test_what_a_gallery_of_somebody_else_names_is_not_fetched(source, says):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)):
        source_of(dict(source=source), 'g.safetensors', **dict.fromkeys(SOURCE))


def test_an_emptied_gallery_answers_every_command_in_a_line(fish, gallery, capsys):
    paths = fish['path'][fish['split'] == 'train']
    photo = f"{fish.attrs['root']}/{paths.iloc[0]}"
    assert said(capsys, 'index', 'remove', gallery, *paths) == f'{gallery}: 0 images\n'
    error = said(capsys, 'evaluate', gallery, status=1)
    assert error == f'fgir: {gallery}: no images in it; fgir index add brings some\n'
    assert not call('index', 'search', gallery, photo)
    assert capsys.readouterr() == ('', 'no image to search among\n')
    assert said(capsys, 'index', 'search', gallery, photo, '--json') == '[]\n'
    assert not call('index', 'add', gallery, fish.attrs['root'], '--rows', 'train', '--workers', 0)
    assert len(Index.load(gallery)) == len(paths)
