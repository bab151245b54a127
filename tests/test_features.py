"Features: files that survive interruption, extraction that leaves the network alone, evaluation, pictures."
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from processes import begin
from safetensors.numpy import load_file, save_file
from torch import nn

from fgir.data.batches import retrieval_dls, table_dl
from fgir.data.fish import synth_dataset
from fgir.data.images import BadImage
from fgir.data.readers import read_folder
from fgir.features import store, unfinished
from fgir.features.descriptors import ColorHistogram, evaluating
from fgir.features.exact import neighbours
from fgir.features.extraction import by_size, extract
from fgir.features.metrics import recall_at_k
from fgir.features.retrieval import evaluate_recall, save_retrieval_pictures, show_neighbours
from fgir.features.store import Features

@pytest.fixture(scope="module")
def fish(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp("fish")/"fish", n_classes=6, n_per_class=6, size=48, progress=False)


def make(n=5, split="test", **arrays):
    table = pd.DataFrame(dict(path=[f"é {i}/ü.jpg" for i in range(n)], label=np.arange(n) // 2,
                              name=[f"class {i // 2}\nline" for i in range(n)], split=split, x1=np.arange(n) + .25))
    table.attrs = dict(root="/some/where", dataset="folder")
    arrays = arrays or {"embedding": np.random.default_rng(0).normal(size=(n, 3))}
    return Features(arrays, table, {"note": "ñ", "size": 224})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_round_trip(tmp_path, dtype, n):
    rng = np.random.default_rng(0)
    made = make(n, b=rng.normal(size=(n, 3)).astype(dtype), a=rng.normal(size=(4, n)).astype(dtype).T)
    made.save(tmp_path/"f.safetensors")
    again = Features.load(tmp_path/"f.safetensors")
    assert again.names == ["b", "a"] and again.record == made.record and again.table.attrs == made.table.attrs
    for name in made.names:
        assert again[name].dtype == dtype
        np.testing.assert_array_equal(again[name], made[name])
    if n: pd.testing.assert_frame_equal(again.table, made.table)
    assert list(tmp_path.iterdir()) == [tmp_path/"f.safetensors"]


def test_columns_of_numbers_keep_their_type(tmp_path):
    table = pd.DataFrame(dict(path=["a", ""], split="test", label=np.array([1, 2], np.uint16), ok=[True, False]))
    Features({"x": np.ones((2, 1))}, table).save(tmp_path/"f")
    pd.testing.assert_frame_equal(Features.load(tmp_path/"f").table, table)


def test_other_tools_read_the_file(tmp_path):
    made = make()
    made.save(tmp_path/"f.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path/"f.safetensors")["embedding"], made["embedding"])


def test_arrays_are_mapped_and_the_file_stays(tmp_path):
    path = make().save(tmp_path/"f.safetensors")
    before, features = path.read_bytes(), Features.load(path)
    assert isinstance(features["embedding"].base, np.memmap)
    features["embedding"][:] = 7
    assert path.read_bytes() == before
    recall_at_k(Features.load(path)["embedding"], features.table.label.to_numpy())


def test_a_mapped_file_may_be_overwritten(tmp_path):
    path = make().save(tmp_path/"f.safetensors")
    features = Features.load(path)
    kept = features["embedding"].copy()
    make(9).save(path, force=True)
    np.testing.assert_array_equal(features["embedding"], kept)
    features.save(path, force=True)
    np.testing.assert_array_equal(Features.load(path)["embedding"], kept)


def test_overwriting_must_be_asked_for(tmp_path):
    path = make().save(tmp_path/"f.safetensors")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="force=True"): make(3).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("spoil, words", [
    (lambda b: b[:-1], "not all of one"),
    (lambda b: b[:100], "not all of one"),
    (lambda b: b[:4], "not all of one"),
    (lambda b: b"", "not all of one"),
    (lambda b: b + b"x", "not all of one"),
    (lambda b: b"PK\3\4 something else altogether", "not a safetensors file"),
])
def test_spoiled_files(tmp_path, spoil, words):
    path = make().save(tmp_path/"f.safetensors")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=words) as e: Features.load(path)
    assert str(path) in str(e.value)


def test_foreign_and_missing_files(tmp_path):
    save_file({"w": np.ones(3)}, tmp_path/"model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is a safetensors file, but not of"):
        Features.load(tmp_path/"model.safetensors")
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"): Features.load(tmp_path/"nothing.safetensors")


def die_saving(path):
    def half(tmp, *rest):
        tmp.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    store.create_file = half
    make(2).save(path, force=True)


def test_killed_while_saving(tmp_path):
    "A process that dies in the middle of writing leaves the old file as it was, and half a file to the next one, which removes it."
    path = make().save(tmp_path/"f.safetensors")
    before = path.read_bytes()
    process = begin(die_saving, path)
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == before
    Features.load(path).save(path, force=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_failing_while_saving_leaves_nothing(tmp_path, monkeypatch):
    def full(*_): raise OSError("no space left on device")
    monkeypatch.setattr("fgir.features.store.create_file", full)
    with pytest.raises(OSError, match="no space"): make().save(tmp_path/"f.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("features, words", [
    (lambda: Features(make().arrays, make().table.assign(extra=[1, "a", None, 2, 3])), "column 'extra'"),
    (lambda: Features(make().arrays, make().table.assign(extra="a\0b")), "column 'extra'"),
    (lambda: Features(make().arrays, make().table, {"model": nn.Identity()}), "record cannot be saved as JSON"),
    (lambda: Features({"table.path": np.ones((5, 1))}, make().table), "must not be those of table columns"),
])
def test_what_cannot_be_saved(tmp_path, features, words):
    with pytest.raises(ValueError, match=words): features().save(tmp_path/"f.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("array", [np.ones((4, 3)), np.ones(5), np.ones((5, 2), int), np.ones((5, 2, 1))])
def test_arrays_fit_the_table(array):
    with pytest.raises(ValueError, match=r"needs floats \(5, D\)"): make(x=array)


def test_select():
    f = make(6)
    f = Features(f.arrays, f.table.assign(split=["train", "query", "gallery"] * 2), f.record)
    assert f.select("query").table.x1.tolist() == [1.25, 4.25]
    assert f.select(["train", "gallery"]).table.x1.tolist() == [.25, 2.25, 3.25, 5.25]
    assert f.select([5, 0])["embedding"].tolist() == f["embedding"][[5, 0]].tolist()
    assert f.select(np.array([True] + [False] * 5)).table.index.tolist() == [0]
    assert f.select("query").table.attrs == f.table.attrs and f.select("query").record == f.record
    with pytest.raises(ValueError, match=r"no rows of split test, there are gallery, query, train"): f.select("test")
    with pytest.raises(ValueError, match="a mask of shape"): f.select([True, False])
    with pytest.raises(KeyError, match="no array 'size', there are embedding"): f["size"]


class Net(nn.Module):
    def __init__(self, answer=None):
        super().__init__()
        self.norm, self.drop, self.answer, self.modes = nn.BatchNorm2d(3), nn.Dropout(.5), answer, []

    def forward(self, x):
        self.modes.append([m.training for m in self.modules()])
        x = self.drop(self.norm(x)).mean((2, 3))
        return self.answer(x) if self.answer else x


def test_extract_leaves_the_network_alone(fish):
    net = Net()
    net.norm.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first, second = (extract(net, fish, size=32, progress=False)["embedding"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not any(any(m) for m in net.modes)
    assert [m.training for m in net.modules()] == [True, False, True]
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_modes_come_back_after_an_exception(fish):
    def fail(x): raise RuntimeError("in the middle")
    net = Net(fail)
    net.norm.eval()
    with pytest.raises(RuntimeError, match="in the middle"): extract(net, fish, size=32, progress=False)
    assert [m.training for m in net.modules()] == [True, False, True]
    with pytest.raises(GeneratorExit), evaluating(net): raise GeneratorExit
    assert [m.training for m in net.modules()] == [True, False, True]


@pytest.mark.parametrize("answer, words", [
    (lambda x: x[:, :, None], r"'embedding' is \(36, 3, 1\) for a batch of 36 images"),
    (lambda x: x[:1], r"instead of \(36, D\)"),
    (lambda x: (x, x), "not tuple"),
    (lambda x: {}, "tensor or a dict of tensors"),
    (lambda x: {"a": 3}, "'a' is int"),
    (lambda x: x.log() * float("nan"), "'embedding' holds NaN"),
    (lambda x: x * 0 + 1e30, None),
])
def test_answers_of_descriptors(fish, answer, words):
    if words is None: assert extract(Net(answer), fish, size=16, progress=False)["embedding"].max() > 1e29
    else:
        with pytest.raises(ValueError, match=words): extract(Net(answer), fish, size=16, progress=False)


def test_the_image_of_a_bad_vector_is_named(fish):
    def spoil(x):
        x[-1] = float("inf")
        return x
    with pytest.raises(ValueError, match=fish.path[9]): extract(Net(spoil), fish, size=16, bs=10, progress=False)


def test_overflow_of_the_stored_type_is_an_error(fish):
    with pytest.raises(ValueError, match="NaN or infinity"):
        extract(Net(lambda x: x * 0 + 1e6), fish, size=16, dtype="float16", progress=False)


def test_gradients_may_be_used_inside(fish):
    def by_gradient(x):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            return torch.autograd.grad((x**2).sum(), x)[0].mean((2, 3))
    plain, made = (extract(d, fish, size=16, progress=False) for d in (lambda x: 2 * x.mean((2, 3)), by_gradient))
    np.testing.assert_allclose(made["embedding"], plain["embedding"], rtol=1e-4)


def test_table_loader_and_batch_size_give_the_same(fish):
    net = Net().eval()
    whole = extract(net, fish, size=32, progress=False)
    for data in (table_dl(fish, size=32, bs=7, device="cpu"), fish):
        again = extract(net, data, **({} if data is not fish else dict(size=32, bs=5)), progress=False)
        np.testing.assert_allclose(again["embedding"], whole["embedding"], atol=1e-6)
        pd.testing.assert_frame_equal(again.table, whole.table)


def test_normalization_of_the_network_is_used(fish):
    net = Net().eval()
    net.mean, net.std = (0, 0, 0), (1, 1, 1)
    dl = table_dl(fish, size=32, mean=(0, 0, 0), std=(1, 1, 1), device="cpu")
    raw = extract(lambda x: x.mean((2, 3)), dl, progress=False)
    net.norm = nn.Identity()
    given = extract(net, fish, size=32, progress=False)
    np.testing.assert_allclose(given["embedding"], raw["embedding"], atol=1e-6)
    assert given.record["mean"] == [0, 0, 0]


def test_shuffling_loaders_are_refused(fish):
    dls = retrieval_dls(fish, size=32, bs=4, device="cpu")
    with pytest.raises(ValueError, match="shuffles"): extract(Net(), dls.train, progress=False)
    with pytest.raises(ValueError, match="a table or a loader of one, not DataLoaders"): extract(Net(), dls)
    assert len(extract(Net(), dls.valid, progress=False)) == 18


def test_record_can_be_saved(fish, tmp_path):
    for descriptor in (Net(), ColorHistogram(4), lambda x: x.mean((2, 3))):
        f = extract(descriptor, fish, size=32, note="why", dtype="float16", progress=False)
        f.save(tmp_path/"f.safetensors", force=True)
        assert Features.load(tmp_path/"f.safetensors").record == f.record
        assert [f.record[k] for k in ("size", "tfms", "note", "dtype")] == [32, "cgd", "why", "float16"]
    assert extract(Net(), fish, progress=False).record["size"] == 224


def test_color_histogram():
    "Against counting by hand, with channels told apart and every level in its cell."
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (3, 3, 8, 8))
    d = ColorHistogram(8)
    x = (torch.tensor(levels) / 255 - torch.tensor(d.mean)[:, None, None]) / torch.tensor(d.std)[:, None, None]
    cells = (levels // 32 * np.array([64, 8, 1])[:, None, None]).sum(1).reshape(3, -1)
    counted = np.sqrt([np.bincount(c, minlength=512) / 64 for c in cells])
    np.testing.assert_allclose(d(x)["color"], counted, atol=1e-6)
    with pytest.raises(ValueError, match="bins"): ColorHistogram(0)


def test_evaluate_recall():
    rng = np.random.default_rng(0)
    f = make(20, a=rng.normal(size=(20, 4)), b=rng.normal(size=(20, 2)))
    labels = f.table.label.to_numpy()
    found = evaluate_recall(f, ks=(1, 5), metric="euclidean")
    assert found.descriptor.tolist() == ["a", "b"] and found.dim.tolist() == [4, 2]
    assert found[["n_queries", "n_gallery"]].to_numpy().tolist() == [[20, 19]] * 2
    assert found["R@5"][1] == recall_at_k(f["b"], labels, ks=(5,), metric="euclidean")[5]
    f.table["split"] = ["query", "gallery"] * 8 + ["train"] * 4
    found, q, g = evaluate_recall(f), f.select("query"), f.select("gallery")
    assert found[["n_queries", "n_gallery"]].to_numpy().tolist() == [[8, 8]] * 2
    assert found["R@1"][0] == recall_at_k(q["a"], q.table.label.to_numpy(), g["a"], g.table.label.to_numpy())[1]
    for split in ("query", "gallery"):
        with pytest.raises(ValueError, match="without"): evaluate_recall(f.select([split, "train"]))


def test_show_neighbours(fish):
    rows = torch.tensor([[1, 2], [0, 12]])
    fig = show_neighbours(fish, torch.tensor([0, 6]), rows, scores=torch.rand(2, 2), crop=True)
    assert len(fig.axes) == 6 and not plt.get_fignums()
    colors = [ax.spines["left"].get_edgecolor()[:2] for ax in fig.axes if ax.spines["left"].get_visible()]
    assert [c[1] > c[0] for c in colors] == [True, True, False, False]
    with pytest.raises(ValueError, match="for 2 queries"): show_neighbours(fish, [0, 1], [[1, 2]])


def test_retrieval_pictures(fish, tmp_path):
    f = extract(ColorHistogram(), fish, size=32, progress=False)
    folder = save_retrieval_pictures(f, 3, tmp_path/"results", k=5)
    assert folder == tmp_path/"results"/f"3_{fish.path[3].split('/')[-1].split('.')[0]}"
    d, rows = neighbours(f["color"], k=5, metric="euclidean")
    names = [f"retrieval_img_{i}_{v:.4f}.jpg" for i, v in enumerate(d[3], 1)]
    assert sorted(p.name for p in folder.iterdir()) == ["query_img.jpg", *names]
    for name, row in zip(names, rows[3], strict=True):
        image = Image.open(folder/name)
        red, green, _ = image.getpixel((3, 100))
        assert image.size == (224, 224) and (green > red) == (fish.label[row] == fish.label[3])
        frame = np.asarray(image).astype(int)[112, 1:7].mean(0)
        assert np.abs(frame - ([0, 128, 0] if green > red else [255, 0, 0])).max() < 40


def test_retrieval_pictures_from_a_gallery(fish, tmp_path):
    f = extract(ColorHistogram(), fish.assign(split=["query", "gallery"] * 18), size=32, progress=False)
    folder = save_retrieval_pictures(f, 0, tmp_path, k=99, metric="cosine")
    assert len(list(folder.iterdir())) == 19
    with pytest.raises(ValueError, match="row must be"): save_retrieval_pictures(f, 36, tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


def test_retrieval_pictures_of_equal_file_names(fish, tmp_path):
    "As in subsets of CUB, where each class folder has a `0000.jpg`."
    same = fish.assign(path=[f"{n}/{i % 6:04}.jpg" for i, n in enumerate(fish["name"])])
    same.attrs["root"] = str(tmp_path)
    for i, path in enumerate(same.path):
        (tmp_path/path).parent.mkdir(exist_ok=True)
        shutil.copy(f"{fish.attrs['root']}/{fish.path[i]}", tmp_path/path)
    f = extract(ColorHistogram(), same, size=32, progress=False)
    folders = [save_retrieval_pictures(f, row, tmp_path/"pictures", k=2) for row in (0, 6)]
    assert [p.name for p in folders] == ["0_0000", "6_0000"]


def test_retrieval_pictures_are_whole_or_not_there(fish, tmp_path, monkeypatch):
    f = extract(ColorHistogram(), fish, size=32, progress=False)
    folder = save_retrieval_pictures(f, 0, tmp_path, k=2)
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(FileExistsError, match="force=True"): save_retrieval_pictures(f, 0, tmp_path, k=3)
    save, calls = Image.Image.save, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) > 2: raise OSError("disk full")
        save(*args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="disk full"): save_retrieval_pictures(f, 0, tmp_path, k=3, force=True)
    assert sorted(p.name for p in folder.iterdir()) == before and list(tmp_path.iterdir()) == [folder]
    save_retrieval_pictures(f, 0, tmp_path, k=3, force=True)
    assert len(list(folder.iterdir())) == 4


def photographs(folder, n=24):
    "A table of `n` small images of three shapes."
    rng = np.random.default_rng(0)
    for i in range(n):
        (folder/"ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        shape = ((40, 30), (30, 52), (33, 33))[i % 3]
        Image.fromarray(rng.integers(0, 255, (*shape, 3), np.uint8)).save(folder/"ab"[i % 2]/f"{i:02}.png")
    return read_folder(folder)


def mean(x): return x.mean((2, 3))


def describe_until_killed(images, out, batches):
    calls = []
    def dying(x):
        calls.append(len(x))
        if len(calls) > batches: os.kill(os.getpid(), signal.SIGKILL)
        return mean(x)
    dying.__qualname__ = mean.__qualname__
    extract(dying, read_folder(images), 16, bs=5, num_workers=0, out=out, progress=False)


def test_killed_while_describing(tmp_path):
    "A process that is killed leaves a part, which the same call completes to what one run would have written."
    table, out, seen = photographs(tmp_path/"images"), tmp_path/"f.safetensors", []
    process = begin(describe_until_killed, tmp_path/"images", out, 2)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [f.name.split(".")[-1] for f in sorted(tmp_path.glob("f.*"))] == ["done", "part"]
    def noted(x):
        seen.append(len(x))
        return mean(x)
    noted.__qualname__ = mean.__qualname__
    made = extract(noted, table, 16, bs=5, num_workers=0, out=out, progress=False)
    assert sum(seen) == len(table) - 10 and [f.name for f in tmp_path.glob("*f.*")] == [out.name]
    np.testing.assert_array_equal(made["embedding"], extract(mean, table, 16, bs=5, num_workers=0, progress=False)["embedding"])


class Stops(nn.Linear):
    "A network that describes `left` batches and is interrupted then."
    def __init__(self, left=2):
        super().__init__(3, 2)
        self.left, self.seen = left, 0

    def forward(self, x):
        if self.seen == self.left: raise KeyboardInterrupt
        self.seen += 1
        return super().forward(x.mean((2, 3)))


def interrupted(table, out, net=None, **how):
    "The part that an extraction leaves which stops after two batches."
    net = net or Stops()
    before = {*out.parent.glob("*.part")}
    with pytest.raises(KeyboardInterrupt): extract(net, table, **dict(size=16, bs=5, num_workers=0, progress=False, out=out) | how)
    net.left, net.seen = 99, 0
    part, = {*out.parent.glob("*.part")} - before
    return net, part


def test_other_work_neither_blocks_nor_reads_a_part(tmp_path, capsys):
    "Another transform, table, folder, precision or network makes its own file beside the part, which the first call completes."
    table, out = photographs(tmp_path/"images"), tmp_path/"f.safetensors"
    shutil.copytree(tmp_path/"images", tmp_path/"others")
    net, part = interrupted(table, out)
    before, how = part.read_bytes(), dict(size=16, bs=5, num_workers=0, progress=False, out=out)
    for other in (dict(size=20), dict(data=table[:-1]), dict(data=read_folder(tmp_path/"others")), dict(descriptor=Stops(99)),
                  dict(dtype="float16"), dict(note="other")):
        call = dict(descriptor=net, data=table) | how | other
        alone = extract(**call | dict(out=None))
        capsys.readouterr()
        net.seen = 0
        made = extract(**call)
        for name in made.names: np.testing.assert_array_equal(made[name], alone[name])
        assert capsys.readouterr().err.startswith(f"{part}: other work for this file that was interrupted; it is kept")
        assert part.read_bytes() == before
        out.unlink()
    with torch.autocast("cpu", torch.bfloat16): assert len(extract(net, table, **how)) == len(table)
    out.unlink()
    net.seen = 0
    assert len(extract(net, table, **how)) == len(table) and net.seen == 3
    with pytest.raises(FileExistsError): extract(net, table, **how)
    assert [f.name for f in tmp_path.glob("f*")] == [out.name]
    with pytest.raises(ValueError, match="give the table"): extract(net, table_dl(table, 16), out=tmp_path/"g")


def test_force_removes_what_other_work_began(tmp_path):
    table, out = photographs(tmp_path/"images"), tmp_path/"f.safetensors"
    net, part = interrupted(table, out)
    extract(Stops(99), table, 16, num_workers=0, progress=False, out=out, force=True)
    assert [f.name for f in tmp_path.glob("f*")] == [out.name]


def test_the_same_work_twice_at_once(tmp_path, capfd):
    "The second waits for the first and says for whom; then the file is there, or what the first left is gone on with."
    table, out = photographs(tmp_path/"images"), tmp_path/"f.safetensors"
    how, net = dict(size=16, bs=5, num_workers=0, progress=False, out=out), Stops(99)
    inside, go = threading.Event(), threading.Event()

    class Slow(Stops):
        def forward(self, x):
            inside.set()
            assert go.wait(20)
            if self.seen == self.left: raise KeyboardInterrupt
            return super().forward(x)

    for end, error in ((99, FileExistsError), (1, None)):
        slow = Slow(end)
        slow.load_state_dict(net.state_dict())
        Stops.__qualname__ = Slow.__qualname__ = "Net"
        inside.clear(), go.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(extract, slow, table, **how)
            assert inside.wait(20)
            net.seen = 0
            second = pool.submit(extract, net, table, **how)
            time.sleep(1.2)
            go.set()
            assert (first.exception() is None) == (end == 99)
            assert isinstance(second.exception(), error) if error else len(second.result()) == len(table) and net.seen == 4
        said = capfd.readouterr().err
        assert re.search(r"waiting for \S+\.part: process \d+ \(.*\) is at it", said), said
        out.unlink()


def test_a_spoiled_part_is_named(tmp_path):
    table, out = photographs(tmp_path/"images"), tmp_path/"f.safetensors"
    net, part = interrupted(table, out)
    whole, marks = part.read_bytes(), part.with_suffix(".done")
    for spoil in (lambda: part.write_bytes(whole[:-9]), lambda: part.write_bytes(b"{}"), lambda: marks.write_bytes(b"\1"),
                  lambda: marks.write_bytes(b"\7"*len(table)), lambda: make(len(table)).save(part, force=True)):
        part.write_bytes(whole)
        spoil()
        with pytest.raises(ValueError) as e: extract(net, table, 16, bs=5, num_workers=0, progress=False, out=out)
        assert str(part) in str(e.value) and "\n" not in str(e.value)


def test_readable_by_any_safetensors_reader(tmp_path):
    "What `save` and `extract` write is what the format's own library reads."
    table = photographs(tmp_path/"images")
    f = extract(lambda x: {"mean": x.mean((2, 3)), "max": x.amax((2, 3))}, table, 16, bs=5, num_workers=0, dtype="float16",
                out=tmp_path/"f.safetensors", progress=False)
    for path in (tmp_path/"f.safetensors", f.save(tmp_path/"g.safetensors")):
        read = load_file(path)
        for name in f.names: np.testing.assert_array_equal(read[name], f[name])
        assert read["mean"].dtype == np.float16 and "table.label" in read


@pytest.mark.parametrize("bs", [1, 4, 7, 100])
def test_sizes_do_not_matter_to_results(tmp_path, bs):
    "Each image is described once, at its own shape, whoever shares its batch; no batch is too large."
    table, seen = photographs(tmp_path/"images"), []
    def mean(x):
        seen.append(len(x))
        return torch.cat([x.mean((2, 3)), x.new_tensor([x.shape[2:]]).expand(len(x), -1)], 1)
    found = extract(mean, table, 32, tfms="cfga_pretrained", bs=bs, num_workers=0, progress=True)["embedding"]
    batches = len(seen)
    assert batches == 3*-(-8//bs) and max(seen) <= bs
    one = extract(mean, table, 32, tfms="cfga_pretrained", bs=1, num_workers=0, progress=False)["embedding"]
    np.testing.assert_allclose(found, one, atol=1e-6)
    assert {tuple(s) for s in found[:, 3:].tolist()} == {(40, 30), (30, 52), (32, 32)}


def test_sizes_are_those_of_the_images(tmp_path):
    "Headers, orientation tags, boxes and caches all tell the size that the transform gets; a broken file fails by name."
    table = photographs(tmp_path/"images")
    turned = Image.new("RGB", (60, 31))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path/"images"/"a"/"turned.jpg", exif=exif)
    table = read_folder(tmp_path/"images").assign(x1=-3., y1=2., x2=25., y2=20.)
    for crop in (False, True):
        for cache in (None, tmp_path/f"cache-{crop}"):
            data = table_dl(table, 32, 4, "cfga_pretrained", crop, num_workers=0, cache=cache, progress=False).dataset
            batches = by_size(data, 4)
            assert sorted(i for rows in batches for i in rows) == list(range(len(table)))
            for rows in batches: assert len({data[i][0].shape for i in rows}) == 1
    (tmp_path/"images"/table["path"][5]).write_bytes(b"no image")
    with pytest.raises(BadImage, match=Path(table["path"][5]).name):
        extract(lambda x: x.mean((2, 3)), table, 32, tfms="cfga_pretrained", bs=4, num_workers=0, progress=False)


def test_stopped_at_the_last_moment(tmp_path, monkeypatch):
    "A run that ends between its last mark and the renaming is finished by the same call, which describes nothing."
    table, out, calls = photographs(tmp_path/"images"), tmp_path/"f.safetensors", []
    def mean(x):
        calls.append(1)
        return x.mean((2, 3))
    def stop(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(unfinished.UnfinishedFeatures, "finish", stop)
        with pytest.raises(KeyboardInterrupt): extract(mean, table, 16, num_workers=0, out=out, progress=False)
    before = len(calls)
    assert len(extract(mean, table, 16, num_workers=0, out=out, progress=False)) == len(table) and len(calls) == before


def test_any_table_that_can_be_saved(tmp_path):
    "Columns of text, categories and numbers go to a file as they come."
    table = photographs(tmp_path/"images").assign(kind=pd.Categorical(["a", "b"]*12), note="x", weight=np.arange(24)/2)
    table["note"] = table["note"].astype(object)
    found = extract(lambda x: x.mean((2, 3)), table, 16, bs=5, num_workers=0, out=tmp_path/"f.safetensors", progress=False)
    assert found.table["kind"].tolist() == ["a", "b"]*12 and found.table["weight"].tolist() == (np.arange(24)/2).tolist()


def test_unknown_transform(tmp_path):
    with pytest.raises(ValueError, match="tfms"): extract(lambda x: x, photographs(tmp_path/"images"), tfms="nope")
