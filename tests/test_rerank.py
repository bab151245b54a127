"After the descriptor: projections, combinations, views, expansion and re-ranking against plain code."
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fgir.data.fish import synth_dataset
from fgir.features.exact import neighbours
from fgir.features.extraction import extract
from fgir.features.metrics import score_lists, score_queries
from fgir.features.store import Features
from fgir.gallery.rerank import (
    RERANK,
    Views,
    database_augmentation,
    diffusion,
    evaluate_rerank,
    expand,
    fit_pca,
    fit_whitening,
    k_reciprocal,
    query_expansion,
)

def clouds(n_classes=12, n=10, d=16, spread=.8, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_classes), n)
    x = rng.normal(size=(n_classes, d))[labels] + spread*rng.normal(size=(len(labels), d))
    return (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


X, LABELS = clouds()
TABLE = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(120)], label=LABELS, name=LABELS.astype(str), split='test'))


# projections

def test_pca_is_the_singular_value_decomposition():
    pca = fit_pca(X, 5)
    _, _, v = np.linalg.svd(X.astype(float) - X.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(pca.matrix*v[:5].T, 0)), 1, atol=1e-4)
    y = pca(X)
    assert y.shape == (120, 5) and y.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize('scale', [1, 1000])
def test_projections_do_not_mind_the_length_of_their_training_vectors(scale):
    np.testing.assert_allclose(fit_pca(X*scale, 4).mean, fit_pca(X, 4).mean, atol=1e-6)
    np.testing.assert_allclose(fit_whitening(X*scale, LABELS).matrix, fit_whitening(X, LABELS).matrix, rtol=1e-3, atol=1e-3)


def projections():
    return dict(pca=fit_pca(X, 5), whitened=fit_pca(X, 5, whiten=1), half=fit_pca(X, 5, whiten=.5),
                learned=fit_whitening(X, LABELS), short=fit_whitening(X, LABELS, 7))


@pytest.mark.parametrize('name', projections())
def test_a_projection_takes_vectors_as_those_that_it_was_fitted_on(name):
    "Plain numpy: unit rows, the mean of unit rows off, the matrix, unit rows; whatever lengths the vectors come with."
    projection, lengths = projections()[name], np.linspace(.1, 30, len(X))[:, None]
    long = (X*lengths).astype(np.float32)
    unit = long/np.linalg.norm(long.astype(float), axis=1, keepdims=True)
    y = (unit - unit.mean(0)) @ projection.matrix
    expected = y/np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(projection(long), expected, atol=2e-5)
    np.testing.assert_allclose(projection(long), projection(X), atol=2e-6)


@pytest.mark.parametrize('make, message', [
    (lambda: fit_pca(X, 64), 'dim: 64 components of 120 vectors of 16 numbers'),
    (lambda: fit_whitening(X[:5], range(5)), 'labels: no class has two images that differ'),
    (lambda: fit_pca(X, 5)(X[:, :9]), 'a projection of 16 numbers, found 9')])
def test_projections_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_components_stand_apart_and_whitened_ones_are_as_long_as_each_other():
    for whiten in (0, 1):
        pca = fit_pca(X, 8, whiten=whiten)
        spread = np.cov(((X - pca.mean) @ pca.matrix).T)
        expected = np.diag(spread.diagonal()) if not whiten else np.eye(8)*spread[0, 0]
        np.testing.assert_allclose(spread/spread[0, 0], expected/spread[0, 0], atol=1e-4)
        if not whiten: assert (np.diff(spread.diagonal()) < 0).all()


def test_learned_whitening_makes_classes_round():
    "Without shrinking, images about their class's mean have the same spread in all directions."
    x, labels = clouds(n=40)
    white = fit_whitening(x, labels, shrink=0)
    y = pd.DataFrame((x - white.mean) @ white.matrix)
    inside = y - y.groupby(labels).transform('mean')
    np.testing.assert_allclose(inside.T @ inside/len(x), np.eye(16), atol=1e-3)
    between = np.cov(y.T)
    np.testing.assert_allclose(between - np.diag(between.diagonal()), 0, atol=1e-3)
    assert (np.diff(between.diagonal()) <= 1e-6).all()


def test_learned_whitening_helps_where_some_directions_mislead():
    x, labels = clouds(spread=.5)
    x[:, :6] += np.random.default_rng(1).normal(size=(120, 6))
    train, seen = slice(0, 60), slice(60, 120)
    white = fit_whitening(x[train], labels[train])
    before, after = (score_queries(v, labels[seen], measures=['R@1'])['R@1'].mean() for v in (x[seen], white(x[seen])))
    assert after > before + .15


# features

def test_projected_and_combined_features_are_saved_with_their_origin(tmp_path):
    features = Features({'a': X, 'b': X[:, ::-1].copy()}, TABLE, dict(model='m'))
    features = features.project('a', fit_pca(X, 4), 'a4', 'pca 4').combine({'a4': 2, 'b': 1}, 'both')
    again = Features.load(features.save(tmp_path/'f.safetensors'))
    assert again.names == ['a', 'b', 'a4', 'both'] and again['both'].shape == (120, 20)
    assert again.record['made'] == {'a4': 'pca 4 of a', 'both': '2 a4 + 1 b'}
    np.testing.assert_allclose(np.linalg.norm(again['both'], axis=1), 1, atol=1e-5)


def test_a_combined_cosine_is_the_weighted_mean():
    f = Features({'a': X, 'b': X[:, ::-1]*3}, TABLE).combine({'a': 3, 'b': 1})
    np.testing.assert_allclose(f['combined'] @ f['combined'][0], .75*(X @ X[0]) + .25*(X[:, ::-1] @ X[0, ::-1]), atol=1e-5)


@pytest.mark.parametrize('weights', [{}, {'a': 0}, {'a': 1, 'b': -1}])
def test_weights_are_above_zero(weights):
    with pytest.raises(ValueError, match='above 0'): Features({'a': X, 'b': X}, TABLE).combine(weights)


# views

class Corner(nn.Module):
    mean, std = (.5, .5, .5), (.25, .25, .25)

    def forward(self, x): return {'corner': x[:, :, :4, :4].flatten(1), 'all': x.mean((2, 3))}


def test_views_are_extracted_like_any_descriptor(tmp_path):
    table = synth_dataset(tmp_path/'set', n_classes=4, n_per_class=2, size=48, progress=False)
    views = Views(Corner(), scales=(1, .5))
    f = extract(views, table, size=32, num_workers=0, progress=False)
    assert f.names == ['corner', 'all'] and f.record['mean'] == [.5]*3 and f.record['config']['scales'] == [1, .5]
    x = torch.randn(2, 3, 16, 16)
    small = nn.functional.interpolate(x, scale_factor=.5, mode='bilinear', antialias=True)
    parts = [nn.functional.normalize(Corner()(v)['corner']) for v in (x, x.flip(3), small, small.flip(3))]
    torch.testing.assert_close(views(x)['corner'], nn.functional.normalize(sum(parts)))
    mirrored = views(x.flip(3))
    for name in views(x): torch.testing.assert_close(mirrored[name], views(x)[name])
    assert Views(nn.Flatten(), flip=False)(x)['embedding'].shape == (2, 768)
    with pytest.raises(ValueError, match='above 0'): Views(Corner(), scales=(0,))


# lists

def unit(x): return x/np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize('own', [True, False])
def test_expansion_is_its_formula(own):
    q, g = X[::3].astype(float), (X if own else X[1::3]).astype(float)
    if own: q = g
    found = expand(q, None if own else g, k=4, alpha=2)
    for i in range(len(q)):
        s = g @ q[i]
        if own: s[i] = -9
        near = np.argsort(-s)[:4]
        np.testing.assert_allclose(found[i], unit(q[i] + (s[near].clip(0)**2) @ g[near]), atol=1e-5)


def plain_k_reciprocal(x, k, smooth, share, n):
    "Scores (N, N) of Zhong et al. with Python's sets; minus infinity beyond the first n."
    s = x @ x.T
    order = [[i, *[j for j in np.argsort(-row, kind='stable') if j != i]] for i, row in enumerate(s)]
    def mutual(p, k): return {g for g in order[p][:k + 1] if p in order[g][:k + 1]}
    v = np.zeros_like(s)
    for p in range(len(x)):
        members = mutual(p, k)
        for g in list(members):
            friends = mutual(g, round(k/2))
            if len(friends & mutual(p, k)) >= 2/3*len(friends): members = members | friends
        for g in members: v[p, g] = np.exp(s[p, g] - 1)
        v[p] /= v[p].sum()
    v = np.stack([v[o[:smooth + 1]].mean(0) for o in order])
    final = np.full_like(s, -np.inf)
    for p in range(len(x)):
        for g in order[p][1:n + 1]:
            shared = np.minimum(v[p], v[g]).sum()/np.maximum(v[p], v[g]).sum()
            final[p, g] = (1 - share)*shared + share*s[p, g]
    return final


@pytest.mark.parametrize('k, smooth, share', [(8, 3, .3), (5, 1, 0), (12, 6, .5)])
def test_k_reciprocal_is_the_papers(k, smooth, share):
    scores, rows = k_reciprocal(X, n=30, k=k, smooth=smooth, share=share)
    assert (np.diff(scores) <= 1e-6).all()
    plain = plain_k_reciprocal(X.astype(float), k, smooth, share, 30)
    np.testing.assert_allclose(scores, np.take_along_axis(plain, rows, 1), atol=1e-5)
    np.testing.assert_allclose(scores, -np.sort(-plain, axis=1)[:, :30], atol=1e-5)


def test_diffusion_settles_where_the_formula_does():
    scores, rows = diffusion(X, n=119, k=10, alpha=.8, rounds=200)
    s = X @ X.T - 9*np.eye(120)
    near = s >= np.sort(s)[:, -10][:, None]
    a = np.where(near & near.T, s.clip(0)**3, 0)
    d = 1/np.sqrt(a.sum(1).clip(1e-12))
    f = .2*np.linalg.solve(np.eye(120) - .8*d[:, None]*a*d, np.where(near, s.clip(0)**3, 0).T).T
    np.testing.assert_allclose(scores, np.take_along_axis(f, rows, 1), atol=1e-4)


@pytest.mark.parametrize('method', list(RERANK))
def test_lists_are_lists(method):
    "Nobody finds itself, nobody is there twice, and with a gallery rows are the gallery's."
    for query, gallery, n in ((X, None, 50), (X[::4], X[1::4], 20)):
        scores, rows = RERANK[method](query, gallery, n=n)
        assert scores.shape == rows.shape == (len(query), n) and (np.diff(scores) <= 1e-6).all()
        assert all(len(set(r)) == n for r in rows.tolist()) and rows.max() < len(X if gallery is None else gallery)
        if gallery is None: assert not (rows == np.arange(len(X))[:, None]).any()
    kept = score_lists(RERANK[method](X, n=119)[1], LABELS, measures=['MAP@R'])['MAP@R'].mean()
    assert kept > score_queries(X, LABELS, measures=['MAP@R'])['MAP@R'].mean() - .02


def test_evaluation_of_methods_follows_the_table():
    table = TABLE.assign(split=np.where(np.arange(120) % 2, 'query', 'gallery'))
    f = Features({'a': X}, table)
    found = evaluate_rerank(f, 'a', ['none', 'aqe'], ['R@1', 'P@3'], aqe=dict(k=2))
    plain = score_queries(X[1::2], LABELS[1::2], X[::2], LABELS[::2], ['R@1', 'P@3']).mean()
    assert found.loc['none', ['R@1', 'P@3']].tolist() == pytest.approx(plain[['R@1', 'P@3']].tolist())
    lists = query_expansion(X[1::2], X[::2], n=60, k=2)[1]
    assert found.loc['aqe', 'R@1'] == score_lists(lists, LABELS[1::2], LABELS[::2], ['R@1'])['R@1'].mean()
    with pytest.raises(ValueError, match='none, aqe'): evaluate_rerank(f, 'a', ['mine'])


def test_lists_are_as_long_as_the_measures_look_or_say_where_they_end():
    "Three classes of 150, perfectly apart: no method may lose anything by the length of its lists."
    labels = np.arange(450) % 3
    table = pd.DataFrame(dict(path=labels.astype(str), label=labels, name=labels.astype(str), split='test'))
    f = Features({'a': np.eye(3)[labels] + .05*np.random.default_rng(0).normal(size=(450, 3))}, table)
    found = evaluate_rerank(f, 'a', measures=['R@1', 'MAP@R'])
    assert (found[['R@1', 'MAP@R']] > .999).all().all()
    cut = evaluate_rerank(f, 'a', ['none'], ['MAP@R'], n=100)
    assert cut.columns.tolist() == ['MAP@R (first 100)', 'ms a query'] and cut.iloc[0, 0] == pytest.approx(100/149)


def test_augmented_galleries_are_searched_by_plain_queries():
    lists = database_augmentation(X[::2], X[1::2], n=5, k=3)
    again = neighbours(X[::2], expand(X[1::2], None, 3), 5)
    assert (lists[1] == again[1]).all()
