"Evaluation: numbers that equal the metrics, and a page that is safe, whole and alone."
import base64
import json
import re
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fgir.backbones.nets import Pooled, RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import load_model, save_model
from fgir.data.fish import synth_dataset
from fgir.data.table import image_path
from fgir.evaluation.comparison import (
    best_and_worst,
    caveats,
    class_recall,
    compare,
    content_key,
    describe_all,
    evaluate,
    is_measure,
    judge,
)
from fgir.evaluation.published import as_published, differs_in
from fgir.evaluation.reports import page, report, split_protocol, table_html, training_charts
from fgir.features.descriptors import ColorHistogram
from fgir.features.extraction import extract
from fgir.features.intervals import confidence
from fgir.features.metrics import first_hit_rank, recall_at_k, score_queries
from fgir.features.store import Features
from fgir.features.unfinished import photographs_of
from fgir.gallery.rerank import Views, fit_pca
from fgir.training.runs import describe_test, learner_from_recipe

VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}
NASTY = '<script>alert("1")</script> & $x_1$ ’'


class Page(HTMLParser):
    "Tags, attributes, ids and text of a page; fails on a tag that is closed out of turn."
    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attrs, self.text = [], Counter(), [], ''
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attrs += [(tag, *a) for a in attrs]
        if tag not in VOID: self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attrs += [(tag, *a) for a in attrs]

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data): self.text += data

    def values(self, name): return [value for _, attr, value in self.attrs if attr == name]


@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp('fish')/'fish', n_classes=6, n_per_class=6, size=48, progress=False)


@pytest.fixture(scope='module')
def features(fish):
    rng = np.random.default_rng(0)
    near = np.eye(6)[fish['label']] + .4*rng.normal(size=(36, 6))
    far = {'v': rng.normal(size=(36, 6)), 'w': rng.normal(size=(36, 9))}
    return {'good': Features({'v': near}, fish, {'model': 'a', 'size': 48, 'crop': False}),
            'bad': Features(far, fish, {'model': 'b', 'note': 'x'})}


def shop(features):
    table = features.table.assign(split=np.where(np.arange(36) % 3, 'gallery', 'query'))
    return Features(features.arrays, table, features.record)


def nasty(features):
    table = features.table.assign(name=[f'{NASTY} {n}' for n in features.table['name']])
    return Features(features.arrays, table, {'model': NASTY, 'note': NASTY})


HISTORY = pd.DataFrame({'epoch': [0, 1], 'train_loss': [2., 1.], 'R@1': [.1, .2], 'time': '00:01'})


def test_numbers_are_those_of_the_metrics(features):
    results, labels = evaluate(features, ks=(1, 3)), features['good'].table['label'].to_numpy()
    rows = results[['model', 'descriptor', 'dim']].values.tolist()
    assert rows == [['good', 'v', 6], ['bad', 'v', 6], ['bad', 'w', 9]]
    for _, row in results.iterrows():
        expected = recall_at_k(features[row['model']][row['descriptor']], labels, ks=(1, 3))
        assert {k: row[f'R@{k}'] for k in (1, 3)} == expected
    assert set(results['n_queries']) == {36} and set(results['n_gallery']) == {35}


def test_queries_are_searched_in_the_gallery(features):
    f = shop(features['good'])
    (result,), judged = evaluate(f).to_dict('records'), judge(f, 'v')
    q, g = f.select('query'), f.select('gallery')
    labels = q.table['label'].to_numpy(), g.table['label'].to_numpy()
    assert (result['model'], result['split']) == ('a', 'zero-shot: gallery, query')
    assert (result['n_queries'], result['n_gallery']) == (12, 24)
    assert result['R@1'] == recall_at_k(q['v'], labels[0], g['v'], labels[1])[1] == (judged['first'] == 1).mean()
    assert judged['row'].tolist() == list(range(0, 36, 3))
    assert set(np.concatenate(judged['found'].tolist()) % 3) == {1, 2}
    np.testing.assert_array_equal(judged['first'], first_hit_rank(q['v'], labels[0], g['v'], labels[1]))


def test_every_row_carries_its_protocol(features):
    results = evaluate(features)
    assert results['network'].tolist() == ['a', 'b', 'b'] and set(results['ties']) == {'by gallery row'}
    assert results['size'][0] == 48 and results['note'].isna().tolist() == [True, False, False]
    differs, same = split_protocol(results)
    assert {'network', 'size', 'crop', 'note'} <= set(differs) and 'ties' in same and not set(differs) & set(same)


WHOLE = ['dataset', 'split', 'n_classes', 'photographs', 'crop', 'tfms', 'size', 'descriptor', 'made', 'dim', 'network',
         'backbone', 'settings', 'weights', 'pretraining', 'dtype', 'precision', 'selection', 'metric', 'ties', 'fgir', 'torch']


def test_nothing_of_the_protocol_is_missing_and_what_is_unknown_is_said(fish):
    torch.manual_seed(0)
    test = fish[fish['split'] == 'test'].reset_index(drop=True)
    net, how = Pooled(create_backbone('test_resnet', pretrained=False), ['S']), dict(size=32, num_workers=0, progress=False)
    colors, pooled, turned, plain = (extract(d, test, **how) for d in (
        ColorHistogram(4), net, Views(net), lambda x: x.mean((2, 3))))
    rows = evaluate({'colors': colors, 'net': pooled, 'views': turned, 'function': plain})
    assert rows.drop(index=3)[WHOLE].notna().all().all() and (rows.loc[:2, WHOLE] != '').all().all()
    facts = rows.set_index('model')
    assert facts['backbone'].tolist() == ['none', *['test_resnet.r160_in1k']*2, 'not recorded']
    assert facts.loc['colors', ['settings', 'weights', 'selection']].tolist() == [
        'bins 4', 'none', 'none: there is nothing to train']
    assert set(facts.loc['net':, 'selection']) == {'not recorded'} and facts['weights']['function'] == 'not recorded'
    assert set(facts['split']) == {'zero-shot: test'} and set(facts['n_classes']) == {3} and set(facts['dataset']) == {'synth'}
    said = extract(net, test, facts=dict(selection='the last epoch'), **how)
    assert evaluate(said)['selection'].tolist() == ['the last epoch']


def boxed(fish, **box):
    return fish[fish['split'] == 'test'].assign(**box).reset_index(drop=True)


@pytest.mark.parametrize('box, crop, says', [
    (dict(x1=4., y1=4., x2=20., y2=20.), False, 'whole'),
    (dict(x1=4., y1=4., x2=20., y2=20.), True, 'cut to the boxes'),
    (dict(x1=0., y1=0., x2=48., y2=48.), False, 'crops already: boxes span the files'),
    (dict(x1=1., y1=1., x2=48., y2=48.), True, 'crops already: boxes span the files')])
def test_crops_made_before_are_not_called_whole(fish, box, crop, says):
    test = boxed(fish, **box)
    described = extract(ColorHistogram(4), test, size=32, crop=crop, num_workers=0, progress=False)
    assert evaluate(described)['photographs'].tolist() == [says]
    assert len(caveats(evaluate(described))) == says.startswith('crops already')


def test_without_boxes_nobody_knows_what_was_cut(fish):
    test = boxed(fish).drop(columns=['x1', 'y1', 'x2', 'y2'])
    assert photographs_of(test, False) == 'not recorded: no boxes'
    lost = boxed(fish).assign(path='nowhere.jpg')
    assert photographs_of(lost, True) == 'not recorded: files that cannot be read'


def test_weights_say_where_they_come_from(fish, tmp_path):
    random = create_backbone('squeezenet1_1', pretrained=False)
    save_file(random.state_dict(), tmp_path/'squeeze.safetensors')
    given = create_backbone('squeezenet1_1', weights=tmp_path/'squeeze.safetensors')
    net = RetrievalNet(given, dim=8)
    save_model(net, tmp_path/'net')
    again = load_model(tmp_path/'net')
    older = json.loads((tmp_path/'net.json').read_text())
    test, how = boxed(fish), dict(size=64, num_workers=0, progress=False)
    for model, says in [(Pooled(random), 'none: random weights'), (Pooled(given), 'file squeeze.safetensors'),
                        (net, 'file squeeze.safetensors'), (again, 'file squeeze.safetensors'),
                        (Views(again), 'file squeeze.safetensors'), (lambda x: x.mean((2, 3)), 'not recorded')]:
        assert set(evaluate(extract(model, test, **how))['pretraining']) == {says}
    assert older['pretraining'] == 'file squeeze.safetensors'


def test_projections_and_precision_are_in_the_table(fish):
    test = boxed(fish)
    plain = extract(ColorHistogram(4), test, size=32, num_workers=0, progress=False)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = extract(ColorHistogram(4), test, size=32, num_workers=0, progress=False)
    short = plain.project('color', fit_pca(plain['color'], 3), 'short', 'pca 3')
    results = evaluate({'plain': short, 'low': low})
    assert results['made'].tolist() == ['as described', 'pca 3 of color', 'as described']
    assert results['precision'].tolist() == ['float32', 'float32', 'bf16']


def test_training_images_among_the_others_are_said(fish, tmp_path):
    mixed = evaluate({'all': extract(ColorHistogram(4), fish, size=32, num_workers=0, progress=False),
                      'test': extract(ColorHistogram(4), boxed(fish), size=32, num_workers=0, progress=False)})
    assert caveats(mixed) == ['all: training images are among those that are searched']
    assert 'training images are among' in report(mixed, tmp_path/'r.html', 'x').read_text()
    assert caveats(mixed[['model', 'descriptor']]) == []


@pytest.mark.parametrize('own, row, says', [
    (dict(photographs='whole'), {}, 'nothing'), (dict(photographs='cut to the boxes'), {}, 'crop'),
    (dict(photographs='crops already: x'), {}, 'crop'), (dict(photographs='not recorded: no boxes'), {}, 'crop?'),
    (dict(size=160), {}, 'size'), (dict(selection='the last epoch'), {}, 'selection'), (dict(n_queries=9), {}, 'n_queries'),
    (dict(n_queries=9, size=160), {}, 'size, n_queries'), ({}, dict(selection='unclear', size=np.nan), 'size?, selection?')])
def test_a_report_says_in_what_a_published_number_differs(own, row, says):
    ours = dict(model='m', photographs='whole', size=224, selection='best epoch on the test images', n_queries=5924, tfms='cgd')
    theirs = dict(crop='none', size=224, selection='test', n_queries=5924)
    assert differs_in(as_published(pd.Series(ours | own)), theirs | row) == says


@pytest.mark.parametrize('valid, says', [
    (.5, 'the last epoch'), ('last', 'the last epoch'),
    ('test', 'best epoch on the test images')])
def test_a_trained_run_says_how_its_epoch_was_picked(fish, tmp_path, valid, says):
    small = dict(backbone='test_resnet', pretrained=False, net=dict(dim=8), size=32, batch_size=6, epochs=1, warm_up=0)
    learn = learner_from_recipe('pp_proxy_anchor', fish, valid=valid, out=tmp_path, loaders=dict(num_workers=0), **small)
    assert 'selection' not in describe_test(learn, fish, progress=False).record
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    row = evaluate(describe_test(learn, fish, progress=False)).iloc[0]
    assert row[['selection', 'recipe', 'seed', 'backbone']].tolist() == [says, 'pp_proxy_anchor', 1, 'test_resnet.r160_in1k']
    assert row[WHOLE].notna().all()


def test_measures_are_read_in_percent_with_the_best_in_bold(features, tmp_path):
    measures = ['R@1', 'P@3', 'mAP@4', 'R-precision', 'MAP@R', 'MRR']
    results = evaluate(features, ks=(1,), measures=measures)
    differs, same = split_protocol(results.iloc[:1])
    assert set(measures) <= set(differs) and not set(measures) & set(same)
    html = report(results, tmp_path/'r.html', 'x').read_text()
    for name in measures: assert f'<strong>{100*results[name].max():.1f}</strong>' in html
    for value in results['MAP@R']: assert f'{100*value:.1f}' in html
    asked = ('MAP@R', 'mAP@10', 'P@1', 'MRR', 'MAP@R (first 100)', 'dim', 'recall', 'R@0', 'dim (first 9)', 'MAP@R (first 0)')
    assert [is_measure(c) for c in asked] == [True]*5 + [False]*5


def test_the_large_figure_has_its_interval(features, tmp_path):
    html = report(evaluate(features), tmp_path/'r.html', 'x', features).read_text()
    judged = judge(features['good'], 'v')
    low, high = confidence(judged['first'] == 1, judged['label'])
    assert html.count(f'<small>{100*low:.1f} to {100*high:.1f}</small>') == 1 and f'is {100*low:.1f} to' in html
    assert '<small>' not in report(evaluate(features), tmp_path/'s.html', 'x').read_text()
    few = features['good'].select(features['good'].table['label'] < 4)
    html = report(evaluate(few), tmp_path/'t.html', 'x', few).read_text()
    assert html.count('<small>too few classes</small>') == 1 and 'interval of R@1 these are too few classes.' in html


def test_an_interval_holds_its_mean_and_published_numbers_are_compared_where_they_can(features, tmp_path):
    results, judged = evaluate(features), judge(features['good'], 'v')
    low, high = confidence(judged['first'] == 1, judged['label'])
    assert low < results['R@1'][0] < high
    row = dict(method='another', backbone='resnet50', n_queries=500, crop='box', selection='test', source='x', **{'R@1': .5})
    for n, says in ((500, True), (36, False)):
        rows = pd.DataFrame([row | dict(n_queries=n)])
        html = report(results, tmp_path/f'{n}.html', 'x', published=rows).read_text()
        assert ('cannot be compared with these' in html) == says


def test_what_cannot_be_evaluated_is_said(features, tmp_path):
    with pytest.raises(ValueError, match='nothing to evaluate'): evaluate({})
    with pytest.raises(ValueError, match='no column dim, n_gallery, n_queries'):
        report(pd.DataFrame({'model': ['a'], 'descriptor': ['v'], 'R@1': [1.]}), tmp_path/'r.html', 'none')
    with pytest.raises(ValueError, match='expected columns R@1'):
        report(evaluate(features).drop(columns=['R@1', 'R@2', 'R@4', 'R@8']), tmp_path/'r.html', 'none')
    with pytest.raises(ValueError, match="features: nothing of the model 'good'"):
        report(evaluate(features), tmp_path/'r.html', 'none', {'bad': features['bad']})
    assert not list(tmp_path.iterdir())


def test_lists_shorten_and_lone_queries_have_no_hit(fish):
    few = fish.iloc[[0, 1, 6]].reset_index(drop=True)
    judged = judge(Features({'v': np.eye(3)}, few, {}), 'v', k=8)
    assert judged['found'].map(len).tolist() == [2, 2, 2]
    assert judged['first'].tolist() == [1, 1, np.inf]
    assert class_recall(judged)['R@1'].tolist() == [0, 1]
    assert best_and_worst(judged, 5)[1]['row'].tolist()[0] == 2


def test_classes_add_up_to_the_whole(features):
    judged = judge(features['good'], 'v')
    classes = class_recall(judged)
    assert classes['R@1'].is_monotonic_increasing and classes['queries'].sum() == 36
    assert np.isclose((classes['R@1']*classes['queries']).sum()/36, evaluate(features)['R@1'][0])
    best, worst = best_and_worst(judged, 4)
    assert best['label'].is_unique and worst['first'].iloc[0] == judged['first'].max()


def full_report(path, features, **kwargs):
    notes = f'{NASTY}\n\nsecond'
    path = report(evaluate(features), path, NASTY, features, HISTORY, f'fgir {NASTY}', notes=notes, **kwargs)
    return path.read_text(encoding='utf-8')


def test_text_from_outside_stays_text(tmp_path, features):
    pictures = {NASTY: image_path(features['good'].table, 0)}
    html = full_report(tmp_path/'r.html', {NASTY: nasty(features['good'])}, pictures=pictures)
    found = Page(html)
    assert not {'script', 'iframe', 'object', 'link', 'base'} & set(found.tags)
    assert '<script' not in html.lower()
    for part in ('title', 'h1'): assert re.search(f'<{part}>([^<]*)</{part}>', html)
    assert found.text.count('<script>alert("1")</script>') > 10


def test_the_page_needs_nothing_else(tmp_path, features):
    html = full_report(tmp_path/'r.html', features)
    found = Page(html)
    assert all(src.startswith('data:image/jpeg;base64,') for src in found.values('src')) and found.tags['img'] == 2*3*9
    assert all(a.startswith('#') for name in ('href', 'xlink:href') for a in found.values(name))
    assert not re.search(r'@import|url\((?!#)', html)
    assert not re.search(r'https?://(?!www\.w3\.org/)', html)
    assert not any(attr.startswith('on') for _, attr, _ in found.attrs)
    for src in found.values('src'): Image.open(BytesIO(base64.b64decode(src.partition(',')[2]))).verify()


def test_the_page_is_well_formed(tmp_path, features):
    html = full_report(tmp_path/'r.html', features)
    found, ids = Page(html), Page(html).values('id')
    assert html.startswith('<!doctype html>') and ('html', 'lang', 'en') in found.attrs
    assert ('meta', 'charset', 'utf-8') in found.attrs and 'width=device-width' in html
    assert 'prefers-color-scheme: dark' in html
    assert len(ids) == len(set(ids)) and {a[1:] for a in found.values('xlink:href')} <= set(ids)
    assert all(found.values('alt')) and len(found.values('alt')) == found.tags['img']
    assert found.tags['svg'] == 3 and len(found.values('aria-label')) == 3


def test_numbers_of_the_page_are_those_of_the_table(tmp_path, features):
    results, html = evaluate(features), full_report(tmp_path/'r.html', features)
    tiles = re.findall(r'<strong>([\d.]+)</strong>(R@\d+)', html)
    assert tiles == [(f'{100*results[c][0]:.1f}', c) for c in ('R@1', 'R@2', 'R@4', 'R@8')]
    for c in ('R@1', 'R@8'):
        for value in results[c]: assert f'{100*value:.1f}' in html
    worst = class_recall(judge(features['good'], 'v')).iloc[0]
    assert f'<div style="width:{100*worst["R@1"]:.1f}%">' in html


def test_a_report_is_not_overwritten_and_a_failed_one_leaves_the_old(tmp_path, features):
    path = tmp_path/'r.html'
    path.write_text('old')
    with pytest.raises(FileExistsError, match='force=True'): report(evaluate(features), path, 'new')
    moved = Features(features['good'].arrays, features['good'].table.copy(), {})
    moved.table.attrs = {'root': str(tmp_path/'gone')}
    with pytest.raises(FileNotFoundError): report(evaluate({'good': moved}), path, 'new', {'good': moved}, force=True)
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    report(evaluate(features), path, 'new', force=True)
    assert '<h1>new</h1>' in path.read_text()


def test_parts_without_data_are_left_out(tmp_path, features):
    html = report(evaluate(features['good']), tmp_path/'r.html', 'short').read_text()
    found = Page(html)
    assert found.tags['img'] == 0 and found.tags['svg'] == 1
    assert re.findall('<h2>(.*?)</h2>', html) == ['Results', 'Curves'] and 'The best of' not in html
    assert len(training_charts(HISTORY[['epoch', 'R@1']])) == 1 and training_charts(None) == []


def test_one_set_of_features_needs_no_name(tmp_path, features):
    path = report(evaluate(features['good']), tmp_path/'r.html', 'one', features['good'])
    assert Page(path.read_text()).tags['img'] == 54


def test_pictures_are_kept_inside(tmp_path, features):
    for name in ('a.png', 'b.JPG'): Image.new('RGB', (4, 4), 'red').save(tmp_path/name)
    pictures = {'red': tmp_path/'a.png', 'again': str(tmp_path/'b.JPG')}
    found = Page(report(evaluate(features), tmp_path/'r.html', 'red', pictures=pictures).read_text())
    assert [src.partition(';')[0] for src in found.values('src')] == ['data:image/png', 'data:image/jpeg']
    assert found.values('alt') == ['red', 'again']


def test_same_input_same_page(tmp_path, features):
    pages = [full_report(tmp_path/f'{i}.html', features) for i in range(2)]
    assert len({re.sub(r'<footer>.*</footer>', '', p) for p in pages}) == 1


def test_a_table_marks_the_highest_and_shows_what_is_missing():
    frame = pd.DataFrame({'model': ['a', None], 'size': [48, np.nan], 'R@1': [.5, .25], 'R@10': [1., 1.]})
    html = page('t', table_html(frame))
    assert html.count('<strong>') == 3 and html.count('–') == 2 and '>48<' in html and '<strong>50.0</strong>' in html


# many at once, and one against another

def test_what_was_described_is_read_again_and_what_changed_is_not(tmp_path):
    class Net(nn.Module):
        calls = 0

        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.body = nn.Conv2d(3, 8, 5, 4)

        def forward(self, x):
            Net.calls += 1
            return self.body(x).mean((2, 3))

    fish = synth_dataset(tmp_path/'fish', n_classes=4, n_per_class=3, size=40, progress=False)
    tables, nets = {'all': fish, 'test': fish[fish['split'] == 'test'].reset_index(drop=True)}, {'a': Net(0), 'b': Net(1)}
    how = dict(size=32, num_workers=0, bs=64)
    found = describe_all(nets, tables, tmp_path/'cache', progress=False, **how)
    assert list(found) == ['all, a', 'all, b', 'test, a', 'test, b'] and Net.calls == 4
    results = evaluate(found, ks=(1,), measures=['MAP@R', 'P@2'])
    again = describe_all({'other name': Net(0)}, tables, tmp_path/'cache', progress=False, **how)
    assert Net.calls == 4 and (again['all, other name']['embedding'] == found['all, a']['embedding']).all()
    describe_all({'a': Net(2)}, {'test': tables['test']}, tmp_path/'cache', progress=False, **how)
    describe_all({'a': nets['a']}, {'test': tables['test']}, tmp_path/'cache', progress=False, **how | dict(size=40))
    assert Net.calls == 6
    assert content_key(nets['a'], fish, how) != content_key(nets['a'], fish.iloc[::-1], how)
    plain = score_queries(found['all, b']['embedding'], fish['label'], measures=['R@1', 'MAP@R', 'P@2']).mean()
    assert results.set_index('model').loc['all, b', ['R@1', 'MAP@R', 'P@2']].tolist() == plain[['R@1', 'MAP@R', 'P@2']].tolist()


def test_a_difference_is_one_if_classes_agree_on_it():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(30), 8)
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(240)], label=labels, name=labels.astype(str), split='test'))
    def cloud(spread, seed):
        x = np.random.default_rng(1).normal(size=(30, 12))[labels] + spread*np.random.default_rng(seed).normal(size=(240, 12))
        return Features({'x': x.astype(np.float32)}, table, {})
    worse, better, same = cloud(1.4, 2), cloud(.9, 3), cloud(1.4, 4)
    found = compare(worse, better)
    assert found['differs'] and 0 < found['low'] < found['difference'] < found['high']
    assert found['verdict'] == 'b is higher' and compare(better, worse)['verdict'] == 'a is higher'
    assert compare(better, worse)['difference'] == -found['difference']
    close = compare(worse, same, measure='MAP@R')
    assert not close['differs'] and close['low'] < 0 < close['high'] and close['verdict'] == 'no difference shown'
    few = compare(*(f.select(table['label'] < 4) for f in (worse, better)))
    assert few['verdict'] == 'too few classes' and not few['differs'] and np.isnan([few['low'], few['high']]).all()
    halves = table.assign(split=np.where(rng.random(240) < .5, 'query', 'gallery'))
    split = [Features(f.arrays, halves, {}) for f in (worse, better)]
    assert compare(*split)['differs']
    with pytest.raises(ValueError, match='the same images'): compare(worse, split[0])
