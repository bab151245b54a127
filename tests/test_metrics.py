"Search and metrics: oracles by property tests, exact ties, golden values, precision, memory, other libraries, bad input."
import importlib.util
from contextlib import contextmanager
from fractions import Fraction
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from processes import Fresh
from scipy import stats

from fgir.features import exact as search
from fgir.features.exact import neighbours
from fgir.features.intervals import confidence
from fgir.features.metrics import (
    AT_K,
    OVER_ALL,
    TIES,
    cluster_agreement,
    first_hit_rank,
    list_name,
    measure,
    recall_at_k,
    score_lists,
    score_queries,
)

KS = (1, 2, 4, 8)


def exact(q, g, metric):
    "Something that sorts g by similarity to q, highest first, in exact arithmetic on integer vectors."
    dot = sum(int(a) * int(b) for a, b in zip(q, g, strict=True))
    if metric == "dot": return dot
    if metric == "euclidean": return -sum((int(a) - int(b))**2 for a, b in zip(q, g, strict=True))
    return Fraction(dot * abs(dot), sum(int(b)**2 for b in g))


def exact_orders(q, g, metric):
    "Gallery rows of each query in order; the query itself is left out where g is None."
    among = q if g is None else g
    for i, x in enumerate(q):
        rows = [j for j in range(len(among)) if g is not None or j != i]
        yield sorted(rows, key=lambda j: (-exact(x, among[j], metric), j))  # noqa: B023


def exact_recall(q, q_labels, g, g_labels, ks, metric):
    labels = q_labels if g is None else g_labels
    orders = list(exact_orders(q, g, metric))
    return {k: sum(any(labels[j] == q_labels[i] for j in o[:k]) for i, o in enumerate(orders)) / len(q) for k in ks}


@st.composite
def problems(draw):
    "Integer vectors in few values, so that ties abound, with labels; a gallery or none."
    d, spread = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 100]))
    def side(least):
        n = draw(st.integers(least, 14))
        x = draw(arrays(np.int64, (n, d), elements=st.integers(-spread, spread)))
        x[(x == 0).all(1), 0] = 1
        return x, draw(arrays(np.int64, n, elements=st.integers(0, 3)))
    q, q_labels = side(1)
    return (q, q_labels, *(side(1) if draw(st.booleans()) else (None, None)))


metric_names = st.sampled_from(["cosine", "dot", "euclidean"])


@contextmanager
def starting_rough(spare):
    "Even small galleries start in float32, with `spare` candidates more than wanted; None: as they are."
    kept = search.SPARE, search.SHARE
    try:
        if spare is not None: search.SPARE, search.SHARE = spare, 1
        yield
    finally: search.SPARE, search.SHARE = kept


spares = st.sampled_from([None, 1, 3])
dtypes = st.sampled_from([np.float64, np.float32, np.float16, np.int32])


@settings(deadline=None, max_examples=80)
@given(problems(), metric_names, dtypes, st.integers(1, 20), spares)
def test_recall_is_the_oracle(problem, metric, dtype, chunk, spare):
    q, q_labels, g, g_labels = problem
    with starting_rough(spare):
        found = recall_at_k(q.astype(dtype), q_labels, None if g is None else g.astype(dtype), g_labels, KS, metric, chunk)
    assert found == exact_recall(q, q_labels, g, g_labels, KS, metric)


@settings(deadline=None, max_examples=80)
@given(problems(), metric_names, dtypes, st.integers(1, 20), st.data(), spares)
def test_neighbours_are_the_oracle(problem, metric, dtype, chunk, data, spare):
    q, _, g, _ = problem
    room = len(q) - 1 if g is None else len(g)
    if not room: return
    k = data.draw(st.integers(1, room))
    with starting_rough(spare): _, rows = neighbours(q.astype(dtype), None if g is None else g.astype(dtype), k, metric, chunk)
    assert rows.tolist() == [o[:k] for o in exact_orders(q, g, metric)]


@settings(deadline=None, max_examples=60)
@example(n=47, d=22, seed=436, metric='euclidean', chunk=1, dtype=torch.bfloat16, spare=None)
@given(st.integers(2, 60), st.integers(1, 40), st.integers(0, 10**6), metric_names, st.integers(1, 70),
       st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), spares)
def test_copies_tie_and_chunks_do_not_matter(n, d, seed, metric, chunk, dtype, spare):
    "Real vectors, each in the gallery twice: both copies have one similarity, and equal ones come in row order."
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=rng).to(dtype)
    gallery, labels = torch.cat([x, x]), torch.arange(n).repeat(2)
    scores, rows = neighbours(x, gallery, 2 * n, metric, chunk)
    with starting_rough(spare): assert (neighbours(x, gallery, n, metric, chunk)[1] == rows[:, :n]).all()
    by_row = torch.empty_like(scores).scatter_(1, rows, scores)
    assert (by_row[:, :n] == by_row[:, n:]).all()
    # Scores are of float32, the order is of more digits: two that are equal here may differ there.
    pair, everyone = search.compared(x, gallery, metric), torch.arange(n)
    if metric == "euclidean": exact = -search._distances(pair, everyone, torch.arange(2 * n).expand(n, -1))
    else: exact = search.exact_similarity(pair, everyone)
    assert (exact.sort(dim=1, descending=True, stable=True).indices == rows).all()
    steps = scores.diff(dim=1)
    assert (steps >= 0 if metric == "euclidean" else steps <= 0).all()
    ranks = first_hit_rank(x, labels[:n], gallery, labels, metric)
    with starting_rough(spare): assert (first_hit_rank(x, labels[:n], gallery, labels, metric, chunk) == ranks).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 80), st.integers(0, 10**6), metric_names)
def test_between_the_pessimist_and_the_optimist(n, seed, metric):
    "Ties in favor of the query bound recall from above, ties against it from below."
    rng = np.random.default_rng(seed)
    x, labels = rng.integers(-2, 3, (n, 3)), rng.integers(0, 5, n)
    x[(x == 0).all(1), 0] = 1
    s = np.array([[exact(a, b, metric) for b in x] for a in x])
    same = (labels[:, None] == labels) & ~np.eye(n, dtype=bool)
    best = [max(row[hit], default=None) for row, hit in zip(s, same, strict=True)]
    for k, found in recall_at_k(x, labels, metric=metric).items():
        other = labels[:, None] != labels
        strictly = [b is not None and (row[o] > b).sum() < k for row, o, b in zip(s, other, best, strict=True)]
        at_least = [b is not None and (row[o] >= b).sum() < k for row, o, b in zip(s, other, best, strict=True)]
        assert np.mean(at_least) <= found <= np.mean(strictly)


def waves(rows=24, cols=8, a=.37, b=.11):
    i, j = np.arange(rows)[:, None], np.arange(cols)[None]
    z = np.sin(a * (i + 1) * (j + 1) + b * (i - j))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("make", [lambda x: x, torch.from_numpy, lambda x: torch.from_numpy(x).float()])
def test_golden(metric, make):
    z, cycle = make(waves()), np.arange(24) % 6
    assert recall_at_k(z, np.arange(24) // 4, metric=metric) == {1: 0, 2: 1/24, 4: 5/24, 8: 14/24}
    assert recall_at_k(z, cycle, metric=metric) == {1: 7/24, 2: 9/24, 4: 20/24, 8: 23/24}
    assert recall_at_k(z[:8], cycle[:8], z[8:], cycle[8:], (1, 2, 4), metric) == {1: 2/8, 2: 2/8, 4: 6/8}


def test_toy_of_cfga():
    angles = np.deg2rad([0, 10, 25, 40, 61, 75])
    found = recall_at_k(np.stack([np.cos(angles), np.sin(angles)], 1), [0, 0, 1, 0, 1, 1], ks=(1, 2, 4))
    assert found == {1: 4/6, 2: 4/6, 4: 1}


def test_a_copy_of_the_query_is_found():
    "Self is excluded by row, so an exact copy with the wrong label pushes the hit to rank 2."
    x = np.array([[1., 0], [1, 0], [.9, .1], [0, 1]])
    assert first_hit_rank(x, ["a", "b", "a", "b"]).tolist() == [2, 3, 1, 3]


def test_no_hit_possible_is_a_miss():
    x = np.eye(3)
    assert first_hit_rank(x, [0, 0, 7]).tolist()[2] == np.inf
    assert recall_at_k(x, [0, 0, 7], ks=(100,)) == {100: 2/3}
    assert recall_at_k(x, [0, 1, 2]) == dict.fromkeys(KS, 0)
    assert recall_at_k(x[:1], [0]) == dict.fromkeys(KS, 0)
    assert recall_at_k(x, [0, 1, 2], x, [3, 4, 5]) == dict.fromkeys(KS, 0)


@pytest.mark.parametrize("labels", [
    ["b", "b", "a"], np.array(["b", "b", "a"]), np.array(["b", "b", "a"], dtype=object), pd.Series(["b", "b", "a"]),
    pd.Series(["b", "b", "a"], dtype="category"), (9, 9, -4), torch.tensor([9, 9, -4]), pd.Series([9, 9, -4]),
    np.array([9, 9, 4], dtype=np.uint8), [True, True, False],
])
def test_labels_of_many_kinds(labels):
    assert first_hit_rank(np.array([[1., 0], [1, 1], [1, .9]]), labels).tolist() == [2, 2, np.inf]


def test_euclidean_far_from_the_origin():
    "The expansion of the square must not cancel."
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(300, 16)), rng.integers(0, 20, 300)
    near = first_hit_rank(x, labels, metric="euclidean")
    assert (first_hit_rank(x + 1e5, labels, metric="euclidean") == near).all()
    assert (first_hit_rank(x * 1e-6, labels, metric="euclidean") == near).all()
    far = (x + 1000).astype(np.float32)
    order = neighbours(far, k=20, metric="euclidean")[1]
    d = np.linalg.norm(far[:, None].astype(np.float64) - far[None], axis=2)
    np.fill_diagonal(d, np.inf)
    assert (order == np.argsort(d, axis=1, kind="stable")[:, :20]).mean() > .999


def test_one_outlier_does_not_coarsen_the_rest():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 8))
    alone = neighbours(x, k=5, metric="euclidean")[1]
    with_outlier = neighbours(x, np.concatenate([x, np.full((1, 8), 1e4)]), k=6, metric="euclidean")[1]
    assert (with_outlier[:, 1:] == alone).all()


def test_distances_are_exact():
    x = np.array([[0., 0], [0, 1e-7], [3, 4]], dtype=np.float32)
    d, rows = neighbours(x, k=2, metric="euclidean")
    np.testing.assert_allclose(d, [[1e-7, 5], [1e-7, 5], [5, 5]], rtol=1e-6)
    assert rows.tolist() == [[1, 2], [0, 2], [0, 1]] or rows.tolist()[:2] == [[1, 2], [0, 2]]


def test_reduced_matmul_precision_and_autocast_change_nothing():
    rng = torch.Generator().manual_seed(0)
    x, labels = torch.randn(400, 64, generator=rng), torch.randint(0, 40, (400,), generator=rng)
    plain, setting = first_hit_rank(x, labels), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16): assert (first_hit_rank(x, labels) == plain).all()
    finally: torch.set_float32_matmul_precision(setting)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_memory_is_bounded(metric, monkeypatch):
    "Buffers hold a chunk of rows, and fewer where that is too much."
    sizes, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: (sizes.append(a), empty(*a, **kw))[1])
    monkeypatch.setattr(search, "MEMORY", 8 * 500 * 30)
    monkeypatch.setattr(search, "BLOCK", 64)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(500, 8)).astype(np.float32), rng.integers(0, 50, 500)
    small = first_hit_rank(x, labels, metric=metric)
    assert sizes[-1] == (30, 500)
    monkeypatch.undo()
    assert (first_hit_rank(x, labels, metric=metric) == small).all()


def test_inputs_are_left_alone_and_may_be_read_only():
    x = np.random.default_rng(0).normal(size=(50, 4))
    kept = x.copy()
    x.flags.writeable = False
    for metric in search.METRICS: recall_at_k(x, np.arange(50) // 5, metric=metric)
    assert (x == kept).all()
    assert recall_at_k(x[:, ::-1], np.arange(50) // 5) == recall_at_k(x, np.arange(50) // 5)
    assert recall_at_k(x.astype(">f8"), np.arange(50) // 5) == recall_at_k(x, np.arange(50) // 5)


def test_gradients_are_not_kept():
    x = torch.eye(4, requires_grad=True)
    assert not neighbours(x, k=2)[0].requires_grad


def test_types_of_the_answer():
    x = torch.eye(4)
    scores, rows = neighbours(x, k=2)
    assert (scores.dtype, rows.dtype) == (torch.float32, torch.int64)
    scores, rows = neighbours(x.double().numpy(), k=2)
    assert (scores.dtype, rows.dtype) == (np.float64, np.int64)
    assert [type(v) for v in recall_at_k(x, [0, 0, 1, 1]).values()] == [float] * 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_gpu_agrees(metric):
    rng = torch.Generator().manual_seed(0)
    x, labels = torch.randn(3000, 128, generator=rng), torch.randint(0, 100, (3000,), generator=rng)
    assert (first_hit_rank(x.cuda(), labels, metric=metric) == first_hit_rank(x, labels, metric=metric)).all()
    scores, rows = neighbours(x.cuda(), k=10, metric=metric)
    assert rows.is_cuda and (rows.cpu() == neighbours(x, k=10, metric=metric)[1]).all()


def plain_scores(q, q_labels, g, g_labels, name, metric="dot", exclude=None, ties="row"):
    "A measure of every query from its definition, over lists in exact arithmetic."
    among, labels = (q, q_labels) if g is None else (g, g_labels)
    found = []
    for i, x in enumerate(q):
        hidden = {j for j in range(len(among)) if (g is None and j == i) or (exclude is not None and exclude[i] == exclude[j])}
        rows = [j for j in range(len(among)) if j not in hidden]
        same = [labels[j] == q_labels[i] for j in range(len(among))]
        after = {"row": lambda j: 0, "optimistic": lambda j: not same[j], "pessimistic": lambda j: same[j]}[ties]  # noqa: B023
        right = [same[j] for j in sorted(rows, key=lambda j: (-exact(x, among[j], metric), after(j), j))]  # noqa: B023
        relevant, first = sum(right), right.index(True) + 1 if any(right) else np.inf
        def precision(n): return sum(right[:n]) / n  # noqa: B023
        def precisions(n): return sum(precision(j) for j in range(1, min(n, len(right)) + 1) if right[j - 1])  # noqa: B023
        kind, k = (name.split("@")[0], int(name.split("@")[1].split("/")[0])) if name[-1] != "R" and "@" in name else (name, 0)
        if not relevant: found.append(0)
        elif name.endswith("/hits"): found.append(precisions(k) / max(1, sum(right[:k])))
        else:
            found.append({"R": lambda: first <= k, "P": lambda: precision(k), "mAP": lambda: precisions(k) / min(k, relevant),  # noqa: B023
                          "R-precision": lambda: precision(relevant), "MAP@R": lambda: precisions(relevant) / relevant,  # noqa: B023
                          "MRR": lambda: 1 / first}[kind]())  # noqa: B023
    return found


MEASURES = ["R@1", "R@3", "P@1", "P@4", "P@40", "mAP@3", "mAP@40", "mAP@3/hits", "mAP@40/hits", *OVER_ALL]


@settings(deadline=None, max_examples=60)
@given(problems(), metric_names, st.integers(1, 20), spares, st.sampled_from(list(TIES)))
def test_measures_are_their_definitions(problem, metric, chunk, spare, ties):
    with starting_rough(spare): found = score_queries(*problem, MEASURES, metric, ties=ties, chunk=chunk)
    for name in MEASURES:
        np.testing.assert_allclose(found[name], plain_scores(*problem, name, metric, ties=ties), atol=1e-12, err_msg=name)


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(1, 20), spares, st.data())
def test_who_is_excluded_is_not_there(problem, chunk, spare, data):
    q, q_labels, _, _ = problem
    exclude = data.draw(arrays(np.int64, len(q), elements=st.integers(0, 3)))
    with starting_rough(spare):
        found = score_queries(q, q_labels, measures=MEASURES, metric="dot", exclude=exclude, chunk=chunk)
    for name in MEASURES: np.testing.assert_allclose(found[name], plain_scores(q, q_labels, None, None, name, exclude=exclude))
    same = exclude[:, None] == exclude
    relevant = ((q_labels[:, None] == q_labels) & ~same).sum(1)
    assert (found["relevant"] == relevant).all()


def test_a_gallery_of_copies_starts_rough_and_ends_exact():
    "Each query has forty copies of its class and forty of another: too many to look at one by one, none of them provable."
    rng = np.random.default_rng(0)
    base = rng.normal(size=(120, 32)).astype(np.float32)
    gallery, labels = np.repeat(base, 80, axis=0), np.arange(9600) % 7
    q, q_labels = base[:20], np.full(20, 6)
    with starting_rough(None):
        assert next(iter(search.chunks(search.compared(q, gallery), 1))).error
        found = first_hit_rank(q, q_labels, gallery, labels)
        rows = neighbours(q, gallery, 20)[1]
    first = [next(j for j in range(80*i, 80*i + 80) if labels[j] == 6) - 80*i + 1 for i in range(20)]
    assert found.tolist() == first
    assert (rows == 80*np.arange(20)[:, None] + np.arange(20)).all()


def clouds(n_classes=60, per_class=12, d=24, spread=1.2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(n_classes), per_class))
    return (rng.normal(size=(n_classes, d))[labels] + spread*rng.normal(size=(len(labels), d))).astype(np.float32), labels


def test_rough_and_exact_starts_give_the_same():
    x, labels = clouds(300, 20, spread=2.)
    names = ["R@1", "R@100", "MAP@R", "MRR"]
    with starting_rough(8): quick = score_queries(x, labels, measures=names)
    torch.set_float32_matmul_precision("medium")
    try: slow = score_queries(x, labels, measures=names)
    finally: torch.set_float32_matmul_precision("highest")
    pd.testing.assert_frame_equal(quick, slow)


def test_as_pytorch_metric_learning_has_it():
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    x, labels = clouds()
    unit = torch.nn.functional.normalize(torch.from_numpy(x))
    calculator = AccuracyCalculator(("precision_at_1", "r_precision", "mean_average_precision_at_r"), k="max_bin_count")
    theirs = calculator.get_accuracy(unit, torch.from_numpy(labels))
    ours = score_queries(x, labels, measures=["R@1", "R-precision", "MAP@R"]).mean()
    for name, their in {"R@1": "precision_at_1", "R-precision": "r_precision", "MAP@R": "mean_average_precision_at_r"}.items():
        assert ours[name] == pytest.approx(theirs[their], abs=1e-6), name


def test_as_torchmetrics_has_it():
    "Its average precision takes a similarity of 0 or less for no answer at all, so all are lifted above 0."
    from torchmetrics import retrieval

    x, labels = clouds()
    pair = search.compared(x)
    s = 2 + search.exact_similarity(pair, torch.arange(len(x)))
    others = ~torch.eye(len(x), dtype=torch.bool)
    target = torch.from_numpy(labels[:, None] == labels)[others]
    which = torch.arange(len(x))[:, None].expand_as(others)[others]
    theirs = {"R@4": retrieval.RetrievalHitRate(top_k=4), "P@4": retrieval.RetrievalPrecision(top_k=4),
              "mAP@20/hits": retrieval.RetrievalMAP(top_k=20), "MRR": retrieval.RetrievalMRR(),
              "R-precision": retrieval.RetrievalRPrecision(), f"mAP@{len(x)}": retrieval.RetrievalMAP()}
    ours = score_queries(x, labels, measures=list(theirs)).mean()
    for name, their in theirs.items():
        assert ours[name] == pytest.approx(float(their(s[others].float(), target, indexes=which)), abs=1e-6), name


def test_cfga_toy_in_its_own_definition():
    angles = np.deg2rad([0, 10, 25, 40, 61, 75])
    x, labels = np.stack([np.cos(angles), np.sin(angles)], 1), [0, 0, 1, 0, 1, 1]
    found = score_queries(x, labels, measures=["mAP@5/hits", "mAP@2/hits", "R@1", "mAP@1/hits"])
    np.testing.assert_allclose(found["mAP@5/hits"], [.8333, .8333, .325, .3667, .8333, .8333], atol=5e-5)
    assert found.mean()[["mAP@5/hits", "mAP@2/hits"]].round(4).tolist() == [.6708, .6667]
    assert (found["mAP@1/hits"] == found["R@1"]).all()


SPEC = importlib.util.spec_from_file_location("intervals", Path(__file__).parents[1]/"benchmarks"/"intervals.py")
intervals = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(intervals)


@pytest.mark.parametrize("sizes", list(intervals.SIZES))
@pytest.mark.parametrize("classes", [2, 4, 5, 10, 50])
def test_intervals_cover(sizes, classes):
    "Of 95 % intervals 93 to 97 hold what is true, over them where wrong answers are few; or there are too few classes."
    equal = intervals.sizes(sizes, classes)
    printed = equal.sum()**2/(equal**2).sum() >= 5
    for recall, alike in ((.5, .2), (.7, .05), (.9, 0), (.95, .1), (.99, .2)):
        held = intervals.coverage(sizes, classes, recall, alike, 2000)
        assert np.isnan(held) != printed
        assert not printed or .93 - .01 <= held <= (.97 + .01 if recall <= .7 and sizes != "5 each" else 1)


@pytest.mark.parametrize("sizes", list(intervals.SIZES))
def test_no_difference_where_there_is_none(sizes):
    for classes, recall, alike, own in ((10, .5, 0, 0), (10, .7, .1, .2), (50, .5, .1, .05), (50, .99, .1, .2)):
        assert intervals.differences(sizes, classes, recall, alike, own, 0, 2000) <= .06 + .01


def test_a_difference_is_seen_the_easier_the_more_classes_there_are():
    seen = [intervals.differences("20 each", c, .7, .1, .05, .7, 1000, better=.1) for c in (5, 10, 50)]
    assert seen[0] < seen[1] < seen[2] and seen[2] > .95


def test_confidence_is_the_jackknife_in_plain_code():
    rng = np.random.default_rng(0)
    groups, values = rng.integers(0, 12, 300), rng.random(300)
    kinds, mean = np.unique(groups), values.mean()
    moves = np.array([mean - values[groups != c].mean() for c in kinds])
    error = 11/12*(moves**2).sum()
    t = stats.t.ppf(.975, min(11, 1/((moves**4).sum()/(moves**2).sum()**2 - 1/12)))
    ends = confidence(values, groups)
    for end in ends: assert abs(mean - end) == pytest.approx(t*np.sqrt(error*end*(1 - end)/(mean*(1 - mean))))
    assert confidence(values, groups.astype(str)) == ends
    plain = confidence(values, groups, against=np.zeros(300))
    assert plain == pytest.approx((mean - t*error**.5, mean + t*error**.5))
    assert confidence(values, groups, .5)[0] > ends[0]


def test_confidence_of_the_ends_and_of_few_classes():
    groups = np.arange(40) // 4
    low, high = confidence(np.ones(40), groups)
    assert .6 < low < .8 and high == pytest.approx(1) and confidence(np.zeros(40), groups)[0] == pytest.approx(0)
    assert confidence(np.ones(40), groups, against=np.ones(40)) == (0, 0)
    one_large = np.r_[np.zeros(991, int), np.arange(1, 10)]
    for few in (np.arange(40) // 10, np.zeros(40), one_large[-40:] * 0):
        assert np.isnan(confidence(np.arange(40) % 2, few)).all()
    assert np.isnan(confidence(np.arange(1000) % 2, one_large)).all()
    with pytest.raises(ValueError, match="expected 0 to 1"): confidence([.5, 75.2])
    narrow, wide = (confidence((np.arange(300) // 10) % 2, g) for g in (None, np.arange(300) // 10))
    assert wide[1] - wide[0] > 2*(narrow[1] - narrow[0])


LONG = [*MEASURES, "R@40", "P@40", "mAP@40", "mAP@40/hits"]


@settings(deadline=None, max_examples=60)
@given(problems(), st.data())
def test_cut_lists_say_so_or_are_the_whole(problem, data):
    "On lists of any length: a measure has its own name only where the whole ranking gives the same, else it is that of the cut."
    q, q_labels, g, g_labels = problem
    room = len(q) - 1 if g is None else len(g)
    if not room: return
    k = data.draw(st.integers(1, room))
    found = score_lists(neighbours(q, g, k, "dot")[1], q_labels, g_labels, LONG)
    whole = score_queries(q, q_labels, g, g_labels, LONG, "dot")
    assert set(found) == {*(list_name(name, k, whole["relevant"].max(), room) for name in LONG), "relevant"}
    for name in LONG:
        if name in found: np.testing.assert_allclose(found[name], whole[name], atol=1e-12, err_msg=name)
        else: assert f"{name} (first {k})" in found and k < room
    same = score_queries(q, q_labels, g, g_labels, [c for c in found if c != "relevant"], "dot")
    pd.testing.assert_frame_equal(found, same)
    if k == room: assert set(LONG) < set(found)


def test_perfect_lists_that_are_too_short_do_not_pass_for_bad_ones():
    labels = np.repeat(np.arange(3), 20)
    lists = np.array([[j for j in range(60) if labels[j] == c and j != i][:5] for i, c in enumerate(labels)])
    found = score_lists(lists, labels, measures=["R@1", "R@8", "P@5", "P@9", "mAP@5", "MAP@R", "R-precision", "MRR"])
    assert found.mean().round(3).to_dict() == {
        "R@1": 1, "R@8 (first 5)": 1, "P@5": 1, "P@9 (first 5)": .556, "mAP@5": 1, "MAP@R (first 5)": .263,
        "R-precision (first 5)": .263, "MRR (first 5)": 1, "relevant": 19}
    assert "MAP@R (first 3)" in score_lists(lists[:, :3], labels, measures=["MAP@R (first 4)"])


@pytest.mark.parametrize("noise", [1e-5, 1e-7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_near_copies_are_in_the_order_of_their_distances(noise, dtype):
    "The oracle subtracts in more than float64; galleries start rough and exact."
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(30, 16)), 15, 0)
    x = (x + noise*rng.normal(size=x.shape)).astype(dtype)
    long = x.astype(np.longdouble)
    away = np.sqrt(((long[:, None] - long)**2).sum(2))
    np.fill_diagonal(away, np.inf)
    order = np.argsort(away, 1, kind="stable")
    for k in (2, 20):
        for spare in (None, 8):
            with starting_rough(spare): distances, rows = neighbours(x, k=k, metric="euclidean")
            assert (np.diff(distances) >= 0).all()
            nearest = np.take_along_axis(away, order, 1)[:, :k]
            np.testing.assert_allclose(distances, nearest, rtol=1e-6)
            np.testing.assert_allclose(np.take_along_axis(away, rows, 1), nearest, rtol=1e-9)


def test_clusters():
    x, labels = clouds(spread=.1)
    found = cluster_agreement(x, [f"class {c}" for c in labels])
    assert found["NMI"] > .95 and found["AMI"] > .9
    assert cluster_agreement(x, labels) == pytest.approx(found)


@pytest.mark.parametrize("name", ["R@0", "R@", "recall", "mAP@R", "R@5/hits", "MAP@5", "", "AP@3"])
def test_unknown_measures(name):
    with pytest.raises(ValueError, match="expected one of R@K, P@K"): measure(name)


def test_all_measures_are_tested():
    kinds = {n.split("@")[0] + "@" + ("/hits" if n.endswith("/hits") else "") for n in MEASURES if n not in OVER_ALL}
    assert kinds == set(AT_K)


EYE = np.eye(3)


@pytest.mark.parametrize("call, words", [
    (lambda: recall_at_k(EYE[0], [0]), r"query must be a filled \(N, D\) matrix, got \(3,\)"),
    (lambda: recall_at_k(EYE[:0], []), "filled"),
    (lambda: recall_at_k(EYE, [0, 1, 2], EYE[:0], []), "gallery must be a filled"),
    (lambda: recall_at_k(np.array([["a"]]), [0]), "must be numbers"),
    (lambda: recall_at_k(EYE + 1j, [0, 1, 2]), "must be numbers"),
    (lambda: recall_at_k(torch.eye(3, dtype=torch.complex64), [0, 1, 2]), "must be real"),
    (lambda: recall_at_k(EYE * [1, np.nan, 1], [0, 1, 2]), "query row 0 holds NaN"),
    (lambda: recall_at_k(EYE, [0, 1, 2], np.full((3, 3), np.inf), [0, 1, 2]), "gallery row 0 holds NaN, infinity"),
    (lambda: recall_at_k((EYE * 1e30).astype(np.float32), [0, 1, 2], metric="dot"), "too large"),
    (lambda: recall_at_k(EYE * [1, 0, 1], [0, 1, 2]), "query row 1 is all zeros"),
    (lambda: recall_at_k(EYE, [0, 1]), "3 query rows need 3 labels"),
    (lambda: recall_at_k(EYE, [0, 1, 2], EYE, [0, 1]), "3 gallery rows need 3 labels"),
    (lambda: recall_at_k(EYE, [0, 1, 2], EYE), "both or neither"),
    (lambda: recall_at_k(EYE, [0, 1, 2], None, [0, 1, 2]), "both or neither"),
    (lambda: recall_at_k(EYE, [0., 1, 2]), "all integers or all strings"),
    (lambda: recall_at_k(EYE, np.array(["a", None, "b"], dtype=object)), "all integers or all strings"),
    (lambda: recall_at_k(EYE, [0, 1, 2], EYE, ["0", "1", "2"]), "differ in type"),
    (lambda: recall_at_k(EYE, [0, 1, 2], np.eye(4), [0, 1, 2, 3]), "query has 3 columns, gallery 4"),
    (lambda: recall_at_k(EYE, [0, 1, 2], ks=()), "ks must be"),
    (lambda: recall_at_k(EYE, [0, 1, 2], ks=(1, 0)), "ks must be"),
    (lambda: recall_at_k(EYE, [0, 1, 2], metric="l2"), "one of cosine, dot, euclidean"),
    (lambda: recall_at_k(EYE, [0, 1, 2], chunk=0), "chunk must be at least 1"),
    (lambda: neighbours(EYE, k=3), "k must be 1 to 2"),
    (lambda: neighbours(EYE, EYE, k=4), "k must be 1 to 3"),
    (lambda: neighbours(EYE, k=0), "k must be 1 to 2"),
    (lambda: neighbours(EYE, k=2, exclude=[0, 0, 1]), "query row 0 may find fewer than k=2"),
    (lambda: neighbours(EYE, EYE, k=1, exclude=[0, 0, 1]), "give two lists"),
    (lambda: neighbours(EYE, k=1, exclude=[0, 0]), "3 query rows need 3"),
    (lambda: score_queries(EYE, [0, 1, 2], measures=[]), "nothing to measure"),
    (lambda: score_queries(EYE, [0, 1, 2], ties="mine"), "row, optimistic, pessimistic"),
    (lambda: score_lists([[0], [0]], [1, 1]), "in its own list"),
    (lambda: score_lists([[0], [2]], [1, 1]), "expected rows 0 to 1 of the gallery"),
])
def test_one_clear_error(call, words):
    with pytest.raises(ValueError, match=words): call()


def search_before_and_after(where):
    x = torch.randn(6000, 64)
    before = neighbours(x[:50], x, k=3)
    attrgetter(where)(torch.backends).fp32_precision = "tf32"
    after = neighbours(x[:50], x, k=3)
    assert torch.equal(before[1], after[1])


@pytest.mark.processes
@pytest.mark.parametrize("where", ["cuda.matmul", "mkldnn.matmul"])
def test_precision_in_the_new_words_of_torch(where):
    "Wherever a user has allowed less than float32, the search is as exact as before."
    done = Fresh(search_before_and_after, where).end()
    assert done.returncode == 0, done.stderr
