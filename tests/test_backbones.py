"Backbones, poolings, RetrievalNet, weights, saved models and counts: golden values, properties and bad input."
import json
import pickle
import threading
from copy import deepcopy
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet50_Weights, densenet121, get_model, googlenet, mobilenet_v3_small, resnet18

from fgir.backbones import registry, saving
from fgir.backbones.classic import BNInception, BVLCGoogLeNet, ResponseNorm
from fgir.backbones.nets import POOLS, Pooled, RetrievalNet, count_operations, count_parameters, create_pool
from fgir.backbones.registry import BACKBONES, as_backbone, create_backbone
from fgir.backbones.saving import load_model, name_today, read_record, read_tensors, save_model
from fgir.backbones.weights import load_weights, read_weights
from fgir.data.files import shared_dir
from fgir.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from fgir.papers.cgd import CGDNet

WEIGHTS = shared_dir() and shared_dir()/'data'/'weights'
needs_weights = pytest.mark.skipif(not WEIGHTS, reason='FGIR_SHARED: no real weights')


def meta(name, **kwargs):
    with torch.device('meta'): return create_backbone(name, pretrained=False, **kwargs)


def random_net(name='resnet18', seed=0, **kwargs):
    torch.manual_seed(seed)
    return create_backbone(name, pretrained=False, **kwargs).eval()


# --- networks ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', BACKBONES)
def test_listed_networks_give_maps(name):
    net = meta(name)
    out = net(torch.empty(2, 3, 224, 224, device='meta'))
    side = 13 if name == 'squeezenet1_1' else 7
    assert out.shape == (2, net.n_features, side, side)
    assert net.name == name and 224//net.stride in (side, side + 1) and len(net.mean) == len(net.std) == 3
    assert meta(**json.loads(json.dumps(net.config))).config == net.config


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'resnext50_32x4d'])
@pytest.mark.parametrize('strides, sides', [((2, 2), (14, 7)), ((1, 2), (28, 14)), ((2, 1), (14, 14)),
                                            ((1, 1), (28, 28))])
def test_last_strides(name, strides, sides):
    net, seen = meta(name, last_strides=strides), []
    net.layer3.register_forward_hook(lambda m, args, out: seen.append(out.shape[-1]))
    out = net(torch.empty(1, 3, 224, 224, device='meta'))
    assert (*seen, out.shape[-1]) == sides and net.stride == 224//sides[1]
    assert net.state_dict().keys() == meta(name).state_dict().keys()


def test_names_are_those_of_torchvision():
    own, theirs = meta('resnet50').state_dict(), get_model('resnet50', weights=None).state_dict()
    assert list(own) == [k for k in theirs if not k.startswith('fc.')]
    assert meta('resnet50').get_submodule('layer4.1.conv2').weight.shape == (512, 512, 3, 3)


@pytest.mark.parametrize('name', ['resnet18', 'googlenet', 'squeezenet1_1'])
def test_map_and_classifier_give_the_scores_of_torchvision(name):
    extra = {'aux_logits': False, 'transform_input': True, 'init_weights': False} if name == 'googlenet' else {}
    torch.manual_seed(0)
    whole = get_model(name, weights=None, **extra).eval()
    net = create_backbone(name, pretrained=False).eval()
    load_weights(net, whole.state_dict(), 'memory')
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        if name == 'squeezenet1_1': scores = whole.classifier(net(x)).flatten(1)
        else: scores = whole.fc(net(x).mean((-2, -1)))
        torch.testing.assert_close(scores, whole(x))


@pytest.mark.parametrize('cls, name, parameters', [(BNInception, 'bn_inception', 11_295_240),
                                                   (BVLCGoogLeNet, 'bvlc_googlenet', 6_998_552)])
def test_own_networks_classify_with_the_same_features(cls, name, parameters):
    torch.manual_seed(0)
    whole, net = cls().eval(), create_backbone(name, pretrained=False).eval()
    assert count_parameters(whole) == parameters
    load_weights(net, whole.state_dict(), 'memory')
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        head = whole.last_linear if name == 'bn_inception' else whole.fc
        torch.testing.assert_close(head(net(x).mean((-2, -1))), whole(x))


def test_response_norm_is_that_of_torch():
    torch.manual_seed(0)
    x, norm = 30*torch.randn(2, 7, 5, 5), ResponseNorm(7)
    torch.testing.assert_close(norm(x), nn.LocalResponseNorm(5, alpha=1e-4, beta=.75, k=1.)(x))
    assert not norm.state_dict()
    big = 20*x
    torch.testing.assert_close(norm.half()(big.half()).float(), norm.float()(big), rtol=2e-2, atol=.5)


def test_bn_inception_takes_rgb_and_turns_it_into_bgr():
    net, seen = random_net('bn_inception'), []
    net.conv1_7x7_s2.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    rgb = torch.rand(1, 3, 32, 32)
    net((rgb - torch.tensor(net.mean)[:, None, None])/torch.tensor(net.std)[:, None, None])
    expected = 255*rgb.flip(1) - torch.tensor([104., 117, 128])[:, None, None]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-3)


def test_bn_inception_names_and_width():
    keys = set(meta('bn_inception').state_dict())
    for name in ('conv1_7x7_s2', 'conv2_3x3_reduce', 'inception_3a_1x1', 'inception_3c_double_3x3_2',
                 'inception_4e_3x3', 'inception_5b_pool_proj'):
        assert {f'{name}.weight', f'{name}.bias', f'{name}_bn.weight', f'{name}_bn.running_var'} <= keys
    assert not any(k.startswith(('inception_3c_1x1', 'inception_4e_pool_proj')) for k in keys)


@pytest.mark.parametrize('copier', [deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize('name', ['resnet18', 'squeezenet1_1', 'test_vit'])
def test_copies_are_feature_networks_too(name, copier):
    net = random_net(name)
    other = copier(net)
    x = torch.randn(1, 3, 160, 160)
    assert torch.equal(other(x), net(x)) and other.config == net.config
    next(other.parameters()).data.zero_()
    assert next(net.parameters()).abs().sum() > 0


# --- timm -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['test_vit', 'test_vit2', 'test_convnext', 'test_efficientnet', 'test_resnet',
                                  'test_mambaout', 'swin_tiny_patch4_window7_224', 'swinv2_tiny_window8_256',
                                  'vit_small_patch14_reg4_dinov2', 'deit_tiny_distilled_patch16_224', 'selecsls42b',
                                  'mobilenetv3_small_100', 'resnet50.a1_in1k'])
def test_timm_networks_give_maps(name):
    net = meta(name)
    size = net.pretrained_cfg['input_size'][-1]
    assert net(torch.empty(2, 3, size, size, device='meta')).shape == (2, net.n_features, *[-(-size//net.stride)]*2)
    assert meta(**net.config).config == net.config
    assert net.mean == tuple(net.pretrained_cfg['mean']) and net.std == tuple(net.pretrained_cfg['std'])


def test_vit_map_is_its_patch_tokens_in_reading_order():
    net = random_net('test_vit')
    x = torch.randn(1, 3, 160, 160)
    tokens = net.forward_features(x)[:, net.num_prefix_tokens:]
    assert torch.equal(net(x)[0, :, 2, 7], tokens[0, 2*10 + 7])


def test_swin_map_has_channels_first():
    net = random_net('swin_tiny_patch4_window7_224').double()
    x = torch.randn(1, 3, 224, 224).double()
    with torch.no_grad(): assert torch.equal(net(x)[0, :, 1, 5], net.forward_features(x)[0, 1, 5])


def test_timm_networks_without_a_map_are_named():
    net = meta('levit_128')
    with pytest.raises(ValueError, match=r'levit_128.*no feature map: \(1, 16, 384\) for .* \(224, 224\) pixels'):
        net(torch.empty(1, 3, 224, 224, device='meta'))


def test_unknown_names_and_tags():
    with pytest.raises(ValueError, match='.resnet51.*did you mean.*resnet50.*Known are.*bvlc_googlenet'):
        create_backbone('resnet51')
    with pytest.raises(ValueError, match='bogus'): create_backbone('test_vit', weights='bogus')
    with pytest.raises(ValueError, match='last_strides'): create_backbone('googlenet', False, last_strides=(1, 2))
    with pytest.raises(ValueError, match='last_strides'): create_backbone('test_resnet', False, last_strides=(1, 2))
    with pytest.raises(ValueError, match='each 1 or 2'): create_backbone('resnet18', False, last_strides=(1, 3))


def test_weights_that_timm_cannot_get(monkeypatch):
    name = 'swinv2_cr_tiny_224'
    with pytest.raises(ValueError, match=f'{name}: No pretrained weights'): create_backbone(name)
    def offline(*args, **kwargs): raise FileNotFoundError('not in the cache\nand more lines')
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(OSError, match=r'test_vit: no weights \(not in the cache\); get model.safetensors of '
                       r'https://huggingface.co/timm/test_vit.r160_in1k by other means and pass weights=FILE'):
        create_backbone('test_vit')


def test_timm_tag_is_asked_for_by_name(monkeypatch):
    asked = []
    create = timm.create_model
    def fake(name, pretrained, **kwargs):
        asked.append((name, pretrained))
        return create(name, pretrained=False, **kwargs)
    monkeypatch.setattr(timm, 'create_model', fake)
    net = create_backbone('test_vit', weights='r160_in1k')
    assert net.config['name'] == 'test_vit.r160_in1k' and net.pretraining == 'timm test_vit.r160_in1k, apache-2.0'
    create_backbone('test_vit')
    create_backbone('test_vit', pretrained=False)
    assert asked == [('test_vit.r160_in1k', True), ('test_vit', True), ('test_vit', False)]


@pytest.mark.parametrize('make', [resnet18, partial(googlenet, init_weights=False), densenet121, mobilenet_v3_small,
                                  partial(timm.create_model, 'test_vit')])
def test_a_classifier_becomes_a_backbone(make):
    classifier, x = make().eval(), torch.rand(1, 3, 160, 160)
    net = as_backbone(classifier)
    with torch.no_grad(): assert net(x).shape[1:] == (net.n_features, 160//net.stride, 160//net.stride)
    own, theirs = list(net.parameters()), list(classifier.parameters())
    assert classifier(x).shape == (1, 1000) and len(own) < len(theirs)
    assert all(a is b for a, b in zip(own, theirs, strict=False))
    assert as_backbone(net) is net


def test_a_classifier_without_its_head():
    headless = resnet18()
    headless.fc = nn.Identity()
    assert as_backbone(headless).n_features == 512
    with pytest.raises(ValueError, match='Linear: no feature map known'): as_backbone(nn.Linear(3, 2))


def test_the_normalization_is_that_of_batches():
    net = meta('resnet18')
    assert (net.mean, net.std) == (IMAGENET_MEAN, IMAGENET_STD)


# --- weights ----------------------------------------------------------------------------------------------------------

def same(a, b): return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize('pack', [lambda s: s, lambda s: {'state_dict': s}, lambda s: {'model': s, 'epoch': 3},
                                  lambda s: {'model_state_dict': s, 'optimizer': {'lr': .1}},
                                  lambda s: {'state_dict': {f'module.{k}': v for k, v in s.items()}},
                                  lambda s: {**{f'backbone.{k}': v for k, v in s.items()}, 'head.x': torch.ones(3)},
                                  lambda s: {**s, 'fc.weight': torch.zeros(7, 512), 'fc.bias': torch.zeros(7)}])
def test_pth_files(tmp_path, pack):
    net = random_net()
    torch.save(pack(net.state_dict()), tmp_path/'a.pth')
    assert same(net, create_backbone('resnet18', weights=tmp_path/'a.pth'))
    assert same(net, create_backbone('resnet18', pretrained=False, weights=str(tmp_path/'a.pth')))


def test_half_precision_safetensors_become_float32(tmp_path):
    net = random_net('squeezenet1_1')
    save_file({k: v.half() for k, v in net.state_dict().items()}, tmp_path/'a.safetensors')
    other = create_backbone('squeezenet1_1', weights=tmp_path/'a.safetensors')
    assert all(p.dtype == torch.float32 for p in other.parameters()) and same(deepcopy(net).half().float(), other)


def test_caffe_batch_norms_of_shape_1xc_fit(tmp_path):
    net = random_net('bn_inception')
    torch.save({k: v[None] if '_bn.' in k and v.ndim else v for k, v in net.state_dict().items()
                if not k.endswith('num_batches_tracked')}, tmp_path/'a.pth')
    assert same(net, create_backbone('bn_inception', weights=tmp_path/'a.pth'))


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = random_net().state_dict()
    def refused(changed, words):
        torch.save(changed, tmp_path/'a.pth')
        with pytest.raises(ValueError, match=words): create_backbone('resnet18', weights=tmp_path/'a.pth')
    refused({k: v for k, v in state.items() if 'layer4.1' not in k},
            r'a\.pth.*resnet18, 10 keys: layer4\.1\.conv1.weight missing')
    refused({**state, 'conv1.weight': torch.zeros(64, 3, 3, 3)},
            r'1 keys: conv1\.weight is \(64, 3, 3, 3\), not \(64, 3, 7, 7\)')
    refused({**state, 'layer9.weight': torch.zeros(1)}, r'1 keys: layer9\.weight unknown')
    refused({}, 'no tensors')
    refused([1, 2], 'no tensors')


class Evil:
    def __reduce__(self): return print, ('code in a file of weights was run',)


def test_files_that_are_no_weights(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match='gone.pth'): read_weights(tmp_path/'gone.pth')
    torch.save({'x': Evil()}, tmp_path/'evil.pth')
    with pytest.raises(ValueError, match='evil.pth'): read_weights(tmp_path/'evil.pth')
    assert 'was run' not in capsys.readouterr().out
    torch.save(random_net().state_dict(), tmp_path/'whole.pth')
    save_file(random_net().state_dict(), tmp_path/'whole.safetensors')
    for whole in (tmp_path/'whole.pth', tmp_path/'whole.safetensors'):
        for size in (0, 5, 5000):
            short = whole.with_stem('short')
            short.write_bytes(whole.read_bytes()[:size])
            with pytest.raises(ValueError, match=short.name): create_backbone('resnet18', weights=short)


def test_names_of_published_weights(monkeypatch):
    asked, state = [], {k: v for k, v in get_model('resnet50', weights=None).state_dict().items()}
    monkeypatch.setattr(registry, 'read_weights', lambda source: asked.append(source) or state)
    for weights in (None, 'IMAGENET1K_V1', 'IMAGENET1K_V2', 'DEFAULT', ResNet50_Weights.IMAGENET1K_V2):
        net = create_backbone('resnet50', weights=weights)
        assert net.pretraining == f'torchvision {weights or "IMAGENET1K_V1"}'
    v1, v2 = (ResNet50_Weights[f'IMAGENET1K_{v}'].url for v in ('V1', 'V2'))
    assert asked == [v1, v1, v2, v2, v2]
    with pytest.raises(ValueError, match='IMAGENET1K_V1, IMAGENET1K_V2'): create_backbone('resnet50', weights='V3')
    for name in ('bn_inception', 'bvlc_googlenet'):
        with pytest.raises(ValueError, match=f'{name} has no weights.*pass weights='): create_backbone(name)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def test_addresses_are_fetched_once_and_checked(tmp_path, monkeypatch):
    site, net = tmp_path/'site', random_net()
    site.mkdir()
    save_file(net.state_dict(), site/'a.safetensors')
    torch.save(net.state_dict(), site/'b-00000000.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f'http://127.0.0.1:{server.server_port}'
    try:
        assert same(net, create_backbone('resnet18', weights=f'{root}/a.safetensors'))
        with pytest.raises(OSError, match='b-00000000.pth.*hash'): read_weights(f'{root}/b-00000000.pth')
        with pytest.raises(OSError, match='gone.pth.*404.*weights=FILE'): read_weights(f'{root}/gone.pth')
    finally: server.shutdown()
    assert same(net, create_backbone('resnet18', weights=f'{root}/a.safetensors'))


# --- pooling ----------------------------------------------------------------------------------------------------------

GOLDEN = {'S': (1.5, 1.25), 'M': (3., 4.), 'G': (2.080083823, 2.532898510), 'avg+max': (4.5, 5.25),
          'concat': (1.5, 1.25, 3., 4.)}


@pytest.mark.parametrize('name', POOLS)
def test_pooling_golden_values(name):
    maps = torch.tensor([[[[0., 1], [2, 3]], [[4, 0], [0, 1]]]], dtype=torch.float64)
    expected = torch.tensor([GOLDEN[name]], dtype=torch.float64)
    torch.testing.assert_close(create_pool(name)(maps), expected, rtol=0, atol=1e-8)


def test_concatenated_pooling_in_a_network(tmp_path):
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), pool='concat', dim=None).eval()
    assert net.dim == 2*net.backbone.n_features and net(torch.randn(2, 3, 32, 32)).shape == (2, net.dim)
    again = load_model(save_model(net, tmp_path/'net'))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(again(x), net(x)) and again.dim == net.dim
    wide = RetrievalNet(create_backbone('test_resnet', pretrained=False), pool='concat', dim=7, init='kaiming')
    assert wide.head.linear.in_features == net.dim and not wide.head.linear.bias.any()
    with pytest.raises(ValueError, match="init.*'xavier'"): RetrievalNet(net.backbone, init='xavier')


def test_unknown_pooling():
    with pytest.raises(ValueError, match="'Q'.*S, M, G, avg\\+max"): create_pool('Q')


sides = st.integers(1, 4)
maps_strategy = arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(1, 3), sides, sides),
                       elements=st.floats(-100, 100, width=32) | st.just(0.))


@settings(max_examples=60, deadline=None)
@given(maps_strategy)
def test_gem_is_the_signed_root_and_its_gradient_is_finite(a):
    x = torch.from_numpy(a).double().requires_grad_()
    out = create_pool('G')(x)
    s = (a.astype(np.float64)**3).mean((2, 3))
    np.testing.assert_allclose(out.detach(), np.cbrt(s), rtol=1e-9, atol=1e-12)
    out.sum().backward()
    assert x.grad.isfinite().all() and (x.grad[torch.from_numpy(s == 0)] == 0).all()


def test_gem_gradient_where_it_is_smooth():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(create_pool('G'), x)


@pytest.mark.parametrize('name', POOLS)
def test_poolings_of_float16_maps_do_not_overflow(name):
    x = torch.full((2, 3, 7, 7), 500.).half().requires_grad_()
    out = create_pool(name)(x)
    assert out.dtype == torch.float16 and out.isfinite().all()
    out.float().sum().backward()
    assert x.grad.isfinite().all() and torch.allclose(create_pool(name)(x.float()), out.float(), rtol=1e-3)


@pytest.mark.parametrize('name', POOLS)
def test_an_empty_map_trains_without_nan(name):
    net = RetrievalNet(random_net(), pool=name, dim=8)
    for p in net.backbone.layer4.parameters(): p.data.zero_()
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


# --- RetrievalNet, Pooled ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kwargs, width', [({}, 512), ({'dim': 16, 'pool': 'avg+max'}, 16),
                                           ({'dim': None, 'pool': 'M'}, 512),
                                           ({'dim': 8, 'layer_norm': True, 'dropout': .5, 'bias': False}, 8)])
def test_embeddings_are_unit(kwargs, width):
    net = RetrievalNet(random_net(), **kwargs).eval()
    out = net(torch.randn(3, 3, 64, 64))
    assert out.shape == (3, width)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))
    groups = net.groups()
    assert len(groups) == 2 and sorted(map(id, sum(groups, []))) == sorted(map(id, net.parameters()))


def test_head_options():
    backbone, x = random_net(), torch.randn(2, 3, 64, 64)
    normed = RetrievalNet(backbone, pool='M', dim=4, layer_norm=True, bias=False).eval()
    expected = F.normalize(F.linear(F.layer_norm(backbone(x).amax((2, 3)), (512,)), normed.head.linear.weight), dim=1)
    torch.testing.assert_close(normed(x), expected)
    assert [*normed.head.state_dict()] == ['linear.weight']


def test_pooled_is_a_descriptor():
    backbone, x = random_net(), torch.randn(2, 3, 64, 64)
    out = Pooled(backbone, ('S', 'G', 'avg+max'))(x)
    assert list(out) == ['S', 'G', 'avg+max']
    for name, v in out.items(): torch.testing.assert_close(v, F.normalize(create_pool(name)(backbone(x)), dim=1))


# --- saved models -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [lambda: RetrievalNet(random_net(last_strides=(1, 2)), 'G', dim=6, layer_norm=True),
                                  lambda: RetrievalNet(random_net('test_vit'), dim=None, dropout=.2),
                                  lambda: Pooled(random_net('squeezenet1_1'), ('S', 'M'))])
def test_saved_models_come_back(tmp_path, make):
    model = make().eval()
    path = save_model(model, tmp_path/'deep'/'model.v1', {'train/step': torch.tensor(3)}, epoch=2)
    assert sorted(p.name for p in path.parent.iterdir()) == ['model.v1.json', 'model.v1.safetensors']
    again, x = load_model(tmp_path/'deep'/'model.v1'), torch.randn(1, 3, 160, 160)
    assert type(again) is type(model) and again.config == model.config and not again.training
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    tensors, record = read_tensors(path)
    assert tensors['train/step'] == 3 and record['epoch'] == 2 and read_record(path) == record


def test_tied_and_strided_tensors_are_saved(tmp_path):
    model = RetrievalNet(random_net().to(memory_format=torch.channels_last), dim=8)
    model.head.linear.weight = nn.Parameter(torch.randn(512, 8).t())
    weight = model.head.linear.weight
    path = save_model(model, tmp_path/'m', {'train/mean': weight.detach()})
    assert torch.equal(load_model(path).head.linear.weight, weight)


def test_a_failed_save_leaves_the_former_one(tmp_path, monkeypatch):
    model = RetrievalNet(random_net('squeezenet1_1'), dim=8).eval()
    path = save_model(model, tmp_path/'m', epoch=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    def full(tensors, file, *args):
        open(file, 'wb').write(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(saving, 'save_tensors', full)
    with pytest.raises(OSError, match='disk full'): save_model(model, path, epoch=2)
    with pytest.raises(TypeError): save_model(model, path, epoch={1, 2})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def with_record(source, path, record):
    "Copy a saved model with another record in its header."
    save_file(load_file(source), path, {'record': record})


def test_files_that_are_no_saved_models(tmp_path):
    good = save_model(RetrievalNet(random_net('squeezenet1_1'), dim=8), tmp_path/'good')
    record = read_record(good)
    with pytest.raises(FileNotFoundError, match='gone'): load_model(tmp_path/'gone')
    bad = tmp_path/'bad.safetensors'
    def refused(words):
        with pytest.raises(ValueError, match=words) as e: load_model(bad)
        assert '\n' not in str(e.value)
    for content in ('', '{', '[]', '{}', '"class"'):
        with_record(good, bad, content)
        refused('bad.safetensors: (not a|record: not JSON)')
    with_record(good, bad, json.dumps({**record, 'config': {**record['config'], 'dim': 9}}))
    refused('bad.safetensors: tensors do not fit the record.*head.linear.weight')
    with_record(good, bad, json.dumps({**record, 'config': {**record['config'], 'colour': 'red'}}))
    refused('bad.safetensors.*colour')
    bad.write_bytes(good.read_bytes()[:9999])
    refused('bad.safetensors: not a whole')
    save_file({'a': torch.zeros(2)}, bad)
    refused('bad.safetensors: not a model')
    save_file({'a': torch.zeros(2)}, bad, {'record': json.dumps(record)})
    refused('bad.safetensors: tensors do not fit')


def test_the_copy_of_the_record_is_for_people_only(tmp_path):
    path = save_model(RetrievalNet(random_net('squeezenet1_1'), dim=8), tmp_path/'m', epoch=2)
    assert json.loads(path.with_suffix('.json').read_text()) == read_record(path)
    path.with_suffix('.json').unlink()
    assert read_record(path)['epoch'] == 2 and load_model(path).config['dim'] == 8


@pytest.mark.parametrize('name', ['os.system', 'torch.nn.Linear', 'fgir.backbones.nets.create_backbone',
                                  'fgir.backbones.nets.nn.Linear', 'fgir.backbones.Tensor', 'fgir.backbones.nets.nn',
                                  'fgir.backbones.BNInception', 'fgir.nosuch.Net', 'fgirx.Net', '', None])
def test_only_models_of_fgir_are_built(tmp_path, name):
    good = save_model(RetrievalNet(random_net('squeezenet1_1'), dim=8), tmp_path/'good')
    bad = tmp_path/'bad.safetensors'
    with_record(good, bad, json.dumps({**read_record(good), 'class': name}))
    with pytest.raises(ValueError, match='bad.safetensors'): load_model(bad)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match='Linear'): save_model(nn.Linear(2, 2), tmp_path/'m')
    with pytest.raises(ValueError, match="'/'"):
        save_model(RetrievalNet(random_net()), tmp_path/'m', {'step': torch.ones(1)})
    assert not list(tmp_path.iterdir())


# --- counts -----------------------------------------------------------------------------------------------------------

class CGDModel(nn.Module):
    "Parameters and layers of the CGD model 'SG' with 1536 dimensions, as CGD counts them."
    def __init__(self, backbone, n_classes):
        super().__init__()
        self.backbone = backbone
        self.reductions = nn.ModuleList(nn.Linear(2048, 768, bias=False) for _ in range(2))
        self.classifier = nn.Sequential(nn.BatchNorm1d(2048), nn.Linear(2048, n_classes))

    def forward(self, x):
        pooled = self.backbone(x).mean((-2, -1))
        return [r(pooled) for r in self.reductions], self.classifier(pooled)


PROGRAM_TABLE = {('resnet50', 98): (26_858_658, 10_644_007_424),
              ('resnet50', 100): (26_862_756, 10_644_015_616),
              ('resnet50', 11318): (49_848_438, 10_689_964_544),
              ('resnet50', 3997): (34_847_709, 10_659_977_728),
              ('resnext50_32x4d', 98): (26_330_530, 10_839_894_528),
              ('resnext50_32x4d', 100): (26_334_628, 10_839_902_720),
              ('resnext50_32x4d', 11318): (49_320_310, 10_885_851_648),
              ('resnext50_32x4d', 3997): (34_319_581, 10_855_864_832)}


@pytest.mark.parametrize('name, n_classes', PROGRAM_TABLE)
def test_table_of_the_program(name, n_classes):
    with torch.device('meta'): model = CGDModel(meta(name, last_strides=(1, 2)), n_classes)
    assert (count_parameters(model), count_operations(model)) == PROGRAM_TABLE[name, n_classes]


@pytest.mark.parametrize('name, kwargs, macs', [('resnet50', {'last_strides': (1, 2)}, 10_599_579_648),
                                                ('resnext50_32x4d', {'last_strides': (1, 2)}, 10_784_227_328),
                                                ('bn_inception', {}, None), ('test_efficientnet', {}, None)])
def test_convolutions_are_counted_as_torch_counts_them(name, kwargs, macs):
    net, size = meta(name, **kwargs), 160 if name.startswith('test') else 224
    with FlopCounterMode(display=False) as counter: net(torch.empty(1, 3, size, size, device='meta'))
    ours = count_operations(net, size, kinds=['conv'])
    assert 2*ours == counter.get_flop_counts()['Global'][torch.ops.aten.convolution] and macs in (None, ours)


def test_counting_leaves_the_model_alone():
    net = random_net()
    before = deepcopy(net.state_dict())
    count_operations(net.train(), 64)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules()) and next(net.parameters()).device.type == 'cpu'


# --- real weights -----------------------------------------------------------------------------------------------------

@pytest.mark.data
@needs_weights
@pytest.mark.parametrize('name', ['bvlc_googlenet', 'squeezenet1_1'])
def test_real_weights_fit_strictly(name):
    file = WEIGHTS/f'{name}.safetensors'
    net, state = create_backbone(name, weights=file), load_file(file)
    assert all(torch.equal(v, state[k].float()) for k, v in net.state_dict().items())
    whole = BVLCGoogLeNet() if name == 'bvlc_googlenet' else get_model(name, weights=None)
    whole.load_state_dict(state, strict=True)


@pytest.mark.parametrize('was', ['fgir.cgd.CGDNet', 'fgir.classify.Classifier', 'fgir.cfga.CFGA', 'fgir.cfga.Describe',
                                 'fgir.rerank.Views', 'fgir.features.ColorHistogram', 'fgir.backbones.Pooled',
                                 'fgir.backbones.RetrievalNet'])
def test_classes_that_records_of_0_1_name_are_found(was):
    where, _, name = name_today(was).rpartition('.')
    cls = getattr(import_module(where), name)
    assert cls.__name__ == name and cls.class_path == name_today(was)


def test_a_model_that_0_1_saved_is_loaded(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(CGDNet, 'class_path', 'fgir.cgd.CGDNet')
        path = save_model(CGDNet(create_backbone('test_resnet', pretrained=False), 'SM', 8), tmp_path/'net')
    assert read_record(path)['class'] == 'fgir.cgd.CGDNet' and type(load_model(path)) is CGDNet
