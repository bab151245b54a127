"Losses: golden values of the seeds, a naive oracle, gradients at hard places, mixed precision, bad input."
import copy

import pytest
import torch
import torch.nn.functional as F
from fastai.torch_core import TensorBase, TensorCategory
from hypothesis import given, settings
from hypothesis import strategies as st

from fgir.losses import BatchHardTripletLoss, LabelSmoothingCE, hardest_pairs

def wave(rows, cols, a, b):
    i, j = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(cols, dtype=torch.float64)[None]
    return torch.sin(a * (i + 1) * (j + 1) + b * (i - j))


X = F.normalize(wave(8, 4, .7, .3))
Y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
LOGITS = 3 * wave(8, 5, 1.1, .2)


def triplet_oracle(x, y, margin):
    "The seed's rule, pair by pair: no positive counts as distance 0, no negative leaves the margin."
    total = 0.
    for i in range(len(x)):
        d = [(x[i] - x[j]).norm().item() for j in range(len(x))]
        pos = [d[j] for j in range(len(x)) if j != i and y[j] == y[i]]
        neg = [d[j] for j in range(len(x)) if y[j] != y[i]]
        gap = max(pos, default=0.) - min(neg) if neg else 0.
        total += max(0., gap + margin)
    return total / len(x)


def smoothing_oracle(z, y, s, temperature, spread):
    logp, c = (z / temperature).log_softmax(1), z.shape[1]
    t = torch.full_like(logp, s / c if spread == "all" else s / (c - 1))
    t[torch.arange(len(y)), y] = 1 - s + s / c if spread == "all" else 1 - s
    return -(t * logp).sum(1).mean()


@pytest.mark.parametrize("labels, value", [
    ([0, 0, 1, 1, 2, 2, 3, 3], 1.360406858569605),
    ([0, 0, 0, 1, 1, 2, 2, 3], 1.1509390831117474),
    ([0] * 8, .1),
])
def test_triplet_golden(labels, value):
    loss = BatchHardTripletLoss(.1)(X, torch.tensor(labels))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(value, abs=1e-14)


def test_golden_distances():
    golden = torch.tensor([0, 1.57241245, 1.31649236, 1.61105465, 1.37578827, 1.58898464, 1.36819524, 1.52720844])
    torch.testing.assert_close((X[0] - X).norm(dim=1).float(), golden)


@pytest.mark.parametrize("loss, value", [
    (LabelSmoothingCE(.1, .5), 4.286278755353275),
    (LabelSmoothingCE(0, 1), 2.5032463880608433),
    (LabelSmoothingCE(0, 1, "others"), 2.5032463880608433),
    (LabelSmoothingCE(.1, 1, "others"), 2.545611042731662),
])
def test_smoothing_golden(loss, value):
    assert loss(LOGITS, Y).item() == pytest.approx(value, abs=1e-13)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([0., .1, 1.]))
def test_triplet_is_the_naive_loop(n, classes, seed, margin):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (n, 3), generator=g).double()
    y = torch.randint(0, classes, (n,), generator=g) * 1000 - 7
    assert BatchHardTripletLoss(margin)(x, y).item() == pytest.approx(triplet_oracle(x, y, margin), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 10**6), st.sampled_from([0., .1, .45]),
       st.sampled_from([.05, .5, 2.]), st.sampled_from(["all", "others"]))
def test_smoothing_is_the_sum_over_targets(n, classes, seed, s, temperature, spread):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, classes, generator=g, dtype=torch.float64)
    y = torch.randint(0, classes, (n,), generator=g)
    expected = smoothing_oracle(z, y, s, temperature, spread).item()
    assert LabelSmoothingCE(s, temperature, spread)(z, y).item() == pytest.approx(expected, rel=1e-12)


def test_row_order_does_not_matter():
    p = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    loss = BatchHardTripletLoss()
    assert loss(X[p], Y[p]).item() == pytest.approx(loss(X, Y).item(), abs=1e-14)


def test_large_batch_has_exact_distances():
    "Above 25 rows a distance by matrix product would be off by 7e-4."
    x = F.normalize(torch.randn(128, 256, generator=torch.Generator().manual_seed(0)))
    x, y = torch.cat([x, x]), torch.arange(128).repeat(2)
    pos, _ = hardest_pairs(x, y)
    assert (x - x[pos]).norm(dim=1).max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1]])
def test_gradient_is_finite_where_all_embeddings_coincide(labels, dtype):
    x = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    loss = BatchHardTripletLoss(.1)(x, torch.tensor(labels))
    loss.backward()
    assert loss.item() == pytest.approx(.1)
    assert x.grad.isfinite().all()


def test_one_class_pulls_nowhere():
    x = X.clone().requires_grad_()
    BatchHardTripletLoss(.1)(x, torch.zeros(8, dtype=torch.long)).backward()
    assert x.grad.abs().max() < 1e-15


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, 2, 2, 3], [0] * 8, list(range(8))])
def test_triplet_gradcheck(labels):
    assert torch.autograd.gradcheck(BatchHardTripletLoss(.1), (X.clone().requires_grad_(), torch.tensor(labels)))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    for loss, x in ((BatchHardTripletLoss(), X), (LabelSmoothingCE(), LOGITS)):
        low = x.to(half).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16): value = loss(low, Y)
        assert value.dtype == torch.float32
        assert value.item() == loss(low.detach().float(), Y).item()
        value.backward()
        assert low.grad.dtype == half and low.grad.isfinite().all()


def test_large_half_logits_do_not_overflow():
    z = torch.tensor([[60000., -60000.]], dtype=torch.float16)
    assert LabelSmoothingCE(0, .5)(z, torch.tensor([1])).item() == pytest.approx(2 * 2 * 60000, rel=1e-3)


def test_fastai_tensors():
    for loss, x in ((BatchHardTripletLoss(), X), (LabelSmoothingCE(), LOGITS)):
        value = loss(x.as_subclass(TensorBase), TensorCategory(Y))
        assert type(value) is torch.Tensor
        assert value.item() == loss(x, Y).item()


def test_small_integer_labels():
    assert LabelSmoothingCE()(LOGITS, Y.to(torch.uint8)).item() == LabelSmoothingCE()(LOGITS, Y).item()


def test_modules_copy_and_own_no_parameters():
    for loss in (BatchHardTripletLoss(.3), LabelSmoothingCE(.2, .7, "others")):
        assert repr(copy.deepcopy(loss)) == repr(loss)
        assert not loss.state_dict()


@pytest.mark.parametrize("call, words", [
    (lambda: BatchHardTripletLoss()(X, Y[:7]), "need 8 labels"),
    (lambda: BatchHardTripletLoss()(X, Y[:, None]), "need 8 labels"),
    (lambda: BatchHardTripletLoss()(X[0], Y[:4]), r"\(B, D\) matrix"),
    (lambda: BatchHardTripletLoss()(X[:0], Y[:0]), "filled"),
    (lambda: BatchHardTripletLoss()(X, Y.float()), "integer class ids"),
    (lambda: BatchHardTripletLoss(-.1), "margin must be at least 0"),
    (lambda: BatchHardTripletLoss(float("nan")), "margin must be at least 0"),
    (lambda: LabelSmoothingCE()(LOGITS, Y + 2), "labels 0 to 4, got 2 to 5"),
    (lambda: LabelSmoothingCE()(LOGITS, Y - 1), "labels 0 to 4, got -1 to 2"),
    (lambda: LabelSmoothingCE()(LOGITS[:, :, None], Y), r"\(B, D\) matrix"),
    (lambda: LabelSmoothingCE(smoothing=1), r"\[0, 1\)"),
    (lambda: LabelSmoothingCE(smoothing=-.1), r"\[0, 1\)"),
    (lambda: LabelSmoothingCE(temperature=0), "above 0"),
    (lambda: LabelSmoothingCE(spread="none"), "'all' or 'others'"),
    (lambda: LabelSmoothingCE(.1, spread="others")(LOGITS[:, :1], Y * 0), "the true one of 1 classes last"),
])
def test_one_clear_error(call, words):
    with pytest.raises(ValueError, match=words): call()
