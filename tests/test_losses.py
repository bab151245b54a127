"Losses: golden values of the programs, a naive oracle, gradients at hard places, mixed precision, bad input."
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from fastai.torch_core import TensorBase, TensorCategory
from hypothesis import given, settings, strategies as st
from pytorch_metric_learning import losses as pml, miners

from fgir.losses.classes import ArcFaceLoss, CosFaceLoss, DGPCRLoss, LabelSmoothingCE, _arc_margin
from fgir.losses.pairs import (
    BatchHardTripletLoss,
    MultiSimilarityLoss,
    hardest_pairs,
    log1p_sum_exp,
    multi_similarity_pairs,
)
from fgir.losses.positive import MovingProxyLoss, PositiveProxyLoss
from fgir.losses.proxies import NormSoftmaxLoss, ProxyAnchorLoss, ProxyLoss, ProxyNCALoss, init_proxies

def wave(rows, cols, a, b):
    i, j = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(cols, dtype=torch.float64)[None]
    return torch.sin(a * (i + 1) * (j + 1) + b * (i - j))


X = F.normalize(wave(8, 4, .7, .3))
Y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
LOGITS = 3 * wave(8, 5, 1.1, .2)


def triplet_oracle(x, y, margin):
    "CGD's rule, pair by pair: no positive counts as distance 0, no negative leaves the margin."
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


W = wave(5, 4, .9, -.5)
ORDINARY = [NormSoftmaxLoss, ProxyNCALoss, ProxyAnchorLoss, ArcFaceLoss, CosFaceLoss, DGPCRLoss, MovingProxyLoss]
PROXY = [*ORDINARY, PositiveProxyLoss]


def with_proxies(loss, w=W):
    with torch.no_grad(): loss.double().proxies.copy_(w)
    return loss


def batch(seed, n, classes, dim):
    g = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(n, dim, generator=g, dtype=torch.float64))
    w = torch.randn(classes, dim, generator=g, dtype=torch.float64)
    return x, torch.randint(0, classes, (n,), generator=g), w


def gradients(loss, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x, y), [x, loss.proxies])


@pytest.mark.parametrize("loss, value, at_x, at_w", [
    (ProxyAnchorLoss(5, 4), 45.50998930829459, 21.533924780858765, 8.93508765257251),
    (NormSoftmaxLoss(5, 4), 15.856997481463452, 11.715653054914696, 6.104263065145923),
    (PositiveProxyLoss(5, 4, variant="P1"), 15.630374951634835, 13.602898511276637, 5.668107881248245),
    (PositiveProxyLoss(5, 4), 45.50998930829459, 21.533924780858765, 3.1717809872453326),
    (PositiveProxyLoss(5, 4, "norm_softmax"), 15.856997481463452, 11.715653054914696, 14.204372522353134),
    (PositiveProxyLoss(5, 4, variant="P3"), 45.50998930829459, 14.27506580722313, 8.93508765257251),
    (PositiveProxyLoss(5, 4, "norm_softmax", "P3"), 15.856997481463452, 71.45054600098089, 6.104263065145923),
])
def test_proxy_golden(loss, value, at_x, at_w):
    loss = with_proxies(loss)
    dx, dw = gradients(loss, X, Y)
    assert [loss(X, Y).item(), dx.norm().item(), dw.norm().item()] == pytest.approx([value, at_x, at_w], abs=1e-12)


def test_golden_cosines():
    golden = torch.tensor([-.08801615, .28812239, -.05013364, .23732995, .08899863])
    torch.testing.assert_close(with_proxies(ProxyLoss(5, 4)).cosines(X)[0].float(), golden)


def ms_oracle(x, y, alpha, beta, base, eps):
    total, s = 0., (x @ x.T).tolist()
    for i in range(len(x)):
        pos = [s[i][j] for j in range(len(x)) if y[j] == y[i] and j != i and s[i][j] < 1 - 1e-5]
        neg = [s[i][j] for j in range(len(x)) if y[j] != y[i]]
        kept_n = [a for a in neg if pos and a + eps > min(pos)]
        kept_p = [a for a in pos if neg and a - eps < max(neg)]
        if not kept_n or not kept_p: continue
        total += math.log(1 + sum(math.exp(-alpha * (a - base)) for a in kept_p)) / alpha
        total += math.log(1 + sum(math.exp(beta * (a - base)) for a in kept_n)) / beta
    return total / len(x)


def own_logit(c, name):
    if name == "cos": return c - .5
    return math.cos(math.acos(c) + .5) if c > math.cos(math.pi - .5) else c - .5 * math.sin(math.pi - .5)


def softmax_oracle(rows, y):
    return sum(math.log(sum(math.exp(a) for a in r)) - r[t] for r, t in zip(rows, y, strict=True)) / len(y)


def proxy_oracle(kind, x, y, w):
    s, n = (x @ (w / w.norm(dim=1, keepdim=True)).T).tolist(), len(w)
    y = y.tolist()
    if kind is NormSoftmaxLoss: return softmax_oracle([[32 * a for a in r] for r in s], y)
    if kind is MovingProxyLoss: return softmax_oracle([[a / .03 for a in r] for r in s], y)
    if kind in (CosFaceLoss, ArcFaceLoss):
        name = "cos" if kind is CosFaceLoss else "arc"
        rows = [[50 * (own_logit(a, name) if c == t else a) for c, a in enumerate(r)] for r, t in zip(s, y, strict=True)]
        return softmax_oracle(rows, y)
    if kind is ProxyNCALoss:
        return sum(-math.log(math.exp(r[t]) / sum(math.exp(a) for c, a in enumerate(r) if c != t))
                   for r, t in zip(s, y, strict=True)) / len(y)
    if kind is ProxyAnchorLoss:
        pos = [[math.exp(-32 * (s[i][c] - .1)) for i in range(len(y)) if y[i] == c] for c in range(n)]
        neg = [[math.exp(32 * (s[i][c] + .1)) for i in range(len(y)) if y[i] != c] for c in range(n)]
        return sum(math.log(1 + sum(p)) for p in pos) / len(set(y)) + sum(math.log(1 + sum(q)) for q in neg) / n
    p = (100 * x @ w.T).softmax(1)
    p = p[torch.arange(len(y)), y]
    off = ((w @ w.T - torch.eye(n))**2).sum() / n**2
    return (torch.where(p < .7, -1, 1) * (100 * x @ w.T).log_softmax(1)[torch.arange(len(y)), y]).mean() + .1 * off


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6), st.booleans())
def test_multi_similarity_is_the_naive_loop(n, classes, seed, copies):
    x, y, _ = batch(seed, n, classes, 3)
    if copies: x[-1] = x[0]
    value = MultiSimilarityLoss()(x, y * 1000 - 7).item()
    assert value == pytest.approx(ms_oracle(x, y, 2, 40, .5, .1), abs=1e-12)


@pytest.mark.parametrize("kind", ORDINARY)
@settings(deadline=None, max_examples=40)
@given(st.integers(1, 10), st.integers(2, 6), st.integers(0, 10**6))
def test_proxy_loss_is_the_naive_formula(kind, n, classes, seed):
    x, y, w = batch(seed, n, classes, 3)
    assert with_proxies(kind(classes, 3), w)(x, y).item() == pytest.approx(float(proxy_oracle(kind, x, y, w)), rel=1e-10)


@pytest.mark.parametrize("make, theirs", [
    (lambda c: NormSoftmaxLoss(c, 3, scale=20), lambda c: pml.NormalizedSoftmaxLoss(c, 3)),
    (lambda c: NormSoftmaxLoss(c, 3, scale=2), lambda c: pml.ProxyNCALoss(c, 3)),
    (lambda c: ProxyAnchorLoss(c, 3), lambda c: pml.ProxyAnchorLoss(c, 3)),
    (lambda c: CosFaceLoss(c, 3, 64, .35), lambda c: pml.CosFaceLoss(c, 3)),
    (lambda c: ArcFaceLoss(c, 3, 64, math.radians(28.6)), lambda c: pml.ArcFaceLoss(c, 3)),
])
@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 10), classes=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_proxy_loss_is_that_of_pytorch_metric_learning(make, theirs, n, classes, seed):
    x, y, w = batch(seed, n, classes, 3)
    other = theirs(classes)
    if hasattr(other, "W"): other.W.data = w.T.clone()
    else: other.proxies.data = w.clone()
    assert with_proxies(make(classes), w)(x, y).item() == pytest.approx(other(x, y).item(), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_multi_similarity_is_that_of_pytorch_metric_learning(seed):
    x, y, _ = batch(seed, 12, 4, 3)
    expected = pml.MultiSimilarityLoss(2, 40, .5)(x, y, miners.MultiSimilarityMiner(.1)(x, y)).item()
    assert MultiSimilarityLoss()(x, y).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ORDINARY)
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 3, 3], [1] * 8, [4, 0, 2, 0, 2, 2, 4, 4], [0, 1, 2, 3, 4, 4, 4, 4]])
def test_proxy_gradcheck(kind, labels):
    "Soft versions, whose finite differences are exact enough."
    small = {"alpha": 2} if kind is ProxyAnchorLoss else {"temperature": .5} if kind is MovingProxyLoss else {"scale": 2}
    loss, y = with_proxies(kind(5, 4, **small)).eval(), torch.tensor(labels)
    def value(x, w): return torch.func.functional_call(loss, {"proxies": w}, (x, y))
    assert torch.autograd.gradcheck(value, (X.clone().requires_grad_(), W.clone().requires_grad_()))


def test_multi_similarity_gradcheck():
    assert torch.autograd.gradcheck(MultiSimilarityLoss(), (X.clone().requires_grad_(), Y))


@pytest.mark.parametrize("base", ["proxy_anchor", "norm_softmax"])
@settings(deadline=None, max_examples=20)
@given(st.integers(1, 10), st.integers(0, 10**6))
def test_replaced_gradients(base, n, seed):
    x, y, w = batch(seed, n, 4, 3)
    plain = with_proxies((ProxyAnchorLoss if base == "proxy_anchor" else NormSoftmaxLoss)(4, 3), w)
    dx, dw = gradients(plain, x, y)
    p = F.normalize(w)
    s, weight = x @ p.T, []
    for i in range(n):
        c = int(y[i])
        if base == "norm_softmax": weight.append(32 * (math.exp(32 * s[i, c]) / (32 * s[i]).exp().sum() - 1))
        else:
            e = (-32 * (s[:, c] - .1)).exp()
            weight.append(-32 * e[i] / (1 + e[y == c].sum()) / len(set(y.tolist())))
    at_p = torch.zeros_like(p)
    for i in range(n): at_p[y[i]] += weight[i] * x[i] / (y == y[i]).sum()
    raw = w.clone().requires_grad_()
    F.normalize(raw).backward(at_p)
    got = gradients(with_proxies(PositiveProxyLoss(4, 3, base), w), x, y)
    torch.testing.assert_close(got, (dx, raw.grad), rtol=1e-9, atol=1e-11)
    at_x = torch.stack([weight[i] * p[y[i]] for i in range(n)])
    got = gradients(with_proxies(PositiveProxyLoss(4, 3, base, "P3"), w), x, y)
    torch.testing.assert_close(got, (at_x, dw), rtol=1e-9, atol=1e-11)


def test_multi_similarity_without_pairs_has_a_zero_gradient():
    for y in (torch.zeros(8, dtype=torch.long), torch.arange(8)):
        x = X.clone().requires_grad_()
        loss = MultiSimilarityLoss()(x, y)
        loss.backward()
        assert loss.item() == 0 and x.grad.abs().max() == 0


@pytest.mark.parametrize("kind", PROXY)
def test_autocast_types_and_copies(kind):
    torch.manual_seed(0)
    loss, x = kind(7, 64).eval(), F.normalize(torch.randn(8, 64))
    for half in (torch.float16, torch.bfloat16, torch.float32):
        low = x.to(half).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16): value, named = loss(low, Y), loss(embeddings=low, labels=Y)
        assert value.item() == named.item() == loss(low.detach().float(), Y).item()
        assert value.dtype == torch.float32 and math.isfinite(value.item())
        value.backward()
        assert low.grad.dtype == half and low.grad.isfinite().all()
    assert type(loss(x.as_subclass(TensorBase), TensorCategory(Y))) is torch.Tensor
    twin = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    assert twin(x, Y).item() == loss(x, Y).item() and repr(eval(repr(loss))) == repr(loss)
    other = kind(7, 64).eval()
    assert other(x, Y).item() != loss(x, Y).item()
    other.load_state_dict(loss.state_dict())
    assert other(x, Y).item() == loss(x, Y).item()
    assert [*loss.state_dict()] == ["proxies"] and [*dict(loss.named_parameters())] == (
        [] if kind is MovingProxyLoss else ["proxies"])


def test_multi_similarity_in_half_precision():
    low = X.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16): value = MultiSimilarityLoss()(low, Y)
    assert value.dtype == torch.float32 and value.item() == MultiSimilarityLoss()(low.float(), Y).item()


@pytest.mark.parametrize("kind", PROXY)
def test_predict(kind):
    loss = with_proxies(kind(5, 4))
    assert (loss.predict(F.normalize(W)) == torch.arange(5)).all() or kind is DGPCRLoss
    expected = X @ W.T if kind is DGPCRLoss else X @ F.normalize(W).T
    assert (loss.predict(X) == expected.argmax(1)).all() and not loss.predict(X).requires_grad


def test_extremes_do_not_overflow():
    for dtype in (torch.float32, torch.float64):
        for loss in (ProxyAnchorLoss(5, 4, alpha=1000), DGPCRLoss(5, 4, scale=1e5), PositiveProxyLoss(5, 4, alpha=1000)):
            loss = loss.to(dtype)
            got = gradients(loss, X.to(dtype), Y)
            assert all(g.isfinite().all() for g in got) and loss(X.to(dtype), Y).isfinite()


def test_arcface_on_the_proxy_has_a_finite_gradient():
    loss = with_proxies(ArcFaceLoss(4, 4), torch.eye(4))
    assert all(g.isfinite().all() for g in gradients(loss, torch.eye(4, dtype=torch.float64), torch.arange(4)))


def test_moving_proxies():
    loss = with_proxies(MovingProxyLoss(5, 4, momentum=.3))
    expected = W.clone()
    for c in range(4): expected[c] = .7 * W[c] / W[c].norm() + .3 * sum(X[i] for i in range(8) if Y[i] == c)
    x = X.clone().requires_grad_()
    value = loss(x, Y)
    torch.testing.assert_close(loss.proxies, expected, rtol=0, atol=1e-14)
    value.backward()
    assert not loss.proxies.requires_grad
    before = with_proxies(MovingProxyLoss(5, 4)).eval()
    x2 = X.clone().requires_grad_()
    before(x2, Y).backward()
    assert torch.equal(x.grad, x2.grad) and torch.equal(before.proxies, W)
    with torch.no_grad(): before.train()(X, Y)
    assert torch.equal(before.proxies, W)


def test_initial_proxies():
    torch.manual_seed(0)
    unit, kaiming, xavier, linear = (init_proxies(200, 300, i) for i in ("unit", "kaiming", "xavier", "linear"))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(200))
    assert kaiming.std().item() == pytest.approx(.1, rel=.02)
    assert xavier.abs().max().item() == pytest.approx(math.sqrt(6 / 500), rel=.01)
    assert linear.abs().max().item() == pytest.approx(1 / math.sqrt(300), rel=.01)


@pytest.mark.parametrize("call, words", [
    *[(lambda k=k: k(98, 4)(X, Y + 95), "labels must be 0 to 97, got 98") for k in PROXY],
    *[(lambda k=k: k(98, 4)(X, Y - 1), "labels must be 0 to 97, got -1") for k in PROXY],
    *[(lambda k=k: k(98, 512)(X, Y), "embeddings have 4 numbers, proxies 512") for k in PROXY],
    *[(lambda k=k: k(0, 4), "n_classes must be at least 1, got 0") for k in PROXY],
    *[(lambda k=k: k(4, 0), "dim must be at least 1, got 0") for k in PROXY],
    *[(lambda k=k: k(4, 4, init="x"), "init must be one of") for k in PROXY],
    (lambda: ProxyNCALoss(1, 4), "at least 2 classes"),
    (lambda: PositiveProxyLoss(4, 4, "nca"), "base must be"),
    (lambda: PositiveProxyLoss(4, 4, variant="P4"), "variant must be"),
    (lambda: ArcFaceLoss(4, 4, margin=28.6), "in radians"),
    (lambda: CosFaceLoss(4, 4, margin=-1), "margin must be at least 0"),
    (lambda: MovingProxyLoss(4, 4, momentum=2), "momentum must be 0 to 1"),
    (lambda: DGPCRLoss(4, 4, decorrelation=-1), "decorrelation must be at least 0"),
    (lambda: MultiSimilarityLoss(beta=0), "beta must be above 0"),
    (lambda: NormSoftmaxLoss(4, 4, scale=0), "scale must be above 0"),
])
def test_one_clear_error_for_proxies(call, words):
    with pytest.raises(ValueError, match=words): call()


@pytest.mark.parametrize("p", [.1, .69, .71, .8, .99])
def test_dgpcr_turns_around_at_the_threshold(p):
    loss = with_proxies(DGPCRLoss(2, 2, scale=math.log(p / (1 - p)), decorrelation=0) if p > .5 else
                        DGPCRLoss(2, 2, scale=math.log((1 - p) / p), decorrelation=0), torch.eye(2))
    x, y = torch.tensor([[1., 0.]], dtype=torch.float64), torch.tensor([int(p < .5)])
    assert loss(x, y).item() == pytest.approx(math.log(p) * (-1 if p < .7 else 1), abs=1e-12)


def test_multi_similarity_leaves_out_copies_and_the_row_itself():
    x = torch.tensor([[1., 0], [1, 0], [.95, math.sqrt(1 - .95**2)]], dtype=torch.float64)
    assert MultiSimilarityLoss()(x, torch.tensor([0, 0, 1])).item() == 0
    assert MultiSimilarityLoss()(.9 * x[1:], torch.tensor([0, 1])).item() == 0


def test_predictions_of_a_classifier_and_of_proxies():
    assert LabelSmoothingCE().predict(LOGITS).tolist() == [row.index(max(row)) for row in LOGITS.tolist()]


POINTS = torch.tensor([[.2, .3], [.9, .7], [.4, 1.1], [1.5, .2], [1.2, 1.2], [2.1, 1.0], [1.9, .4], [2.3, 1.5]])


@pytest.mark.parametrize("labels, pos, neg", [
    ([0, 0, 0, 0, 1, 1, 1, 1], [3, 0, 3, 2, 7, 4, 7, 6], [4, 4, 4, 6, 1, 3, 3, 3]),
    ([905, -3, 905, 40], [2, 1, 0, 3], [1, 2, 1, 1]),
    ([0, 0, 0, 0], [3, 0, 3, 2], [3, 0, 3, 2]),
])
def test_hardest_pairs(labels, pos, neg):
    found = hardest_pairs(POINTS[:len(labels)], torch.tensor(labels))
    assert [rows.tolist() for rows in found] == [pos, neg]


def test_mined_pairs():
    s = torch.eye(6)
    s[0, 1:] = torch.tensor([.4, .9, .6, .35, .1])
    pos, neg = multi_similarity_pairs(s, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert pos[0].nonzero().flatten().tolist() == [1] and neg[0].nonzero().flatten().tolist() == [3, 4]


def test_log1p_sum_exp_of_large_numbers():
    a, keep = torch.tensor([[.5, 1000.], [2., 3.]]), torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(log1p_sum_exp(a, keep, 1), torch.tensor([1000, math.log(1 + math.exp(2))]))


def test_arc_margin_falls_from_0_to_180_degrees():
    theta = torch.linspace(0, math.pi, 181, dtype=torch.float64)
    arc = _arc_margin(theta.cos(), .5)
    assert (arc.diff() < 0).all()
    torch.testing.assert_close(arc[:150], (theta[:150] + .5).cos(), rtol=0, atol=1e-12)


def test_smoothed_loss_is_lowest_where_the_softmax_is_the_target():
    loss, lead = LabelSmoothingCE(.1, .5), torch.linspace(-2, 6, 801)
    values = torch.stack([loss(F.pad(n[None, None], (0, 4)), torch.tensor([0])) for n in lead])
    assert lead[values.argmin()].item() == pytest.approx(.5 * math.log(.92 / .02), abs=.01)
