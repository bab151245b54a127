"The search page: what it shows and takes, what it never opens, its server, and the page itself in a browser."
import json
import os
import shutil
import signal
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from PIL import Image
from processes import Fresh, command, free_port

import fgir.app.guard
import fgir.data.images
from fgir.app import cli
from fgir.app.guard import _is_foreign, _refusal, read_photo, served_file, served_folders, thumbnail
from fgir.app.page import _check_confirmed, _check_fits, answer, evidence_picture, open_page, own_folder, search_page
from fgir.backbones.nets import Pooled
from fgir.backbones.registry import create_backbone
from fgir.data.fish import synth_dataset
from fgir.data.table import image_path
from fgir.features.descriptors import ColorHistogram
from fgir.features.extraction import extract
from fgir.gallery.index import Index

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)


def network(seed=0):
    torch.manual_seed(seed)
    return Pooled(create_backbone('test_resnet', pretrained=False), ['S']).eval()


@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp('fish')/'fish', n_classes=4, n_per_class=6, size=64, progress=False)


@pytest.fixture(scope='module')
def features(fish): return extract(network(), fish, size=64, num_workers=0, progress=False)


@pytest.fixture
def index(features): return Index.build(features)


def write(path, data):
    path.write_bytes(data)
    return path


def png_that_claims(side):
    "A PNG of some bytes that says it is a square."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0'*99)) + chunk(b'IEND', b'')


# what is shown

def test_nothing_outside_of_the_folders_is_ever_a_served_file(tmp_path):
    inside, beside = tmp_path/'photos', tmp_path/'photos2'
    for d in (inside, beside): d.mkdir()
    Image.new('RGB', (8, 8)).save(beside/'b.png')
    (inside/'link.png').symlink_to(beside/'b.png')
    (inside/'folder').symlink_to(beside)
    (inside/'round').symlink_to(inside/'round')
    for path in ('/etc/passwd', inside/'..'/'photos2'/'b.png', beside/'b.png', inside/'link.png', inside/'folder'/'b.png',
                 f'{inside}/../../../../../../../../etc/passwd'):
        with pytest.raises(ValueError, match="^outside of the gallery's folder$"): served_file(path, [inside.resolve()])
    os.mkfifo(inside/'pipe.png')
    for path in (inside/'none.png', inside, inside/'pipe.png', inside/'round', f'{inside}/a\0b.png', inside/('x'*5000)):
        with pytest.raises(ValueError, match='^no such file$'): served_file(path, [inside.resolve()])
    assert served_file(inside/'folder'/'b.png', [inside, beside.resolve()]) == (beside/'b.png').resolve()


def test_images_of_elsewhere_are_shown_only_from_folders_that_are_named(tmp_path, fish, index):
    other = synth_dataset(tmp_path/'other', n_classes=2, n_per_class=2, size=64, seed=7, progress=False)
    index.add(extract(network(), other, size=64, num_workers=0, progress=False))
    found, _ = answer(index, network(), served_folders(index), image_path(other, 0), k=1)
    def colors(folders): return len(thumbnail(found, 0, folders).getcolors(10**6))
    assert colors(served_folders(index, [tmp_path/'other'])) > 300 > colors(served_folders(index))
    with pytest.raises(ValueError, match='none is no folder'): served_folders(index, [tmp_path/'none'])


def test_hostile_rows_become_cards_and_are_not_opened(fish, features, monkeypatch, tmp_path):
    table = features.table.copy()
    link = tmp_path/'photo.jpg'
    shutil.copy(image_path(fish, 5), link)
    table.loc[[0, 1, 2], 'path'] = ['../../../../etc/passwd', str(link), '/dev/stdin']
    table.attrs = dict(features.table.attrs)
    index = Index.build(type(features)(features.arrays, table, features.record))
    opened, load = [], fgir.data.images.load_image
    monkeypatch.setattr(fgir.data.images, 'load_image', lambda path, *box: opened.append(str(path)) or load(path, *box))
    folders = served_folders(index)
    _check_fits(index, network(), folders)
    found, pictures = answer(index, network(), folders, image_path(fish, 3), k=24)
    assert len(pictures) == 24 and set(table['path'][:3]) <= set(found['path'])
    assert opened and all(p.startswith(str(folders[0]) + '/') for p in opened)
    for i in found.index[found['path'].isin(table['path'][:3])]:
        assert pictures[i][0].getpixel((0, 0)) == (138, 143, 152)
        none, words = evidence_picture(index, network(), folders, image_path(fish, 3), found, i)
        assert none is None and words == "No evidence: outside of the gallery's folder"


@pytest.mark.parametrize('root', ['/', '//', '/tmp/..', 5, ['/etc'], None, ''])
def test_what_is_no_folder_of_images_is_never_a_served_root(index, root):
    "The whole disk is refused, what is no path shows nothing."
    index.store.features.table.attrs['root'] = root
    try: assert served_folders(index) == []
    except ValueError as e: assert '--folder' in str(e) and isinstance(root, str)
    with pytest.raises(ValueError, match='all that lies below /'): served_folders(index, ['/'])


@pytest.mark.parametrize('host, folders, says', [
    ('127.0.0.1', [], None), ('localhost', [], None), ('0.0.0.0', ['a'], None), ('0.0.0.0', [], '--folder'),
    ('999.1.1.1', [], '--host 999.1.1.1: no address'), ('1.2.3.4.5', [], 'no address'), ('192.0.2.1', ['a'], 'no address'),
    ('', [], 'no address'), ('a b', [], 'no address'), ('x'*300, [], 'no address'), ('exa\0mple', [], 'no address')])
def test_an_address_is_checked_before_the_work(host, folders, says):
    start = time.perf_counter()
    if says is None: return _check_confirmed(host, folders)
    with pytest.raises(ValueError, match=says): _check_confirmed(host, folders)
    assert time.perf_counter() - start < 20


# what comes in

@pytest.mark.parametrize('kind', ['jpeg', 'png', 'webp', 'gif', 'bmp', 'tiff'])
def test_the_content_says_what_an_image_is(tmp_path, kind):
    Image.new('RGB', (40, 30), 'red').save(tmp_path/'photo', format=kind)
    (tmp_path/'photo').rename(tmp_path/'photo.txt')
    assert read_photo(tmp_path/'photo.txt').size == (40, 30)


@pytest.mark.parametrize('data, says', [
    (b'just words', 'no image'), (b'', 'no image'), (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'no image'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', 'no image'),
    (b'\x89PNG\r\n\x1a\n', 'no image'), (png_that_claims(9_000), 'too large'), (png_that_claims(60_000), 'too large'),
    (png_that_claims(500), 'damaged')])
def test_what_cannot_be_a_photograph_is_said_in_a_line_without_a_path(tmp_path, data, says):
    with pytest.raises(ValueError, match=says) as e: read_photo(write(tmp_path/'photo.jpg', data))
    assert str(tmp_path) not in str(e.value) and '\n' not in str(e.value)


def test_a_photograph_that_is_gone_is_asked_for_again(tmp_path):
    with pytest.raises(ValueError, match='no longer there: please drop it again'): read_photo(tmp_path/'none.jpg')


# answers

def test_classes_and_numbers_restrict_the_answer(fish, index):
    folders, names = served_folders(index), sorted(set(fish['name']))
    found, pictures = answer(index, network(), folders, image_path(fish, 8), k=500)
    assert len(found) == len(pictures) == 24 and found['path'][0] == fish['path'][8]
    found, pictures = answer(index, network(), folders, image_path(fish, 8), names[:2], 9)
    assert len(found) == 9 and set(found['name']) == set(names[:2])
    assert pictures[0][1] == f'{found["score"][0]:.3f} · {found["name"][0]}'
    with pytest.raises(ValueError, match='no image of the gallery has'):
        answer(index, network(), folders, image_path(fish, 8), ['?'])


def test_another_network_is_noticed_before_the_page_opens(index):
    with pytest.raises(ValueError, match='other weights'): search_page(index, network(1), served_folders(index))


def test_evidence_is_of_the_array_that_was_searched_or_says_why_not(fish, index):
    folders = served_folders(index)
    found, _ = answer(index, network(), folders, image_path(fish, 8), k=3)
    picture, words = evidence_picture(index, network(), folders, image_path(fish, 8), found, 2)
    assert picture.width > 300 and found['name'][2] in words
    for photo, table, i in ((image_path(fish, 8), found, -1), (image_path(fish, 8), found, 3), (None, found, 1), ('a', None, 0)):
        with pytest.raises(ValueError, match='search again'): evidence_picture(index, network(), folders, photo, table, i)
    colors = Index.build(extract(ColorHistogram(), fish, size=64, num_workers=0, progress=False))
    assert evidence_picture(colors, ColorHistogram(), folders, image_path(fish, 8), found, 1)[1].startswith('No evidence: ColorH')


# the server

def request(method='GET', path='/', host='localhost:7860', **headers):
    headers = {'host': host, **{k.replace('_', '-'): v for k, v in headers.items()}}
    headers = [(k.encode(), v.encode()) for k, v in headers.items()]
    return dict(type='http', method=method, path=path, headers=headers, server=('192.168.1.5', 7860))


@pytest.mark.parametrize('method, path, headers, status', [
    ('GET', '/', {}, None), ('POST', '/gradio_api/upload', {'content_length': '1000'}, None),
    ('POST', '/gradio_api/upload', {'content_length': '2000000'}, 413), ('POST', '/gradio_api/queue/join', {}, 411),
    ('POST', '/x', {'content_length': '-1'}, 411), ('GET', '/gradio_api/file=http://127.0.0.1/a', {}, 403),
    ('GET', '/gradio_api/file=HTTPS:/a.org/b', {}, 403), ('GET', '/gradio_api/proxy=https://a.org', {}, 403)])
def test_requests_are_refused_before_they_are_read(tmp_path, method, path, headers, status):
    refused = _refusal(request(method, path, **headers), 2**20, '127.0.0.1', [], tmp_path)
    assert (refused and refused[1]) == status


@pytest.mark.parametrize('host, foreign', [
    ('localhost', False), ('LOCALHOST:7860', False), ('127.0.0.1:7860', False), ('[::1]:7860', False), ('192.168.1.5:7860', False),
    ('fish.example', False), ('evil.example:7860', True), ('localhost.evil.example', True), ('127.0.0.1.nip.io', True),
    ('192.168.1.6', True), ('', True), ('[', True), ('localhost@evil.example', True), ('fish.example.', True)])
def test_a_host_of_another_name_is_foreign(host, foreign):
    for method in ('GET', 'POST'): assert _is_foreign(request(method, host=host), '127.0.0.1', ['fish.example']) == foreign


@pytest.mark.parametrize('headers, foreign', [
    ({}, False), (dict(origin='http://localhost:7860'), False), (dict(origin='https://fish.example'), False),
    (dict(origin='http://evil.example'), True), (dict(origin='http://localhost:3000'), True), (dict(origin='null'), True),
    (dict(origin=''), True), (dict(origin='http://127.0.0.1:7860'), True), (dict(origin='http://fish.example.evil.org'), True),
    (dict(sec_fetch_site='same-origin'), False), (dict(sec_fetch_site='none'), False), (dict(sec_fetch_site='cross-site'), True),
    (dict(sec_fetch_site='same-site'), True)])
def test_another_page_is_foreign(headers, foreign):
    assert _is_foreign(request('POST', **headers), '127.0.0.1', ['fish.example']) == foreign
    if 'origin' in headers: assert _is_foreign(request('GET', **headers), '127.0.0.1', ['fish.example']) == foreign


def test_a_link_from_elsewhere_opens_the_page():
    assert not _is_foreign(request('GET', sec_fetch_site='cross-site'), '127.0.0.1', [])


class Site(str):
    "Address of a page, the network behind it, which counts how many ask it at once, and the folder of what it keeps."
    def __new__(cls, url, net, folder):
        self = super().__new__(cls, url)
        self.net, self.folder = net, folder
        return self


@pytest.fixture(scope='module')
def site(features):
    net = network()
    net.inside, net.most = 0, 0
    def begin(*_):
        net.inside += 1
        net.most = max(net.most, net.inside)
        time.sleep(.05)
    def end(*_): net.inside -= 1
    net.register_forward_pre_hook(begin)
    net.register_forward_hook(end)
    index = Index.build(features)
    with own_folder() as folder:
        page = search_page(index, net, served_folders(index))
        yield Site(open_page(page, port=free_port(), max_mb=1), net, folder)
        page.close(verbose=False)


def call(site, photo, fn=1, session=None):
    "What a program that is no browser gets from an event of the page: its last message."
    with httpx.Client(base_url=site + 'gradio_api') as client:
        session = session or os.urandom(6).hex()
        body = dict(data=[photo, [], 3], fn_index=fn, session_hash=session)
        answer = client.post('/queue/join', json=body)
        if answer.is_error: return answer.text
        with client.stream('GET', '/queue/data', params=dict(session_hash=session)) as events:
            for line in events.iter_lines():
                if line.startswith('data:') and 'process_completed' in line: return json.loads(line[5:])
                if line.startswith('data:') and 'close_stream' in line: return line


def given(path): return dict(path=str(path), meta={'_type': 'gradio.FileData'})


def test_no_file_of_the_disk_is_served(site, fish):
    photo, table = image_path(fish, 0), f"{fish.attrs['root']}/labels.csv"
    for path in ('/etc/passwd', '..%2f..%2f..%2fetc%2fpasswd', '%2e%2e/%2e%2e/etc/passwd', photo, table, __file__, 'setup.py',
                 'file:///etc/passwd', 'http://127.0.0.1:1/', '%5c%5chost%5cshare', f'{photo}%00.png'):
        for way in ('gradio_api/file=', 'file=', 'gradio_api/file/', 'static/', 'assets/', 'gradio_api/proxy='):
            assert httpx.get(f'{site}{way}{path}').status_code in (400, 403, 404, 405, 422)


def test_a_program_gets_what_a_browser_gets_and_no_more(site, fish, monkeypatch):
    fetched = []
    async def fetch(*args, **kwargs): fetched.append(args)
    monkeypatch.setattr('gradio.processing_utils.async_ssrf_protected_download', fetch)
    with open(image_path(fish, 9), 'rb') as f:
        up, = httpx.post(f'{site}gradio_api/upload', files=dict(files=('a.jpg', f))).json()
    good = call(site, given(up))
    assert good['success'] and fish['name'][9] in json.dumps(good)
    for path in ('/etc/passwd', image_path(fish, 9), 'http://example.org/a.jpg', f'{up}/../../../../etc/passwd'):
        bad = call(site, given(path))
        assert 'root:' not in str(bad) and not (isinstance(bad, dict) and bad['success'])
    assert not fetched


def test_many_who_ask_at_once_are_answered_one_by_one(site, fish):
    def ask(i):
        with open(image_path(fish, i), 'rb') as f:
            up, = httpx.post(f'{site}gradio_api/upload', files=dict(files=(f'{i}.jpg', f))).json()
        return call(site, given(up))['output']['data'][1][0]['caption']
    with ThreadPoolExecutor(6) as pool: captions = list(pool.map(ask, range(0, 24, 4)))
    assert captions == [f'1.000 · {fish["name"][i]}' for i in range(0, 24, 4)] and site.net.most == 1


def send(site, path, name='a.jpg', **headers):
    "Upload a photograph; the answer."
    with open(path, 'rb') as f: return httpx.post(f'{site}gradio_api/upload', files=dict(files=(name, f)), headers=headers)


@pytest.mark.parametrize('headers', [
    dict(host='evil.example'), dict(origin='http://evil.example'), {'sec-fetch-site': 'cross-site'}])
def test_other_pages_get_and_leave_nothing(site, fish, headers):
    before = set(site.folder.rglob('*'))
    assert send(site, image_path(fish, 5), **headers).status_code == 403
    for path in ('', 'config', 'gradio_api/info', 'gradio_api/queue/data?session_hash=a'):
        if 'sec-fetch-site' not in headers: assert httpx.get(site + path, headers=headers).status_code == 403
    assert set(site.folder.rglob('*')) == before


def test_photographs_have_a_quota(site, fish, monkeypatch):
    assert send(site, image_path(fish, 4)).status_code == 200
    for room in (dict(files=1, size=2**30), dict(files=99, size=2000)):
        monkeypatch.setattr(fgir.app.guard, '_ROOM', room)
        answer = send(site, image_path(fish, 5))
        assert answer.status_code == 503 and 'Too many photographs' in answer.text


def until(true, seconds=20):
    end = time.perf_counter() + seconds
    while not true() and time.perf_counter() < end: time.sleep(.05)
    return true()


def test_a_photograph_is_deleted_when_it_is_no_longer_looked_at(site, fish):
    first, second = (send(site, image_path(fish, i), f'own{i}.jpg').json()[0] for i in (10, 11))
    for session in 'ab': assert call(site, given(first), session=session)['success']
    assert call(site, given(second), session='a')['success'] and os.path.exists(first)
    with httpx.stream('GET', f'{site}gradio_api/heartbeat/b'): pass
    assert until(lambda: not os.path.exists(first)) and os.path.exists(second)


def test_large_and_endless_uploads_are_refused(site):
    answer = httpx.post(f'{site}gradio_api/upload', files=dict(files=('a.jpg', b'0'*2_000_000)))
    assert answer.status_code == 413 and 'at most 1 MB' in answer.text
    answer = httpx.post(f'{site}gradio_api/upload', content=iter([b'0'*1000]))
    assert answer.status_code == 411


def test_there_is_no_interface_for_programs_and_nothing_is_reported(site):
    for path in ('docs', 'redoc', 'openapi.json'): assert httpx.get(site + path).status_code == 404
    assert not httpx.get(f'{site}gradio_api/info').json()['named_endpoints']
    config = httpx.get(f'{site}config').json()
    assert config['analytics_enabled'] is False and config['max_file_size'] == 2**20


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert cli.main(['index', 'serve', 'none.safetensors']) == 1
    assert capsys.readouterr().err == 'fgir: the page needs gradio: pip install "fgir[app]"\n'


@pytest.mark.processes
def test_the_command_serves_until_it_is_ended_and_leaves_no_upload(tmp_path, fish):
    (tmp_path/'tmp').mkdir()
    torch.save(network().backbone.state_dict(), tmp_path/'net.pth')
    words = ['--backbone', 'test_resnet', '--weights', str(tmp_path/'net.pth'), '--size', '64', '--workers', '0']
    assert cli.main(['index', 'build', fish.attrs['root'], str(tmp_path/'g.safetensors'), *words]) == 0
    server = Fresh(command, 'index', 'serve', tmp_path/'g.safetensors', '--port', port := free_port(), TMPDIR=tmp_path/'tmp')
    while not (line := server.said[0].read_text()).endswith('\n') and server.process.is_alive(): time.sleep(.05)
    assert f'http://127.0.0.1:{port}/' in line and fish.attrs['root'] in line, server.said[1].read_text()
    with open(image_path(fish, 9), 'rb') as f:
        up, = httpx.post(f'http://127.0.0.1:{port}/gradio_api/upload', files=dict(files=('a.jpg', f))).json()
    assert os.path.exists(up) and up.startswith(str(tmp_path/'tmp'))
    server.send(signal.SIGTERM)
    done = server.end(30)
    assert done.returncode == 0 and done.stdout == f'{line}ended\n', done.stderr
    assert not os.path.exists(up)


# the page in a browser

@pytest.fixture(scope='module')
def browser():
    if not BROWSER: pytest.skip('no chromium or chrome on this machine')
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright drives the browser')
    sync_api.expect.set_options(timeout=30_000)
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, site):
    "The page, which may ask nobody but its own server."
    page, hosts, errors = browser.new_page(), set(), []
    page.on('request', lambda r: hosts.add(httpx.URL(r.url).host))
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.set_default_timeout(30_000)
    page.goto(site)
    yield page
    page.close()
    assert hosts <= {'127.0.0.1', ''} and errors == []


def upload(page, file):
    page.set_input_files('#photo input[type=file]', str(file))


def captions(page): return [c.rpartition(' · ')[2] for c in page.locator('#matches .caption-label').all_inner_texts()]


def test_a_photograph_is_dropped_restricted_and_explained(page, fish):
    from playwright.sync_api import expect

    expect(page.locator('#facts')).to_contain_text('24 images · 4 classes')
    upload(page, image_path(fish, 9))
    expect(page.locator('#matches img')).to_have_count(12)
    assert captions(page)[0] == fish['name'][9] and len(set(captions(page))) > 1
    page.wait_for_function("[...document.querySelectorAll('#matches img')].every(i => i.naturalWidth > 0)")

    other = fish['name'][0]
    page.locator('#classes input').fill(other)
    page.get_by_role('option', name=other, exact=True).click()
    expect(page.locator('#matches img')).to_have_count(6)
    assert set(captions(page)) == {other}

    page.locator('#matches .thumbnail-item').nth(2).click()
    expect(page.locator('#words')).to_contain_text(f'Red brings your photograph (a) and {other} (b) together')
    page.wait_for_function("document.querySelector('#why img')?.naturalWidth > 300")
    page.get_by_label('Remove Image').click()
    expect(page.locator('#matches img')).to_have_count(0)


def test_what_is_no_photograph_is_said_on_the_page(page, tmp_path, fish):
    from playwright.sync_api import expect

    upload(page, image_path(fish, 9))
    expect(page.locator('#matches img')).to_have_count(12)
    page.get_by_label('Remove Image').click()
    upload(page, write(tmp_path/'letter.jpg', b'I am a fish.'))
    expect(page.get_by_test_id('toast-body')).to_contain_text('This is no image')
    expect(page.locator('#matches img')).to_have_count(0)
    page.get_by_label('Remove Image').click()
    upload(page, write(tmp_path/'vast.png', png_that_claims(60_000)))
    expect(page.get_by_test_id('toast-body').last).to_contain_text('too large')
