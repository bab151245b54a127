"""What a user of one of the five source programs has on disk: data sets, checkpoints, features; read here, and told apart."""
import json
import re
from pathlib import Path

import miniature
import numpy as np
import pandas as pd
import pytest
import torch
from timm.optim import AdamP
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from fgir.app.cli import main
from fgir.app.data import detect_layout, read_data
from fgir.backbones.classic import BNInception
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import load_model, save_model
from fgir.data.table import make_table
from fgir.features.retrieval import evaluate_recall, save_retrieval_pictures
from fgir.features.store import Features
from fgir.gallery.index import features_of
from fgir.papers.cfga import CFGA, PROGRAM_NETWORKS
from fgir.papers.fgic import classify_image
from fgir.papers.formats import READERS, prepare, write_cfga_json
from fgir.papers.programs import (
    _backbone_name,
    load_program_model,
    open_classifier,
    write_cfga_features,
)

@pytest.mark.parametrize('annotations', ['.', 'devkit', 'car_devkit/devkit'])
@pytest.mark.parametrize('photographs', ['car_ims', 'car_ims/car_ims'])
def test_cars_wherever_the_archives_were_unpacked(tmp_path, photographs, annotations):
    "The joint release and the layout of CFGA's instructions are one table, found without being named."
    joint = READERS['cars'](miniature.cars(tmp_path/'joint'))
    root = miniature.cars(tmp_path/'root', photographs, annotations)
    assert detect_layout(root) == 'cars'
    for split in ('zero-shot', 'official'):
        table = read_data(root, split=split)
        pd.testing.assert_frame_equal(table.drop(columns='path'), READERS['cars'](tmp_path/'joint', split).drop(columns='path'))
    assert list(table['path']) == [f'{photographs}/{i:06}.jpg' for i in range(1, 9)] and len(joint) == 8


def test_cars_of_the_cfga_program_become_its_json(tmp_path):
    "The data preparation of CFGA on its own layout: rows in the order of the file, first half of the classes trains."
    made = prepare('cars', miniature.cars_cfga(tmp_path/'cars'), tmp_path/'datafile', format='cfga', progress=False)
    again = READERS['cars'](tmp_path/'cars')
    assert list(made['label']) == list(again['label']) == [0, 2, 1, 3, 3, 0, 2, 1]
    assert list(made['split']) == ['train', 'test', 'train', 'test', 'test', 'train', 'test', 'train']


class CGDProgram(nn.Module):
    "The network of CGD as its README and code describe it, with the names of its weights."
    def __init__(self, net: nn.Module, config: str = 'SG', dim: int = 64, n_classes: int = 7):
        super().__init__()
        for conv in net.layer3[0].modules():
            if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2): conv.stride = (1, 1)
        self.config, width, k = config, net.fc.in_features, dim//len(config)
        self.features = nn.Sequential(*[m for m in net.children() if not isinstance(m, (nn.AdaptiveAvgPool2d, nn.Linear))])
        self.main_modules = nn.ModuleList(nn.Sequential(nn.Linear(width, k, bias=False)) for _ in config)
        self.auxiliary_module = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, n_classes))

    def forward(self, x):
        maps = self.features(x)
        pooled = dict(S=maps.mean((2, 3)), M=maps.amax((2, 3)), G=(maps**3).mean((2, 3))**(1/3))
        parts = [F.normalize(reduce(pooled[c])) for c, reduce in zip(self.config, self.main_modules, strict=True)]
        return F.normalize(torch.cat(parts, 1))


class PPProgram(nn.Module):
    "The network of PP: maximum pooling and layer norm have no weights, the proxies are `fc`."
    def __init__(self, backbone: nn.Module, width: int, dim: int = 32, n_classes: int = 7):
        super().__init__()
        self.backbone, self.refactor = backbone, nn.Linear(width, dim, bias=False)
        self.fc = nn.Linear(dim, n_classes, bias=False)

    def forward(self, x):
        pooled = self.backbone(x).amax((2, 3))
        return F.normalize(self.refactor(F.layer_norm(pooled, pooled.shape[1:])))


def trained(net: nn.Module) -> nn.Module:
    "A network in evaluation mode whose every number is its own, with the statistics of what passes through."
    torch.manual_seed(3)
    for name, t in net.state_dict().items():
        if t.is_floating_point() and t.ndim == 1: t.normal_(0, .1) if name.endswith(('bias', 'mean')) else t.uniform_(.5, 1.5)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = 1.
    with torch.no_grad(): net.train()(torch.randn(4, 3, 64, 64))
    return net.eval()


def same_answers(ours: nn.Module, theirs: nn.Module):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): want, found = theirs(x), ours(x)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
    assert (want[0] - want[1]).norm() > 1e-3


@pytest.mark.parametrize('config, named', [('SG', True), ('M', True), ('GS', False), ('SMG', False)])
def test_checkpoints_of_cgd(tmp_path, config, named):
    "The letters come from the file's name or from the caller; the answers are the program's."
    theirs = trained(CGDProgram(get_model('resnet18'), config, 48))
    path = tmp_path/(f'car_uncropped_resnet50_{config}_48_0.1_0.5_0.1_128_model.pth' if named else 'best.pth')
    torch.save(theirs.state_dict(), path)
    if not named:
        said = f'best.pth: {len(config)} global descriptors, .*give gd_config'
        with pytest.raises(ValueError, match=said): load_program_model(path)
        with pytest.raises(ValueError, match='give gd_config'): load_program_model(path, gd_config='SS')
    net, kind = load_program_model(path, **({} if named else dict(gd_config=config)))
    assert kind == 'cgd' and PROGRAM_NETWORKS[kind]['tfms'] == 'cgd' and net.config['gd_config'] == config
    assert net.config['n_classes'] == 7 and net.dim == 48
    same_answers(net, theirs)


def test_the_published_size_of_cgd():
    "SG on ResNet-50 has the 327 entries of the program, and the names that are looked for."
    with torch.device('meta'): state = CGDProgram(get_model('resnet50'), 'SG', 1536, 98).state_dict()
    assert len(state) == 327 and {'main_modules.1.0.weight', 'auxiliary_module.1.bias', 'features.7.2.conv3.weight'} <= state.keys()


def without_head(name: str) -> tuple[nn.Module, nn.Module, int]:
    "The module whose names PP's checkpoints have, one that gives its map, and the width of that."
    ours = create_backbone(name, pretrained=False)
    return ours, ours, ours.n_features


@pytest.mark.parametrize('name', ['resnet18', 'bn_inception', 'googlenet'])
def test_checkpoints_of_pp(tmp_path, name):
    "All of PP's kinds of backbone; the later head is had by asking for it."
    ours, maps_of, width = without_head(name)
    theirs = trained(PPProgram(maps_of, width))
    torch.save(theirs.state_dict(), tmp_path/'car_x_proxy_anchor_32_20_model.pth')
    net, kind = load_program_model(tmp_path/'car_x_proxy_anchor_32_20_model.pth')
    assert net.backbone.trained_crop is False
    assert kind == 'pp' and PROGRAM_NETWORKS[kind]['tfms'] == 'proxy_anchor' and net.backbone.name == name
    assert net.config['dropout'] == (.2 if name == 'googlenet' else 0)
    same_answers(net, theirs)
    if name != 'resnet18': return
    later, _ = load_program_model(tmp_path/'car_x_proxy_anchor_32_20_model.pth', pool='avg+max', layer_norm=False)
    maps = theirs.backbone(x := torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(later(x), F.normalize(theirs.refactor(maps.mean((2, 3)) + maps.amax((2, 3)))), atol=2e-6, rtol=1e-4)


def test_checkpoints_of_fgic(tmp_path, capsys):
    "A plain ResNet in the old file format names a photograph, by numbers or by the class folders."
    root = miniature.folder(tmp_path/'data'/'train')
    theirs = trained(get_model('resnet18', num_classes=4))
    torch.save(theirs.state_dict(), tmp_path/'max_acc.pth', _use_new_zipfile_serialization=False)
    net, kind = load_program_model(tmp_path/'max_acc.pth')
    assert kind == 'fgic' and net.vocab == ['class 0', 'class 1', 'class 2', 'class 3']
    same_answers(net, theirs)
    named, how = open_classifier(tmp_path/'max_acc.pth', root)
    names = sorted(d.name for d in root.iterdir())
    assert named.vocab == names and how == dict(size=448, tfms='fgic')
    photo = root/'ash'/'as0.png'
    want = classify_image(named, photo, k=4, **how)
    assert main(['classify', str(photo), '--model', str(tmp_path/'max_acc.pth'), '--classes', str(root), '-k', '4']) == 0
    assert [line.split()[1:-1] for line in capsys.readouterr().out.splitlines()[2:]] == [name.split() for name in want['name']]
    (root/'.DS_Store').touch()
    assert open_classifier(tmp_path/'max_acc.pth', root)[0].vocab == names


def test_a_stray_file_among_the_class_folders_is_a_class(tmp_path):
    "As the program counts; a folder of another number of classes is refused, and so is a model of another kind."
    root = miniature.folder(tmp_path/'train')
    torch.save(get_model('resnet18', num_classes=5).state_dict(), tmp_path/'max_acc.pth')
    with pytest.raises(ValueError, match='4 class folders, the model has 5'): open_classifier(tmp_path/'max_acc.pth', root)
    (root/'.DS_Store').touch()
    names = sorted(d.name for d in root.iterdir() if d.is_dir())
    assert open_classifier(tmp_path/'max_acc.pth', root)[0].vocab == [*names, 'class 4']
    torch.save(CGDProgram(get_model('resnet18')).state_dict(), tmp_path/'x_SG_model.pth')
    with pytest.raises(ValueError, match='x_SG_model.pth: no classifier'): open_classifier(tmp_path/'x_SG_model.pth')
    with pytest.raises(ValueError, match='names of its own'): open_classifier(tmp_path/'a.safetensors', root)


@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnext50_32x4d', 'googlenet',
                                  'bn_inception'])
def test_backbones_are_known_by_their_weights(name):
    with torch.device('meta'): net = BNInception() if name == 'bn_inception' else get_model(name, weights=None)
    assert _backbone_name(net.state_dict(), 'x.pth') == name


def test_imagenet_weights_are_those_of_cfga(tmp_path):
    "What CFGA's program describes by without training: torchvision's own file of a thousand classes."
    net = get_model('resnet18')
    torch.save(net.state_dict(), tmp_path/'resnet18-f37072fd.pth')
    backbone, kind = load_program_model(tmp_path/'resnet18-f37072fd.pth')
    assert kind == 'pretrained' and torch.equal(backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)


@pytest.mark.parametrize('state, said', [
    ({'a.weight': torch.zeros(2)}, 'no checkpoint of the programs'),
    ({'refactor.weight': torch.zeros(2, 4)}, 'backbone unknown'),
    ({'main_modules.0.0.weight': torch.zeros(2, 4)}, 'auxiliary_module.1.weight missing'),
    ({'fc.weight': torch.zeros(3, 512), 'layer3.0.conv1.weight': torch.zeros(1)}, 'backbone unknown')])
def test_what_is_no_checkpoint_is_refused_in_a_line(tmp_path, state, said):
    torch.save(state, tmp_path/'x.pth')
    with pytest.raises(ValueError, match=f'x.pth: .*{said}'): load_program_model(tmp_path/'x.pth')


@pytest.mark.parametrize('gone, said', [('features.4.0.conv1.weight', 'layer1.0.conv1.weight missing'),
                                        ('auxiliary_module.0.running_var', 'running_var')])
def test_a_checkpoint_that_lacks_weights_is_refused_by_name(tmp_path, gone, said):
    state = CGDProgram(get_model('resnet18')).state_dict()
    del state[gone]
    torch.save(state, tmp_path/'x_SG_model.pth')
    with pytest.raises(ValueError, match=said): load_program_model(tmp_path/'x_SG_model.pth')


def test_a_loaded_model_becomes_one_of_fgir(tmp_path):
    "Saved by save_model it opens without the program's file name."
    torch.save(CGDProgram(get_model('resnet18')).eval().state_dict(), tmp_path/'x_SG_model.pth')
    net, _ = load_program_model(tmp_path/'x_SG_model.pth')
    same_answers(load_model(save_model(net, tmp_path/'mine.safetensors', tfms='cgd', size=224)), net)


NAMES = ['layer4.1.conv1', 'layer4.1.conv2', 'layer4.2.conv3', 'cfga+', 'scda_norm_joint', 'scda_norm_each', 'pool_norm_joint',
         'pool_norm_each']


def in_classes(n: int = 24, splits=('train', 'test')) -> tuple[pd.DataFrame, np.ndarray]:
    "A table of images that are nowhere, four classes, and vectors that know something of them."
    labels = np.arange(n)*4//n
    paths = [f'00{y}.Bird_{y}/Bird_{i:04}.jpg' for i, y in enumerate(labels)]
    halves = [splits[int(y > 1)] for y in labels]
    x = np.random.default_rng(0).normal(size=(n, 12)).astype('f4') + 1.5*np.eye(4, 12, dtype='f4')[labels]
    return make_table(paths, labels, [f'Bird_{y}' for y in labels], halves, '/data/images', 'birds'), x


def write_program_files(tmp_path, windows: bool = False):
    "What CFGA's program leaves: four files of the data set, and a folder of features named after the model's path."
    table, x = in_classes()
    home = tmp_path/'datafile'/'CUB_200_2011'
    home.mkdir(parents=True)
    write_cfga_json(table, home)
    if windows:
        for split in ('train', 'test'):
            paths = ['C:\\Users\\x\\images\\' + p.replace('/', '\\') for p in table['path'][table['split'] == split]]
            (home/f'{split}_paths.json').write_text(json.dumps(paths))
    rng = np.random.default_rng(1)
    test = table[table['split'] == 'test'].reset_index(drop=True)
    arrays = {name: rng.random((12, 6), np.float32) for name in NAMES} | {'cfga+': x[12:]}
    arrays['pool_norm_joint'] = rng.random((12, 4096), np.float32)
    features = Features(arrays, test)
    return features, write_cfga_features(features, home/'models'/'resnet50-19c8e357_pth')


def test_cfga_json(tmp_path):
    """Names, order of rows and numbers are the program's; nothing is overwritten unasked."""
    features, files = write_program_files(tmp_path)
    assert [f.name for f in files] == [
        'layer4_1_conv1_weight.json', 'layer4_1_conv2_weight.json', 'layer4_2_conv3_weight.json', 'layer4_conv2_weight.json',
        'scda_max_avg_norm.json', 'scda_norm_max_avg.json', 'embedding_max_avg.json', 'embedding_norm_max_avg.json']
    for file, a in zip(files, features.arrays.values(), strict=True):
        read = json.loads(file.read_text())
        assert read == {'train': [], 'test': a.tolist()}
        assert file.read_text() == json.dumps(read)
    with pytest.raises(FileExistsError): write_cfga_features(features, files[0].parent)
    with pytest.raises(ValueError, match='one file for two'):
        write_cfga_features(Features(features.arrays | {'embedding': features['cfga+']}, features.table), tmp_path/'two')


@pytest.mark.parametrize('windows', [False, True])
def test_features_of_cfga_come_back(tmp_path, windows):
    "Every array under its name with the same numbers and recall, whatever machine the paths are of."
    features, files = write_program_files(tmp_path, windows)
    again = features_of(files[0].parent)
    assert set(again.names) == set(NAMES) and again.table.attrs['dataset'] == 'CUB_200_2011'
    for name in NAMES: np.testing.assert_array_equal(again[name], features[name])
    pd.testing.assert_frame_equal(again.table[['path', 'label', 'split']], features.table[['path', 'label', 'split']])
    want = evaluate_recall(features, measures=['mAP@5/hits']).set_index('descriptor')
    pd.testing.assert_frame_equal(evaluate_recall(again, measures=['mAP@5/hits']).set_index('descriptor').loc[NAMES], want)
    one = features_of(files[3])
    assert one.names == ['cfga+']


def test_a_folder_of_trained_models_is_answered_with_its_file_of_features(tmp_path):
    for name in ('x_model.json', 'x_model.safetensors', 'x_data_base.safetensors'): (tmp_path/name).touch()
    with pytest.raises(ValueError, match='a folder; give a file of features in it, such as .*x_data_base.safetensors'):
        features_of(tmp_path)
    (tmp_path/'none').mkdir()
    with pytest.raises(ValueError, match='no features, neither a JSON file of CFGA nor a folder'): features_of(tmp_path/'none')


def test_features_of_cfga_of_both_splits_and_other_names(tmp_path):
    "Training rows come first; a learned embedding and files of later experiments keep their sense."
    features, files = write_program_files(tmp_path)
    _, x = in_classes()
    (tmp_path/'datafile/CUB_200_2011/m').mkdir()
    for stem in ('embedding_max_avg', 'DGPCRL_gradient', 'layer4_conv2_weight_R34'):
        text = json.dumps(dict(train=x[:12].tolist(), test=x[12:].tolist()))
        (tmp_path/f'datafile/CUB_200_2011/m/{stem}.json').write_text(text)
    both = features_of(tmp_path/'datafile/CUB_200_2011/m')
    assert set(both.names) == {'embedding', 'DGPCRL_gradient', 'layer4_conv2_weight_R34'}
    np.testing.assert_array_equal(both['embedding'], x)
    assert both.table['split'].tolist() == ['train']*12 + ['test']*12
    assert both.table['label'].tolist() == in_classes()[0]['label'].tolist()


@pytest.mark.parametrize('text, said', [
    ('{"train": [], "test": [[1, 2], [3]]}', 'all of one length'), ('{"train": [], "test": []}', 'finite numbers'),
    ('{"train": [], "test": [[NaN]]}', 'finite numbers'), ('[1]', 'no features of CFGA'), ('{"train"', 'line 1'),
    ('{"train": [], "test": [[1, 2]]}', '1 vectors of split test, but 12 entries'),
    ('{"train": 3, "test": [[1]]}', 'rows of finite numbers')])
def test_broken_features_of_cfga_are_named(tmp_path, text, said):
    _, files = write_program_files(tmp_path)
    files[0].write_text(text)
    with pytest.raises(ValueError, match=f'layer4_1_conv1_weight.json: .*{said}'): features_of(files[0])


def test_features_of_cfga_without_labels_or_of_two_sets_are_refused(tmp_path):
    features, files = write_program_files(tmp_path)
    files[1].write_text('{"train": [], "test": [[1.0]]}')
    with pytest.raises(ValueError, match='conv2_weight.json: not of the same images'): features_of(files[0].parent)
    (tmp_path/'datafile/CUB_200_2011/test_labels.json').unlink()
    with pytest.raises(ValueError, match='labels missing'): features_of(files[0])
    with pytest.raises(ValueError, match='no features'): features_of(tmp_path/'datafile')
    with pytest.raises(FileNotFoundError, match='gone.json'): features_of(tmp_path/'gone.json')


def data_base(tmp_path, gallery: bool = False, name: str = 'car_uncropped_resnet50_SG_1536_0.1_0.5_0.1_128_data_base.pth'):
    "A data base as CGD's and PP's train.py write it, with photographs that can be drawn."
    table, x = in_classes()
    x = F.normalize(torch.from_numpy(x))
    home = tmp_path/'data'/'car'/'uncropped'
    for i in range(24): miniature.photograph(home/f'{i:06}.jpg', i)
    images, labels = [str(home/f'{i:06}.jpg') for i in range(24)], table['label'].tolist()
    found = dict(test_images=images, test_labels=labels, test_features=x)
    if gallery:
        found = dict(test_images=images[::2], test_labels=labels[::2], test_features=x[::2], gallery_images=images[1::2],
                     gallery_labels=labels[1::2], gallery_features=x[1::2])
    torch.save(found, tmp_path/name)
    return found, tmp_path/name


def program_recall(query, q_labels, gallery, g_labels, k: int, same: bool) -> float:
    "Recall as CGD's utils.py counts it."
    d = torch.cdist(query.double(), gallery.double())
    if same: d.fill_diagonal_(float('inf'))
    hits = torch.tensor(g_labels)[d.topk(k, largest=False).indices] == torch.tensor(q_labels)[:, None]
    return hits.any(1).float().mean().item()


@pytest.mark.parametrize('gallery', [False, True])
def test_data_bases_of_cgd_and_pp(tmp_path, gallery):
    "Features, labels and paths come back, and their recall is the program's; In-Shop has its gallery apart."
    found, path = data_base(tmp_path, gallery)
    features = features_of(path)
    sides = [('test', 'gallery')] if gallery else [('test', 'test')]
    assert set(features.table['split']) == ({'query', 'gallery'} if gallery else {'test'})
    assert features.table.attrs['dataset'] == 'car' and features.table.attrs['root'] == str(tmp_path/'data/car/uncropped')
    row = evaluate_recall(features, ks=(1, 2, 4)).iloc[0]
    for q, g in sides:
        parts = [found[f'{side}_{what}'] for side in (q, g) for what in ('features', 'labels')]
        for k in (1, 2, 4): assert row[f'R@{k}'] == pytest.approx(program_recall(*parts, k, q == g))
    if not gallery: np.testing.assert_array_equal(features['embedding'], found['test_features'].numpy())


def test_data_base_of_pp_has_training_features_that_are_left_out(tmp_path):
    found, path = data_base(tmp_path, name='car_resnet50_proxy_anchor_512_20_data_base.pth')
    extra = dict(train_features=torch.randn(9, 12), train_labels=torch.arange(9), train_proxies=torch.randn(2, 12))
    torch.save(found | extra | dict(test_labels=torch.tensor(found['test_labels'])), path)
    assert len(features_of(path)) == 24


def test_broken_data_bases_are_named(tmp_path):
    found, path = data_base(tmp_path)
    for broken, said in (({k: v for k, v in found.items() if k != 'test_labels'}, 'test_labels missing'), ([1], 'missing'),
                         (found | dict(test_labels=[0]), '24 images, 1 labels'),
                         (found | dict(test_images=['a.jpg']*24), 'second time')):
        torch.save(broken, path)
        with pytest.raises(ValueError, match=f'data_base.pth.*{said}'): features_of(path)
    path.write_bytes(b'no zip')
    with pytest.raises(ValueError, match='data_base.pth: not a data base'): features_of(path)


def test_no_data_base_runs_code(tmp_path):
    "A pickle that would call something is refused."
    class Bad:
        def __reduce__(self): return print, ('ran',)
    torch.save(dict(test_images=[Bad()]), tmp_path/'x_data_base.pth')
    with pytest.raises(ValueError, match='not a data base of plain values'): features_of(tmp_path/'x_data_base.pth')


def test_pictures_of_a_data_base_are_those_of_test_py(tmp_path):
    "Query and framed neighbors under the program's names, distances (CGD) or similarities (PP) in them."
    found, path = data_base(tmp_path)
    features, x = features_of(path), found['test_features'].double()
    for metric, scores, largest in (('euclidean', torch.cdist(x, x), False), ('cosine', x @ x.T, True)):
        scores.fill_diagonal_(float('-inf') if largest else float('inf'))
        top = scores[5].topk(8, largest=largest)
        folder = save_retrieval_pictures(features, 5, tmp_path/metric, k=8, metric=metric)
        want = {'query_img.jpg', *(f'retrieval_img_{i}_{s:.4f}.jpg' for i, s in enumerate(top.values.tolist(), 1))}
        assert {f.name for f in folder.iterdir()} == want


@pytest.fixture(scope='module')
def birds(tmp_path_factory):
    return miniature.cub(tmp_path_factory.mktemp('birds'))


def recall_columns(text: str) -> list[str]:
    return next(line for line in text.splitlines() if 'R@1' in line).split()


def test_every_program_describes_by_model(tmp_path, birds, capsys):
    "fgir extract takes the checkpoint of each program as it lies on disk, and cuts images as the program does."
    states = {'car_cropped_resnet50_SG_48_0.1_0.5_0.1_128_model.pth': (CGDProgram(get_model('resnet18'), 'SG', 48), 48),
              'resnet18-f37072fd.pth': (get_model('resnet18'), 1024)}
    for name, (theirs, dim) in states.items():
        torch.save(trained(theirs).state_dict(), tmp_path/name)
        out = tmp_path/f'{name}.safetensors'
        assert main(['extract', str(birds), '--model', str(tmp_path/name), '--out', str(out)]) == 0
        features = features_of(out)
        x, kind = features[features.names[0]], load_program_model(tmp_path/name)[1]
        assert x.shape == (4, dim) and np.allclose(np.linalg.norm(x, axis=1), 1)
        assert features.record['tfms'] == PROGRAM_NETWORKS[kind]['tfms']
    assert load_program_model(tmp_path/next(iter(states)))[0].backbone.trained_crop is True


def test_a_gallery_by_the_checkpoint_of_a_program(tmp_path, birds, capsys):
    "fgir index builds with it, and opens it again by itself to search with a photograph."
    theirs = trained(CGDProgram(get_model('resnet18'), 'SG', 48))
    torch.save(theirs.state_dict(), tmp_path/'cub_uncropped_resnet50_SG_48_0.1_0.5_0.1_128_model.pth')
    gallery, photo = str(tmp_path/'g.safetensors'), birds/'images/001.Bird_1/Bird_1_0000.jpg'
    assert main(['index', 'build', str(birds), gallery, '--model', str(next(tmp_path.glob('*.pth')))]) == 0
    capsys.readouterr()
    assert main(['index', 'search', gallery, str(photo), '--json', '-k', '8']) == 0
    assert len(json.loads(capsys.readouterr().out)) in (7, 8)


ABLATIONS = dict(whole=[], eq5=['select=false'], other=['direction=out', 'loss=squared', 'lcc=false'])


def by_hand(net: nn.Module, image: torch.Tensor, eq5: bool, eq6: bool) -> np.ndarray:
    "CFGA of layer4.1.conv2 of one image by a whole backward pass and numpy: without equation 5, or by rows as in equation 6."
    maps = nn.Sequential(*list(net.children())[:-2])(image)[0]
    total = maps.sum(0)
    masked, n = maps*(total > total.mean()), (total > total.mean()).sum()
    net.zero_grad()
    (masked.sum((1, 2))/n).sum().add(masked.amax((1, 2)).sum()).backward()
    grad = net.layer4[1].conv2.weight.grad.double().numpy().reshape(512, 512, 9)
    a = grad.max(2) - grad.min(2) + grad.std(2, ddof=1)
    if not eq5: a = a*((a > a.mean(0)) & (a > a.mean(1, keepdims=True)))
    v = a.mean(1 if eq6 else 0)
    return v/np.linalg.norm(v)


@pytest.mark.parametrize('eq5, eq6', [(False, False), (True, False), (False, True), (True, True)])
def test_ablations_of_cfga(eq5, eq6):
    "select=False leaves out equation 5, direction='out' is equation 6, against numpy."
    net, x = trained(get_model('resnet18')), torch.randn(2, 3, 96, 96)
    found = CFGA(net, ['layer4.1.conv2'], select=not eq5, direction='out' if eq6 else 'in', lcc=False, plus=())(x)
    for i in range(2):
        want = torch.from_numpy(by_hand(net, x[i:i + 1], eq5, eq6)).float()
        assert F.cosine_similarity(found['layer4.1.conv2'][i], want, 0) > 1 - 1e-5


def test_ablations_by_command(tmp_path, birds, capsys):
    "--set changes CFGA; a wrong word is refused in a line."
    torch.save(trained(get_model('resnet18')).state_dict(), tmp_path/'r.pth')
    words = ['extract', str(birds), '--model', str(tmp_path/'r.pth'), '--descriptor', 'layer4.1.conv2', '--out']
    found = {}
    for name, more in ABLATIONS.items():
        assert main([*words, str(tmp_path/f'{name}.safetensors'), *(w for s in more for w in ('--set', s))]) == 0
        features = features_of(tmp_path/f'{name}.safetensors')
        found[name] = features['layer4.1.conv2']
        for s in more: assert str(features.record['config'][s.split('=')[0]]).lower() == s.split('=')[1]
    assert len({x.tobytes() for x in found.values()}) == 3
    capsys.readouterr()
    for wrong, said in (('x=1', "CFGA has no setting 'x'"), ('select=no', "select 'no': neither true nor false"),
                        ('loss=[1]', 'loss [1]: not one of'), ('select', 'NAME=VALUE')):
        assert main([*words, str(tmp_path/'w.safetensors'), '--set', wrong]) == 1
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
    assert main([*words[:4], '--out', str(tmp_path/'w.safetensors'), '--set', 'lcc=false']) == 1
    assert '--set: settings of --descriptor' in capsys.readouterr().err


def oracle_map(x: np.ndarray, labels: np.ndarray, k: int) -> float:
    "mAP@K as CFGA's compute_map_test_BATCH counts it: the neighbors without the first, divided by the hits found."
    d = ((x[:, None] - x[None])**2).sum(-1)
    values = []
    for i, row in enumerate(d):
        right = labels[[j for j in np.argsort(row, kind='stable') if j != i][:k]] == labels[i]
        ranks = np.flatnonzero(right) + 1
        values.append(np.mean([(n + 1)/r for n, r in enumerate(ranks)]) if len(ranks) else 0)
    return float(np.mean(values))


def test_measures_of_the_programs_by_command(tmp_path, capsys):
    "R@K, CFGA's mAP@K, precision and MAP@R stand in the table, the CSV and the report, for files of any program."
    _, base = data_base(tmp_path)
    features = features_of(base)
    x, labels = features['embedding'].astype(float), features.table['label'].to_numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    asked = ['mAP@5/hits', 'mAP@5', 'MAP@R', 'P@3', 'R-precision', 'R@3']
    words = ['evaluate', str(base), '--measures', ', '.join(asked), '--csv', str(tmp_path/'t.csv')]
    assert main([*words, '--report', str(tmp_path/'t.html')]) == 0
    out, row = capsys.readouterr().out, pd.read_csv(tmp_path/'t.csv').iloc[0]
    assert recall_columns(out) == ['model', 'descriptor', 'R@1', 'R@2', 'R@4', 'R@8', *asked]
    assert row['mAP@5/hits'] == pytest.approx(oracle_map(x, labels, 5)) and f'{100*row["mAP@5/hits"]:.1f}' in out
    page = (tmp_path/'t.html').read_text()
    assert all(name in page for name in asked) and '--measures' in page
    for wrong in ('mAP', 'R@0', 'nmi'):
        assert main(['evaluate', str(base), '--measures', wrong]) == 1
        assert f"--measures: measure '{wrong}'" in capsys.readouterr().err


def test_evaluate_takes_the_files_of_every_program(tmp_path, capsys):
    "A folder of CFGA's, and a data base, in one table; what is no features is refused in a line."
    _, files = write_program_files(tmp_path)
    _, base = data_base(tmp_path)
    assert main(['evaluate', str(files[0].parent), str(base), '--ks', '1,2,4,8,16,32']) == 0
    out = capsys.readouterr().out
    assert out.count('resnet50-19c8e357_pth') == len(NAMES) and 'embedding' in out.splitlines()[-1]
    (tmp_path/'x.json').write_text('{}')
    assert main(['evaluate', str(tmp_path/'x.json')]) == 1
    assert 'x.json: no features of CFGA' in capsys.readouterr().err


def test_adamp_steps_as_its_authors_code():
    "Three steps with a constant gradient, as AdamP 0.3 takes them: the projection acts in the first two."
    p = nn.Parameter(torch.tensor([[1., 2], [3, 4]], dtype=torch.float64))
    optimizer = AdamP([p], lr=.1)
    for want in ([[.8800000010, 2.0600000000], [2.8880000004, 4.0839999998]],
                 [[.7593064986, 2.1115583899], [2.7741946322, 4.1644774494]],
                 [[.6593064991, 2.2115583889], [2.6741946324, 4.2644774490]]):
        p.grad = torch.tensor([[2., -1], [4, -3]], dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.tensor(want, dtype=torch.float64), atol=2e-9, rtol=0)


def test_every_test_that_the_page_names_is_there():
    "The table of the programs says of each row how it was checked."
    here = Path(__file__).parent
    there = {f.stem: set(re.findall(r'^def (test_\w+)', f.read_text(), re.M)) for f in here.glob('test_*.py')}
    cells = json.loads((here.parent/'nbs/tutorials/programs.ipynb').read_text())['cells']
    rows = [row.split(' | ') for c in cells for row in ''.join(c['source']).splitlines() if row.startswith('|')]
    named = [re.findall(r'`(test_[\w:]+)`', row[2]) for row in rows if len(row) == 4]
    assert sum(map(bool, named)) > 60
    for names in named:
        file = None
        for name in names:
            if name in there: continue
            file = name.split('::')[0] if '::' in name else file
            assert name.split('::')[-1] in there.get(file, ()), name


def test_a_checkpoint_that_is_saved_again_keeps_how_it_was_cropped_and_claims_no_origin(tmp_path):
    path = tmp_path/'car_cropped_resnet50_SG_48_0.1_0.5_0.1_128_model.pth'
    torch.save(trained(CGDProgram(get_model('resnet18'), 'SG', 48)).state_dict(), path)
    again = load_model(save_model(load_program_model(path)[0], tmp_path/'again'))
    assert again.backbone.trained_crop is True and again.backbone.pretraining == 'not recorded'
