"Networks of timm as backbones, beside timm itself: one small member a family; benchmarks/towers.py has them all."
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

from fgir.backbones import registry, towers
from fgir.backbones.catalog import SHORTLIST, find_backbones, list_backbones
from fgir.backbones.nets import Pooled, RetrievalNet
from fgir.backbones.registry import BACKBONES, as_backbone, create_backbone
from fgir.backbones.saving import build_model, load_model, save_model
from fgir.data.transforms import get_transforms, native_name, transform_to_test
from fgir.features.descriptors import check_takes, cut_for
from fgir.papers.cfga import CFGA, Describe, default_layers

SPEC = importlib.util.spec_from_file_location('towers_benchmark', Path(__file__).parents[1]/'benchmarks'/'towers.py')
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)

SMALL = 'depth=2,embed_dim=32,num_heads=2'
FAMILIES = [
    'test_byobnet', 'test_convnext', 'test_efficientnet', 'test_mambaout', 'test_nfnet', 'test_resnet', 'test_vit',
    'test_vit4', 'test_vit_relpos', f'beit_base_patch16_224({SMALL})', f'cait_xxs24_224({SMALL})',
    f'deit_tiny_distilled_patch16_224({SMALL})', f'eva02_tiny_patch14_224({SMALL})',
    f'vit_base_patch16_siglip_224({SMALL})', f'vit_xsmall_patch16_clip_224({SMALL})',
    f'vit_small_patch14_reg4_dinov2({SMALL})', f'xcit_nano_12_p16_224({SMALL})', 'mobilenetv3_small_050',
    'regnetx_002', 'pit_ti_224']


@pytest.mark.parametrize('name', FAMILIES)
def test_a_family_is_that_of_timm(name):
    row = BENCHMARK.check(name)
    assert row['native'] < 1e-5 and row['as'] < 1e-5
    assert row['map'] == 'none' or row['CFGA']


# --- what they give ---------------------------------------------------------------------------------------------------

def test_a_map_pooled_after_its_norm_keeps_the_trained_norm():
    """Networks whose norm comes after an average had a fresh one instead, for which these numbers made no difference."""
    settings = dict(architecture='beit_base_patch16_224', model_args=dict(depth=1, embed_dim=32, num_heads=2),
                    pretrained_cfg=timm.get_pretrained_cfg('beit_base_patch16_224').to_dict())
    net, x = create_backbone('beit_base_patch16_224', False, settings=settings).eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = net(x, ['native'])[1]['native']
        net.fc_norm.weight.mul_(2)
        torch.testing.assert_close(net(x, ['native'])[1]['native'], 2*before - net.fc_norm.bias)


def test_vectors_of_a_network():
    net, x = create_backbone('test_vit', False).eval(), torch.randn(2, 3, 160, 160)
    pooled = Pooled(net, ['native', 'cls', 'S'])
    with torch.no_grad(): found, alone = pooled(x), Pooled(net)(x)
    assert list(found) == ['native', 'cls', 'S'] and list(alone) == ['native']
    assert torch.equal(alone['native'], found['native']) and torch.equal(found['cls'], found['native'])
    assert not torch.allclose(found['S'], found['native'])
    torch.testing.assert_close(found['native'].norm(dim=1), torch.ones(2))


@pytest.mark.parametrize('name', ['squeezenet1_1', 'resnet18'])
def test_the_native_vector_of_torchvision_is_the_mean(name):
    net, x = create_backbone(name, False).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad(): found = Pooled(net, ['native', 'S'])(x)
    assert torch.equal(found['native'], found['S']) and net.vectors == {'native': net.n_features}


@pytest.mark.parametrize('pool, says', [
    ('cls', "pool 'cls': test_resnet.r160_in1k has native, S, M, G, avg.max, concat"), ('projection', 'has native, S'),
    ('Q', 'unknown pooling')])
def test_vectors_that_a_network_does_not_have(pool, says):
    net = create_backbone('test_resnet', False)
    for make in (lambda: Pooled(net, [pool]), lambda: RetrievalNet(net, pool)):
        with pytest.raises(ValueError, match=says): make()


def test_a_network_without_a_map_gives_its_vector():
    with torch.device('meta'): net = create_backbone('levit_128s', False).eval()
    x = torch.empty(1, 3, 224, 224, device='meta')
    assert Pooled(net)(x)['native'].shape == (1, 384)
    with pytest.raises(ValueError, match='levit_128s.* gives no feature map'): Pooled(net, ['native', 'S'])(x)


def test_a_trained_native_vector_is_saved_and_described(tmp_path):
    net = RetrievalNet(create_backbone('test_convnext', False), 'native', dim=8).eval()
    again, x = load_model(save_model(net, tmp_path/'net')), torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
        torch.testing.assert_close(Describe(net, ['embedding'])(x)['embedding'], net(x))
    net.train()(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_copies_of_classifiers_share_their_layers():
    for name in ('test_convnext', 'test_vit3', 'test_efficientnet'):
        classifier = timm.create_model(name).eval()
        net = as_backbone(classifier)
        own, theirs = net.state_dict(keep_vars=True), classifier.state_dict(keep_vars=True)
        assert own and all(v is theirs[k] for k, v in own.items())
        assert classifier(torch.randn(1, 3, 160, 160)).shape == (1, 1000) and as_backbone(net) is net


# --- sizes ------------------------------------------------------------------------------------------------------------

def test_other_sizes_where_the_network_can():
    net = create_backbone('test_vit', False).eval()
    with torch.no_grad(): assert net(torch.randn(1, 3, 64, 96)).shape == (1, 64, 4, 6)
    with pytest.raises(ValueError, match='takes images of 160 × 160 pixels, not 100 × 100') as e:
        net(torch.randn(1, 3, 100, 100))
    assert '\n' not in str(e.value)


def test_a_fixed_size_is_refused_before_any_work():
    with torch.device('meta'): net = create_backbone('mixer_s32_224', False)
    check_takes(net, *cut_for(Pooled(net)))
    with pytest.raises(ValueError, match='takes images of 224 × 224 pixels, not 96 × 96'): check_takes(net, 'squash', 96)


# --- transforms -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['vit_small_patch14_dinov2.lvd142m', 'test_convnext', 'vit_base_patch16_siglip_224',
                                  'resnet50.tv2_in1k', 'efficientnet_b0', 'inception_v4'])
def test_native_transforms_are_those_of_timm(name):
    cfg = timm.get_pretrained_cfg(name).to_dict()
    rng, config = np.random.default_rng(0), resolve_data_config(pretrained_cfg=cfg)
    own, side = create_transform(**config, is_training=False, normalize=False), config['input_size'][-1]
    tfms = native_name(config['crop_mode'], config['crop_pct'], config['interpolation'])
    for h, w in (333, 517), (900, 201), (97, 160):
        image = Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8))
        np.testing.assert_array_equal(transform_to_test(tfms, side)(image), own(image))


def test_native_transforms_of_torchvision():
    assert registry._native_of('resnet50', None) == 'native center 0.875 bilinear'
    assert transform_to_test(registry._native_of('resnet50', 'IMAGENET1K_V2'), 224).transforms[0].size == [232]


def test_which_transform_a_network_gets():
    net = create_backbone('test_vit', False)
    assert cut_for(Pooled(net)) == cut_for(net, 'native') == ('native center 0.95 bicubic', 160)
    assert cut_for(net) == ('cgd', 224) and cut_for(Pooled(net), 'squash', 96) == ('squash', 96)
    assert cut_for(Pooled(create_backbone('resnet18', False))) == ('native center 0.875 bilinear', 224)
    with pytest.raises(ValueError, match="'native' cannot be made for Linear"): cut_for(torch.nn.Linear(1, 1), 'native')
    for name in ('native', 'native top 1 bicubic', 'native center'):
        with pytest.raises(ValueError, match='tfms'): get_transforms(name)


# --- names ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    "A folder as timm saves networks for the hub."
    torch.manual_seed(0)
    net = timm.create_model('test_vit', num_classes=7, img_size=96)
    save_for_hf(net, tmp_path/'hub', safe_serialization=True)
    return tmp_path/'hub', net.eval()


def test_a_network_of_a_folder(folder, tmp_path, monkeypatch):
    path, own = folder
    net, x = create_backbone(f'local-dir:{path}').eval(), torch.randn(1, 3, 96, 96)
    with torch.no_grad(): assert torch.equal(net(x, ['native'])[1]['native'], own.forward_head(own.forward_features(x), True))
    assert net.native_size == (96, 96) and net.pretraining.startswith('timm local-dir:')
    saved = save_model(RetrievalNet(net, 'native', dim=4).eval(), tmp_path/'net')
    (path/'config.json').unlink()
    again = load_model(saved)
    with torch.no_grad(): assert torch.equal(again.backbone(x), net(x)) and again.backbone.name == net.name


def test_a_network_of_the_hub(folder, monkeypatch):
    path, own = folder
    def download(repo, file, **kwargs):
        assert repo == 'somebody/net'
        return str(path/file)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', lambda repo=None, filename=None, repo_id=None, **kwargs:
                        download(repo or repo_id, filename, **kwargs))
    net = create_backbone('hf-hub:somebody/net')
    assert net.name == 'hf-hub:somebody/net' and torch.equal(net.patch_embed.proj.weight, own.patch_embed.proj.weight)
    assert net.config['settings']['architecture'] == 'test_vit' and json.dumps(net.config)


def test_a_strangers_file_makes_nobody_ask_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(towers, '_settings_of', lambda name: pytest.fail('asked'))
    config = dict(backbone=dict(name='hf-hub:somebody/net', last_strides=None, head=True), pool='S', dim=8)
    record = {'class': 'fgir.backbones.RetrievalNet', 'config': config}
    with pytest.raises(ValueError, match='hf-hub:somebody/net, which is not fetched'): build_model(record)
    cfg = dict(timm.get_pretrained_cfg('test_vit').to_dict(), file='/etc/passwd')
    args = dict(checkpoint_path='/etc/passwd', pretrained=True)
    config['backbone']['settings'] = dict(architecture='test_vit', pretrained_cfg=cfg, model_args=args)
    assert build_model(record).backbone.name == 'hf-hub:somebody/net'


@pytest.mark.parametrize('name, says', [
    ('test_vit', 'no weights .*get model.safetensors of https://huggingface.co/timm/test_vit.r160_in1k by other means'),
    ('hf-hub:somebody/net', 'put config.json and model.safetensors of https://huggingface.co/somebody/net into a folder '
                            'and name it local-dir:FOLDER'),
    ('local-dir:/no/such/folder', 'Config file not found')])
def test_offline_one_line_says_what_to_put_where(name, says, monkeypatch, tmp_path):
    def no_name(*args): raise OSError('Name or service not known')
    monkeypatch.setattr(towers.socket, 'getaddrinfo', no_name)
    monkeypatch.setattr(towers, 'getproxies', dict)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(OSError, match=says) as e: create_backbone(name)
    assert '\n' not in str(e.value)


def test_the_record_names_tag_and_license(folder):
    assert create_backbone('test_vit', False).pretraining == 'none: random weights'
    assert towers.build_timm('test_vit', False).pretraining == 'timm test_vit.r160_in1k, apache-2.0'


# --- layers of CFGA ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, layers', [
    ('mobilenetv4_conv_small_035', None), ('gernet_s', 'final_conv'), ('repvgg_a0', 'stages.3'), ('vgg11', 'features.1')])
def test_default_layers_are_the_last(name, layers):
    with torch.device('meta'): net = create_backbone(name, False)
    chosen, plus = default_layers(net)
    order = [n for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d) and m.groups == 1]
    assert plus and order.index(plus[0]) >= .8*len(order) - 4
    if layers: assert plus[-1].startswith(layers)


@pytest.mark.parametrize('name', ['test_nfnet', 'resnetv2_50x1_bit', 'efficientnet_cc_b0_4e'])
def test_computed_weights_have_no_default_layers(name):
    with torch.device('meta'): net = create_backbone(name, False)
    for make in (lambda: CFGA(net), lambda: Describe(net, ['layers']), lambda: Describe(net)):
        with pytest.raises(ValueError, match=f'{name}.* has no default layers for CFGA'): make()
    Describe(net, ['scda_norm_each'])


# --- the list ---------------------------------------------------------------------------------------------------------

def test_the_list_of_backbones(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    table = list_backbones(measured=0)
    assert list(table.index) == list(SHORTLIST) and not table['here'].any() and table['for'].notna().all()
    assert set(SHORTLIST) <= {*BACKBONES, *timm.list_models(pretrained=True)}
    found = list_backbones(['test_vit.', 'apache'])
    assert found.loc['test_vit.r160_in1k', ['size', 'numbers']].tolist() == [160, 64]
    assert not find_backbones(['no such word']) and len(find_backbones(['in1k'])) > 1000
