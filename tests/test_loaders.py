"""Loaders, transforms and the image cache of `fgir.data.batches`, beyond what its notebook shows."""

import json
import os
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.core import TensorImage
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from torch import distributed
from torchvision import transforms as v1
from torchvision.transforms import v2

from fgir.data.batches import RetrievalDL, TableImages, group_rows, pk_rows, retrieval_dls, seeded, table_dl
from fgir.data.cache import ImageCache, resize_cache
from fgir.data.fish import synth_dataset
from fgir.data.images import BadImage, load_row
from fgir.data.table import image_path
from fgir.data.transforms import TRANSFORMS, get_transforms

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=15)


class Numbers:
    """Row numbers as items, so that order is tested without images."""

    n_inp = 1

    def __init__(self, targets):
        self.targets = np.asarray(targets)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.full((1, 1, 1), i), torch.tensor(self.targets[i])


def targets_of(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def rows_of(dl):
    return [x.flatten().tolist() for x, _ in dl]


def pixels(dl):
    return torch.cat([x for x, _ in dl])


@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    root = tmp_path_factory.mktemp('loaders') / 'fish'
    return synth_dataset(root, n_classes=6, n_per_class=11, size=64, seed=5, progress=False)


@pytest.fixture
def own_fish(fish, tmp_path):
    """A copy whose files a test may spoil."""
    shutil.copytree(fish.attrs['root'], tmp_path / 'fish')
    table = fish.copy()
    table.attrs['root'] = str(tmp_path / 'fish')
    return table


# P×K


@given(SIZES, st.integers(1, 5), st.integers(1, 5), st.integers(0, 12), st.integers(0, 99))
@settings(deadline=None)
def test_pk_batches(sizes, p, k, n_batches, seed):
    targets, bs = targets_of(sizes), p * k
    if sum(min(n, k) for n in sizes) < bs:
        with pytest.raises(ValueError, match='do not fill a batch'):
            pk_rows(targets, bs, k, n_batches, np.random.default_rng(seed))
        return
    rows, again = (pk_rows(targets, bs, k, n_batches, np.random.default_rng(seed)) for _ in range(2))
    assert rows == again
    rows = np.reshape(rows, (n_batches, bs))
    hands = Counter()
    for batch in rows:
        assert len(set(batch)) == bs
        counts = Counter(targets[batch].tolist())
        hands.update(counts.keys())
        short = [c for c, n in counts.items() if n < min(k, sizes[c])]
        assert max(counts.values()) <= k
        assert len(short) <= 1
        if min(sizes) >= k:
            assert not short and len(counts) == p
    if n_batches:
        dealt = [hands[c] for c in range(len(sizes))]
        assert max(dealt) - min(dealt) <= 1


@given(SIZES, st.integers(1, 4), st.integers(1, 4), st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None)
def test_images_of_a_class_are_all_seen_before_any_again(sizes, p, k, n_batches, seed):
    targets, bs = targets_of(sizes), p * k
    if sum(min(n, k) for n in sizes) < bs:
        return
    rows = pk_rows(targets, bs, k, n_batches, np.random.default_rng(seed))
    for c, n in enumerate(sizes):
        times = Counter(r for r in rows if targets[r] == c)
        few, rest = divmod(times.total(), n)
        assert sorted(times[r] for r in np.flatnonzero(targets == c)) == [few] * (n - rest) + [few + 1] * rest


def test_equal_classes_show_every_image_once():
    rows = pk_rows(targets_of([8] * 6), 12, 4, 4, np.random.default_rng(0))
    assert sorted(rows) == list(range(48))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (dict(bs=10, per_class=4), 'bs=10 is not a multiple of 4'),
        (dict(bs=8, per_class=0), 'not a multiple of 0'),
        (dict(bs=16, per_class=4), '3 classes with up to 4 images each give 10 images'),
        (dict(bs=24), '22 images do not fill a batch of 24'),
    ],
)
def test_impossible_batches(args, message):
    with pytest.raises(ValueError, match=message):
        RetrievalDL(Numbers(targets_of([10, 10, 2])), shuffle=True, **args)


# the order of an epoch


@pytest.mark.parametrize('per_class', [None, 3])
def test_order_is_a_function_of_seed_and_epoch(per_class):
    data = Numbers(targets_of([7, 9, 8, 6, 10]))
    dl = RetrievalDL(data, bs=6, shuffle=True, per_class=per_class, seed=3)
    epochs = [rows_of(dl) for _ in range(4)]
    assert dl.epoch == 4 and len(dl) == len(epochs[0]) == 6
    torch.manual_seed(99)
    assert rows_of(RetrievalDL(data, bs=6, shuffle=True, per_class=per_class, seed=3, epoch=2)) == epochs[2]
    dl.epoch = 1
    assert rows_of(dl) == epochs[1]
    assert len({str(e) for e in epochs}) == 4
    assert rows_of(dl.new(seed=4, epoch=0)) != epochs[0]


def test_looking_does_not_move_on():
    dl = RetrievalDL(Numbers(targets_of([9, 9])), bs=4, shuffle=True)
    first = dl.one_batch()[0].flatten().tolist()
    assert dl.one_batch()[0].flatten().tolist() == first
    half = next(iter(dl))
    assert half[0].flatten().tolist() == first and dl.epoch == 1


def test_images_of_different_sizes_do_not_fit_in_a_batch(fish):
    items = TableImages(fish, get_transforms('cfga_pretrained', 24)[1], crop=True)
    with pytest.raises(ValueError, match='differ in size, .* and .*: take bs=1, or a transform'):
        RetrievalDL(items, bs=8).one_batch()
    assert RetrievalDL(items, bs=1).one_batch()[0].shape[:2] == (1, 3)
    assert retrieval_dls(fish, 24, bs=4, tfms='dgpcrl').valid.bs == 1


def test_normalizing_in_place_equals_fastai(fish):
    stats = [.4, .5, .6], [.2, .3, .4]
    dl = table_dl(fish, 24, bs=8, mean=stats[0], std=stats[1])
    pictures = torch.stack([dl.dataset[i][0] for i in range(8)])
    wanted = Normalize.from_stats(*stats, cuda=False)(IntToFloatTensor()(TensorImage(pictures)))
    assert torch.equal(dl.one_batch()[0], wanted)


def test_a_transform_that_crops_first_takes_no_cache(fish, tmp_path):
    with pytest.raises(ValueError, match='begins with RandomResizedCrop, .*call resize_cache'):
        retrieval_dls(fish, 24, bs=4, tfms='proxy_anchor', cache=tmp_path)


def test_plain_shuffle_shows_each_row_once():
    dl = RetrievalDL(Numbers(targets_of([10, 13])), bs=5, shuffle=True)
    seen = sum(rows_of(dl), [])
    assert len(seen) == len(set(seen)) == 20
    assert sorted(sum(rows_of(dl.new(drop_last=False)), [])) == list(range(23))


def test_new_carries_the_order():
    order = dict(seed=5, epoch=3, per_class=2, rank=1, world_size=2)
    dl = RetrievalDL(Numbers(targets_of([8, 8])), bs=2, shuffle=True, **order)
    again = dl.new()
    assert {name: getattr(again, name) for name in order} == order
    assert again.get_idxs() == dl.get_idxs()
    assert dl.new(shuffle=False, drop_last=False).get_idxs() == list(range(16))


@given(SIZES, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_shares_are_disjoint_whole_batches(sizes, p, k, world_size, by_class):
    data, bs = Numbers(targets_of(sizes)), p * k
    if len(data) // bs < world_size or sum(min(n, k) for n in sizes) < bs:
        return
    together = bs * world_size
    if by_class and sum(min(n, k) for n in sizes) < together:
        return
    alone = RetrievalDL(data, bs=together, shuffle=True, per_class=k if by_class else None)
    steps = rows_of(alone)
    shares = [alone.new(bs=bs, epoch=0, rank=r, world_size=world_size) for r in range(world_size)]
    assert {len(s) for s in shares} == {len(steps)}
    for i, step in enumerate(zip(*map(rows_of, shares), strict=True)):
        assert sum(step, []) == steps[i] == shares[0].step_rows(0, i)


def test_too_few_batches_for_the_processes():
    dl = RetrievalDL(Numbers(targets_of([9])), bs=4, shuffle=True, rank=0, world_size=3)
    with pytest.raises(ValueError, match='9 images do not fill batches of 4 for 3 processes'):
        rows_of(dl)


def one_process(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    data = Numbers(targets_of([9, 8, 10, 11, 7]))
    dl = RetrievalDL(data, bs=4, shuffle=True, per_class=2, seed=1)
    epochs = [rows_of(dl), rows_of(dl.new(num_workers=rank))]
    said = {'epochs': epochs, 'len': len(dl), 'valid': rows_of(RetrievalDL(data, bs=4))}
    everyone = [None, None]
    distributed.all_gather_object(everyone, said)
    assert everyone[rank] == said
    if rank == 0:
        with open(f'{folder}/said.json', 'w') as f:
            json.dump(everyone, f)
    distributed.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.start_processes(one_process, (tmp_path,), nprocs=2, start_method='fork')
    said = json.loads((tmp_path / 'said.json').read_text())
    alone = RetrievalDL(Numbers(targets_of([9, 8, 10, 11, 7])), bs=8, shuffle=True, per_class=2, seed=1)
    for epoch in range(2):
        steps = rows_of(alone)
        assert said[0]['len'] == said[1]['len'] == len(alone) == 5
        assert said[0]['epochs'][epoch] == [step[:4] for step in steps]
        assert said[1]['epochs'][epoch] == [step[4:] for step in steps]
    assert said[0]['valid'] == said[1]['valid'] == rows_of(alone.new(bs=4, shuffle=False, drop_last=False))


# what is drawn inside of an item


@pytest.mark.parametrize('tfms', ['cgd', 'proxy_anchor', 'cfga_dml', 'dgpcrl', 'fgic'])
def test_workers_change_no_bit(fish, tfms):
    alone, two, three = (retrieval_dls(fish, 24, bs=4, per_class=2, tfms=tfms, num_workers=n).train for n in (0, 2, 3))
    first = pixels(alone)
    assert torch.equal(first, pixels(two)) and torch.equal(first, pixels(three))
    second = pixels(alone)
    assert not torch.equal(first, second)
    assert torch.equal(second, pixels(two))


def test_shares_have_the_pixels_of_one_process(fish):
    alone = retrieval_dls(fish, 24, bs=4, per_class=2, num_workers=0).train
    batches = [x for x, _ in alone]
    for rank in (0, 1):
        share = [x for x, _ in alone.new(bs=2, epoch=0, rank=rank, world_size=2, num_workers=2)]
        assert all(torch.equal(a, b[2*rank:2*rank + 2]) for a, b in zip(share, batches, strict=True))


@given(SIZES, st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None)
def test_groups_are_whole_and_come_once_before_they_are_made_anew(sizes, p, k, seed):
    targets = targets_of(sizes)
    if len(sizes) < p:
        with pytest.raises(ValueError, match='do not fill a batch'):
            group_rows(targets, p * k, k, 1, np.random.default_rng(seed))
        return
    groups = sum(max(1, n // k) for n in sizes)
    rows = group_rows(targets, p * k, k, 3 * groups, np.random.default_rng(seed))
    batches = np.asarray(targets)[rows].reshape(-1, p, k)
    assert (batches == batches[:, :, :1]).all()
    assert all(len(set(batch[:, 0])) == p for batch in batches)
    if p == 1:
        first = np.asarray(rows).reshape(-1, k)[:groups]
        assert sorted(np.asarray(targets)[first[:, 0]]) == sorted(c for c, n in enumerate(sizes) for _ in range(max(1, n // k)))
        full = [r for r in first.ravel() if sizes[targets[r]] >= k]
        assert len(full) == len(set(full))


@pytest.mark.parametrize('num_workers', [0, 2])
def test_loading_leaves_the_random_state_alone(fish, num_workers):
    dls = retrieval_dls(fish, 24, bs=4, num_workers=num_workers)
    state = torch.get_rng_state()
    pixels(dls.train)
    assert torch.equal(state, torch.get_rng_state())


def test_random_state_returns_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1, 2):
        torch.rand(3)
        raise KeyError
    assert torch.equal(state, torch.get_rng_state())


def test_rows_that_come_twice_differ(fish):
    dl = retrieval_dls(fish, 24, bs=6, per_class=3, num_workers=0).train
    twice = dl.new(get_idxs=lambda: [0] * 6)
    x, _ = twice.one_batch()
    assert len({str(i.tolist()) for i in x}) > 1


# loaders as a whole


def test_vocabulary_and_targets(fish):
    dls = retrieval_dls(fish, 24, bs=4)
    assert (dls.n_classes, len(dls.vocab), dls.label_of) == (3, 6, [0, 1, 2, 3, 4, 5])
    assert sorted(set(dls.train.dataset.targets)) == [0, 1, 2]
    assert [dls.vocab[t] for t in dls.valid.dataset.targets] == dls.valid.table['name'].tolist()
    assert table_dl(fish.iloc[::-1].reset_index(drop=True), 24, bs=4).table['path'].iat[0] == fish['path'].iat[-1]


def test_test_classes_that_come_first_are_numbered_last(fish):
    table = fish.assign(split=np.where(fish.label >= 4, 'train', 'test'))
    dls = retrieval_dls(table, 24, bs=4, per_class=2)
    assert (dls.n_classes, dls.label_of) == (2, [4, 5, 0, 1, 2, 3])
    assert sorted(set(dls.train.dataset.targets)) == [0, 1]


def test_query_and_gallery_are_validated_on(fish):
    table = fish.assign(split=np.where(fish.label < 3, 'train', np.where(fish.index % 2, 'query', 'gallery')))
    assert len(retrieval_dls(table, 24, bs=4).valid.table) == 33


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (dict(tfms='cdg'), "tfms: expected one of .*found 'cdg'"),
        (dict(tfms='cfga_pretrained'), "'cfga_pretrained' has no training half"),
        *((dict(size=size), f'size: expected a number of pixels from 1 to 8192, found {size}') for size in (0, 10**10, 8193, '9')),
        (dict(valid='train'), "valid: expected one of .*found 'train'"),
        (dict(valid='valid'), 'no rows to validate on'),
        (dict(bad='ignore'), "bad: expected one of .*found 'ignore'"),
    ],
)
def test_wrong_arguments(fish, args, message):
    with pytest.raises(ValueError, match=message):
        retrieval_dls(fish, **(dict(bs=4) | args))


def test_empty_splits(fish):
    with pytest.raises(ValueError, match="no rows of the split 'train'"):
        retrieval_dls(fish[fish.split == 'test'], 24, bs=4)
    with pytest.raises(ValueError, match='no rows to validate on'):
        retrieval_dls(fish[fish.split == 'train'], 24, bs=4)
    with pytest.raises(ValueError, match='table: no rows'):
        table_dl(fish[:0])


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_bad_image_is_named_in_one_line(own_fish, num_workers):
    image_path(own_fish, 2).write_bytes(b'no image')
    with pytest.raises(BadImage, match=own_fish.path[2]) as e:
        pixels(retrieval_dls(own_fish, 24, bs=4, num_workers=num_workers).train)
    assert '\n' not in str(e.value) and str(e.value).startswith(str(image_path(own_fish, 2)))


def test_bad_images_are_left_out(own_fish, caplog):
    for i in (2, 40):
        image_path(own_fish, i).write_bytes(b'no image')
    dls = retrieval_dls(own_fish, 24, bs=4, bad='skip', progress=False)
    assert (len(dls.train.table), len(dls.valid.table)) == (32, 32)
    assert '2 of 66 images' in caplog.text and own_fish.path[40] in caplog.text
    assert len(pixels(dls.train)) == 32


def test_loaders_survive_pickling(fish, tmp_path):
    dls = retrieval_dls(fish, 24, bs=4, cache=tmp_path, progress=False)
    first = pixels(dls.train.new())
    again = pickle.loads(pickle.dumps(dls))
    assert torch.equal(pixels(again.train), first)
    assert again.new_empty().vocab == dls.vocab


# transforms against plain PIL and torchvision's first interface


def photograph(w, h, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (h // 8, w // 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)


PHOTOGRAPHS = [photograph(500, 375), photograph(333, 500, 1), photograph(120, 96, 2), photograph(256, 256, 3)]
FLIP, TENSOR = v1.RandomHorizontalFlip(), v1.PILToTensor()
OLD = {
    ('cgd', 0): [v1.Resize((252, 252)), v1.RandomCrop(224), FLIP],
    ('cgd', 1): [v1.Resize((224, 224))],
    ('squash', 1): [v1.Resize((224, 224))],
    ('proxy_anchor', 0): [v1.RandomResizedCrop(224), FLIP],
    ('proxy_anchor', 1): [v1.Resize(256), v1.CenterCrop(224)],
    ('cfga_dml', 0): [v1.Resize(256), v1.RandomResizedCrop(227, scale=(0.16, 1)), FLIP],
    ('cfga_dml', 1): [v1.Resize(256), v1.CenterCrop(227)],
    ('dgpcrl', 0): [v1.Resize((280, 280)), v1.RandomRotation(10), v1.RandomCrop(256), FLIP],
    ('fgic', 0): [v1.Resize((512, 512)), v1.RandomCrop(448, padding=8), FLIP],
    ('fgic', 1): [v1.Resize((512, 512)), v1.CenterCrop(448)],
}


@pytest.mark.parametrize(('name', 'half'), OLD)
@pytest.mark.parametrize('photo', range(4))
def test_transforms_equal_the_old_ones(name, half, photo):
    new, old = get_transforms(name)[half], v1.Compose([*OLD[name, half], TENSOR])
    for seed in range(5):
        with seeded(seed):
            mine = new(PHOTOGRAPHS[photo])
        with seeded(seed):
            assert torch.equal(mine, old(PHOTOGRAPHS[photo]))
    assert mine.dtype == torch.uint8


@pytest.mark.parametrize(('name', 'limit'), [('cfga_pretrained', 256), ('dgpcrl', 280)])
@pytest.mark.parametrize('photo', range(4))
def test_shrinking_equals_plain_pil(name, limit, photo):
    img = PHOTOGRAPHS[photo]
    w, h = img.size
    if min(w, h) > limit:
        img = img.resize((round(w * limit / min(w, h)), round(h * limit / min(w, h))), Image.Resampling.BILINEAR)
    out = get_transforms(name)[1](PHOTOGRAPHS[photo])
    assert np.array_equal(out.permute(1, 2, 0).numpy(), np.asarray(img))


def test_test_halves_are_not_random():
    for name in TRANSFORMS:
        test = get_transforms(name)[1]
        assert torch.equal(test(PHOTOGRAPHS[0]), test(PHOTOGRAPHS[0]))


def test_padding_is_black():
    white = Image.new('RGB', (600, 400), 'white')
    shown = [get_transforms('fgic')[0](white) for _ in range(20)]
    assert any((x == 0).any() for x in shown) and all(((x == 0) | (x == 255)).all() for x in shown)


@given(st.sampled_from([n for n in TRANSFORMS if TRANSFORMS[n]['train']]), st.integers(8, 300))
@settings(deadline=None, max_examples=30)
def test_any_size_can_be_asked_for(name, size):
    train, test = get_transforms(name, size)
    assert train(PHOTOGRAPHS[0]).shape == (3, size, size)
    assert name == 'dgpcrl' or test(PHOTOGRAPHS[0]).shape == (3, size, size)


# the cache


@pytest.mark.parametrize('crop', [False, True])
@pytest.mark.parametrize('tfms', ['cgd', 'cfga_dml', 'dgpcrl', 'fgic', 'squash'])
def test_cached_equals_uncached(fish, tmp_path, tfms, crop):
    options = dict(size=24, bs=4, per_class=2, tfms=tfms, crop=crop)
    plain, cached = (retrieval_dls(fish, **options, cache=c, progress=False) for c in (None, tmp_path))
    for _ in range(2):
        assert torch.equal(pixels(plain.train), pixels(cached.train))
    assert all(
        torch.equal(a, b) for (a, _), (b, _) in zip(plain.valid.new(bs=1), cached.valid.new(bs=1), strict=True)
    )


def test_cached_loader_opens_no_photograph(own_fish, tmp_path, monkeypatch):
    dls = retrieval_dls(own_fish, 24, bs=4, cache=tmp_path / 'cache', progress=False)
    monkeypatch.setattr('fgir.data.images.load_image', None)
    assert len(pixels(dls.train)) == 32 and len(pixels(dls.valid)) == 33


def test_cache_keeps_the_aspect(fish, tmp_path):
    resize_cache(fish, 32, tmp_path, crop=True, progress=False)
    cache, box = ImageCache(tmp_path), load_row(fish, 4, crop=True)
    assert min(cache[fish.path[4]].size) == min(32, *box.size)
    assert cache.about == {'version': 1, 'resize': 'shrink32', 'crop': True}


def test_full_cache_is_not_decoded_again(fish, tmp_path, monkeypatch):
    resize_cache(fish, 32, tmp_path, progress=False)
    written = (tmp_path / 'pixels.bin').stat().st_mtime_ns
    monkeypatch.setattr('fgir.data.cache.load_row', None)
    assert resize_cache(fish[10:20], 32, tmp_path, progress=False).attrs['cache'] == str(tmp_path)
    assert (tmp_path / 'pixels.bin').stat().st_mtime_ns == written


def test_changed_photograph_is_refused_then_renewed(own_fish, tmp_path):
    cached = resize_cache(own_fish, (24, 24), tmp_path / 'c', progress=False)
    Image.new('RGB', (64, 64), 'red').save(image_path(own_fish, 7))
    with pytest.raises(ValueError, match=f'{own_fish.path[7]} is not in the cache or has changed.*1 of 66'):
        table_dl(cached, 24)
    assert len(retrieval_dls(cached[cached.label > 0], 24, bs=4).train.table) == 22
    table_dl(resize_cache(own_fish, (24, 24), tmp_path / 'c', progress=False), 24)
    assert ImageCache(tmp_path / 'c')[own_fish.path[7]].getpixel((3, 3))[0] > 240


def test_other_boxes_are_another_image(fish, tmp_path):
    cached = resize_cache(fish, 24, tmp_path, crop=True, progress=False)
    moved = cached.assign(x1=cached.x1 + 1)
    with pytest.raises(ValueError, match='66 of 66 images'):
        table_dl(moved, 24, crop=True)
    with pytest.raises(ValueError, match='a cache with crop=True, not False'):
        table_dl(cached, 24)


def test_other_size_is_refused(fish, tmp_path):
    resize_cache(fish, 24, tmp_path, progress=False)
    for other in (25, (24, 24), v2.Resize(24)):
        with pytest.raises(ValueError, match='take another'):
            resize_cache(fish, other, tmp_path, progress=False)


def test_missing_cache_is_named(fish, tmp_path):
    cached = resize_cache(fish, 24, tmp_path / 'c', progress=False)
    shutil.rmtree(tmp_path / 'c')
    with pytest.raises(FileNotFoundError, match='index.jsonl: no cache'):
        table_dl(cached, 24)


@pytest.mark.parametrize('harm', ['torn line', 'lost pixels', 'no pixels'])
def test_interrupted_cache_goes_on(fish, tmp_path, harm):
    resize_cache(fish, (24, 24), tmp_path, progress=False)
    index, whole = tmp_path / 'index.jsonl', tmp_path / 'pixels.bin'
    if harm == 'torn line':
        os.truncate(index, index.stat().st_size * 2 // 3)
    elif harm == 'lost pixels':
        os.truncate(whole, 24 * 24 * 3 * 30 + 11)
    else:
        whole.unlink()
    left = len(ImageCache(tmp_path))
    assert left == 0 if harm == 'no pixels' else 0 < left < 66
    again = resize_cache(fish, (24, 24), tmp_path, progress=False)
    assert torch.equal(pixels(table_dl(again, 24)), pixels(table_dl(fish, 24)))


def test_cache_stopped_by_a_bad_image_goes_on(own_fish, tmp_path):
    many = own_fish.loc[np.repeat(own_fish.index, 3)]
    for n, (i, row) in enumerate(zip(many.index, many.itertuples(), strict=True)):
        copy = image_path(own_fish, i).with_name(f'{n}.jpg')
        shutil.copy(image_path(own_fish, i), copy)
        many.iloc[n, 0] = row.path.rpartition('/')[0] + f'/{n}.jpg'
    many = many.reset_index(drop=True)
    good = image_path(many, 150).read_bytes()
    image_path(many, 150).write_bytes(b'no image')
    with pytest.raises(BadImage, match='150.jpg'):
        resize_cache(many, 24, tmp_path / 'c', progress=False)
    assert len(ImageCache(tmp_path / 'c')) == 128
    image_path(many, 150).write_bytes(good)
    assert len(ImageCache(resize_cache(many, 24, tmp_path / 'c', progress=False).attrs['cache'])) == 198


def fill(rank, table, folder):
    resize_cache(table, (24, 24), folder, progress=False)


def test_two_processes_fill_one_cache(fish, tmp_path):
    torch.multiprocessing.start_processes(fill, (fish, tmp_path), nprocs=2, start_method='fork')
    assert (tmp_path / 'pixels.bin').stat().st_size == 66 * 24 * 24 * 3
    cached = fish.copy()
    cached.attrs['cache'] = str(tmp_path)
    assert torch.equal(pixels(table_dl(cached, 24)), pixels(table_dl(fish, 24)))


def test_items_of_a_cached_table(fish, tmp_path):
    train, _ = get_transforms('cgd', 24)
    cached = TableImages(resize_cache(fish, (27, 27), tmp_path, progress=False), train)
    with seeded(1):
        x, y = cached[20]
    with seeded(1):
        assert torch.equal(x, TableImages(fish, train)[20][0])
    assert y == fish.label[20]
