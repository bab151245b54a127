"""CFGA against the program's published extractor, a slow oracle, and networks that do odd things."""
import math
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.ndimage import label
from torch import nn
from torch.nn import functional as F
from torchvision.models import (
    convnext_tiny,
    densenet121,
    efficientnet_b0,
    mobilenet_v3_small,
    resnet18,
    resnet50,
    squeezenet1_1,
)
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fgir.backbones.nets import RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.backbones.weights import read_weights
from fgir.papers.cfga import (
    CFGA,
    LOSSES,
    POOLED,
    PROGRAM_NETWORKS,
    Describe,
    activation_mask,
    default_layers,
    largest_component,
    pool_masked,
    program_descriptor,
)
from fgir.papers.gradients import Capture, aggregate, filter_change
from fgir.papers.programs import load_program_model

SIX = [f'layer4.{b}.conv{c}' for b in (1, 2) for c in (1, 2, 3)]
GOLDEN = np.load(Path(__file__).parent/'golden'/'cfga_resnet50.npz')


def wave(n: int, phase: float) -> np.ndarray:
    """A deterministic sequence that looks like noise, (n,) in [-1, 1]."""
    j = np.arange(n, dtype=np.float64)
    return np.sin(phase + j*12.9898 + (j*j % 9973)*.618)


@cache
def golden_net() -> nn.Module:
    """The ResNet-50 behind the golden descriptors: every tensor a wave, in the order of sorted names."""
    net, salt = resnet50(weights=None), float(GOLDEN['salt'])
    for i, (name, t) in enumerate(sorted(net.state_dict().items())):
        if name.startswith('fc.') or name.endswith('num_batches_tracked'): continue
        w = torch.from_numpy(wave(t.numel(), salt + .7*i)).view(t.shape)
        scale, shift = (math.sqrt(4/t[0].numel()), 0) if t.ndim == 4 else (.3, 1) if name.endswith('running_var') else \
            (.2, .7) if name.endswith('.weight') else (.1, 0)
        t.copy_(w*scale + shift)
    return net.eval()


def golden_image(h: int, w: int, salt: float) -> torch.Tensor:
    """The image of the golden descriptors, (1,3,h,w), normalized already."""
    y, x, c = np.arange(h)[None, :, None], np.arange(w)[None, None, :], np.arange(3)[:, None, None]
    blob = np.exp(-(((x - w*.6)/(.2*w))**2 + ((y - h*.4)/(.25*h))**2))*2
    image = np.sin(.13*(x + salt) + .7*c) + np.cos(.11*(y - salt) + .3*c) + blob
    return torch.from_numpy(image.astype(np.float32))[None]


def golden_images() -> list[torch.Tensor]:
    return [golden_image(int(h), int(w), float(GOLDEN['salt']) + i) for i, (h, w) in enumerate(GOLDEN['sizes'])]


def slow_changes(model: nn.Module, maps_of, image: torch.Tensor, layers: list, lcc: bool, loss: str = 'pooled'):
    """A of one image for each layer, (O,I), the published way: a whole backward pass, and the gradients that it leaves."""
    model.zero_grad()
    maps = F.relu(maps_of(image))
    LOSSES[loss](maps, activation_mask(maps.detach(), lcc)).backward()
    grads = [layer.weight.grad.double() for layer in layers]
    model.zero_grad()
    return [grad.flatten(1).abs() if grad.ndim == 2 or grad[0, 0].numel() == 1 else
            grad.flatten(2).amax(-1) - grad.flatten(2).amin(-1) + grad.flatten(2).std(-1) for grad in grads]


def slow_vector(a: torch.Tensor, groups: int = 1, select: bool = True, direction: str = 'in') -> torch.Tensor:
    """The descriptor of a matrix A (O, I/groups) in plain loops over groups."""
    parts = []
    for part in a.chunk(groups):
        kept = part*((part > part.mean(0)) & (part > part.mean(1, keepdim=True))) if select else part
        parts.append(kept.mean(0 if direction == 'in' else 1))
    return F.normalize(torch.cat(parts), dim=0).float()


@pytest.fixture(scope='module')
def described():
    """Everything that the golden file holds, as we describe it."""
    describe = Describe(golden_net(), ['layers', *POOLED])
    return [describe(image) for image in golden_images()]


@pytest.mark.parametrize('name', ['layer4.1.conv2', 'layer4.2.conv2', *POOLED])
def test_golden(described, name):
    """Equal to what its authors' extractor gives, to 1e-5."""
    for i, found in enumerate(described):
        np.testing.assert_allclose(found[name][0].numpy(), GOLDEN[f'{i}/{name}'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', SIX)
def test_golden_but_for_ties(described, name):
    """At most one number of a layer is further off than 1e-5: a filter there changes as much as the mean that it is compared with.

    Float32 cannot tell on which side of the mean such a filter is: the golden machine's rounding decides, and ours does.
    """
    for i, found in enumerate(described):
        off = np.sort(np.abs(found[name][0].numpy() - GOLDEN[f'{i}/{name}']))
        assert off[-2] < 1e-5 and off[-1] < 1e-3


def test_in_company():
    """An image is described alike alone, in a batch, and in another order; 1×1 layers up to ties with a mean."""
    net, x = golden_net(), torch.cat([golden_image(160, 192, i) for i in range(3)])
    describe = Describe(net, ['layers', 'cfga+', *POOLED])
    together, backwards = describe(x), describe(x.flip(0))
    for i in range(len(x)):
        for name, alone in describe(x[i:i + 1]).items():
            exact = 'conv1' not in name and 'conv3' not in name
            if exact: torch.testing.assert_close(together[name][i], alone[0], atol=1e-5, rtol=0)
            assert F.cosine_similarity(together[name][i], alone[0], 0) > 1 - 1e-6
            assert F.cosine_similarity(together[name][i], backwards[name][len(x) - 1 - i], 0) > 1 - 1e-6


def pieces(name: str):
    """A network, how to get its map, and layers of it."""
    torch.manual_seed(0)
    if name == 'resnext':
        net = ResNet(Bottleneck, [1, 1, 1, 3], groups=8, width_per_group=8)
        layers = ['layer4.1.conv2', 'layer4.2.conv3', 'layer4.0.conv2']
    elif name == 'resnet':
        net = ResNet(BasicBlock, [1, 1, 1, 2])
        layers = ['layer4.0.conv1', 'layer4.0.downsample.0', 'layer4.1.conv2']
    elif name == 'squeezenet': net, layers = squeezenet1_1(), ['features.11.squeeze', 'features.12.expand3x3']
    else: net, layers = create_backbone(name, pretrained=False), None
    if layers is None: return net.eval(), net, {'test_vit': ['blocks.5.mlp.fc1', 'blocks.5.attn.qkv'],
                                                'test_efficientnet': ['blocks.3.0.conv_pwl', 'conv_stem'],
                                                'test_convnext': ['stages.3.blocks.0.mlp.fc2', 'stages.3.downsample.1']}[name], net
    body = net.features if name == 'squeezenet' else nn.Sequential(*list(net.children())[:-2])
    return net.eval(), body, layers, net


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('name', ['resnext', 'resnet', 'squeezenet', 'test_vit', 'test_efficientnet', 'test_convnext'])
def test_against_whole_backward_passes(name, loss):
    """Grouped, strided, in-place, token and 1×1 layers agree with one backward pass an image."""
    net, maps_of, layers, _ = pieces(name)
    x = torch.randn(3, 3, 112, 112)
    for select, direction, lcc in ((True, 'in', True), (False, 'out', False)):
        found = CFGA(net, layers, select, lcc, direction, plus=(), loss=loss)(x)
        modules = [net.get_submodule(layer) for layer in layers]
        for i in range(len(x)):
            changes = slow_changes(net, maps_of, x[i:i + 1], modules, lcc, loss)
            for layer, module, a in zip(layers, modules, changes, strict=True):
                want = slow_vector(a, getattr(module, 'groups', 1), select, direction)
                assert found[layer].shape[1] == len(want)
                assert F.cosine_similarity(found[layer][i], want, 0) > 1 - 1e-5, (layer, i)


@pytest.mark.parametrize('moves', [dict(stride=2), dict(dilation=(1, 2), padding=2), dict(groups=4),
                                   dict(padding='same', dilation=2), dict(padding='valid', stride=(2, 1)),
                                   dict(padding=1, padding_mode='circular')])
@pytest.mark.parametrize('kernel', [1, 3, (1, 5), 4])
def test_every_kind_of_convolution(moves, kernel):
    """The change of each filter is that of PyTorch's own weight gradient, image by image."""
    torch.manual_seed(1)
    conv = nn.Conv2d(8, 12, kernel, **moves)
    net = nn.Sequential(conv, nn.ReLU(inplace=True), nn.Conv2d(12, 5, 1), nn.ReLU())
    net.n_features, net.stride, net.name = 5, 1, 'small'
    x = torch.randn(4, 8, 13, 11)
    found = CFGA(net, ['0'], lcc=False, select=False, plus=())(x)['0']
    for i in range(4):
        a, = slow_changes(net, net, x[i:i + 1], [conv], False)
        torch.testing.assert_close(found[i], slow_vector(a, conv.groups, False), atol=1e-5, rtol=1e-4)


def test_ablations():
    """CFGA+ normalized jointly or in parts, several such sets, and the other losses give different, finite vectors."""
    net, x = golden_net(), golden_image(96, 128, 3)
    sets = {'cfga+': ['layer4.1.conv2', 'layer4.2.conv2'], 'first': ['layer4.1.conv1', 'layer4.2.conv1']}
    parts, joint = (CFGA(net, joint_norm=j, plus=sets)(x) for j in (False, True))
    assert list(parts) == ['layer4.1.conv2', 'layer4.2.conv2', 'layer4.1.conv1', 'layer4.2.conv1', 'cfga+', 'first']
    assert parts['cfga+'].norm() == pytest.approx(2**.5, abs=1e-5) and joint['cfga+'].norm() == pytest.approx(1, abs=1e-5)
    assert parts['first'].shape == (1, 4096)
    vectors = [CFGA(net, loss=loss)(x)['cfga+'] for loss in LOSSES]
    assert all(v.isfinite().all() for v in vectors)
    assert len({round(float(F.cosine_similarity(vectors[0], v)), 6) for v in vectors}) == len(LOSSES)


def state_of(model: nn.Module):
    hooks = [len(h) for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
    return ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], hooks,
            [p.grad is None for p in model.parameters()], torch.is_grad_enabled(), torch.is_inference_mode_enabled())


@pytest.mark.parametrize('around', [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_leaves_no_trace(around):
    """Modes, switches, hooks and gradients are as they were, and training mode does not mix images."""
    net = RetrievalNet(create_backbone('resnet18', pretrained=False), dim=32).train()
    net.backbone.layer1.eval()
    for p in net.backbone.layer2.parameters(): p.requires_grad_(False)
    describe, before = Describe(net, ['layers', 'embedding']), state_of(net)
    x, statistics = torch.randn(2, 3, 64, 64), net.backbone.bn1.running_mean.clone()
    with around():
        inner, found = state_of(net), describe(x.clone())
        assert state_of(net) == inner
    assert state_of(net) == before and torch.equal(statistics, net.backbone.bn1.running_mean)
    assert not any(v.requires_grad for v in found.values())
    with torch.no_grad(): torch.testing.assert_close(found['embedding'], net.eval()(x))


def test_frozen_network():
    """A network without a single trainable weight is described alike."""
    net, x = resnet18().eval(), torch.randn(2, 3, 64, 64)
    before = CFGA(net)(x)
    after = CFGA(net.requires_grad_(False))(x)
    for name in before: torch.testing.assert_close(before[name], after[name])


def test_no_trace_of_a_failure():
    """Not after an exception in the middle of the network either."""
    net = resnet18().train()
    describe, before = CFGA(net), state_of(net)
    def fail(*args): raise RuntimeError('out of paper')
    handle = net.layer4[1].bn2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='out of paper'): describe(torch.randn(2, 3, 64, 64))
    handle.remove()
    assert state_of(net) == before
    assert describe(torch.randn(2, 3, 64, 64))['cfga+'].isfinite().all()


def test_one_line_for_each_mistake():
    """Unknown names, layers that cannot describe, twice used and unused layers are named."""
    net = resnet18()
    for call, said in ((lambda: CFGA(net, ['layer9']), "no layer 'layer9'"), (lambda: CFGA(net, ['layer4']), 'Sequential'),
                       (lambda: Describe(net, []), 'at least one'),
                       (lambda: Describe(net, plus=[]), 'no layers'), (lambda: CFGA(net, loss='x'), "loss 'x'"),
                       (lambda: CFGA(net, direction='up'), "'up'"),
                       (lambda: Describe(net, ['embedding'])(torch.rand(1, 3, 64, 64)), 'embedding'),
                       (lambda: CFGA(nn.Sequential(nn.Linear(2, 2))), 'no feature map')):
        with pytest.raises(ValueError, match=said): call()
    twice = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(twice, nn.ReLU(), twice)
    net.n_features, net.stride, net.name = 3, 1, 'twice'
    with pytest.raises(ValueError, match='more than once'): CFGA(net, ['0'])(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize('name', ['mobilenetv3_small_050', 'tf_efficientnetv2_b0', 'resnest14d', 'vgg11', 'densenet121',
                                  'mixer_s32_224', 'mobilenetv2_050', 'test_byobnet'])
def test_default_layers_take_part(name):
    """The layers chosen for a network of any family run on the way to its map, and are late and dense."""
    net = create_backbone(name, pretrained=False)
    layers, plus = default_layers(net)
    assert plus and set(plus) <= set(layers)
    assert all(getattr(net.get_submodule(n), 'groups', 1) == 1 for n in plus)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.ones_(m.weight)
    side = 224 if 'mixer' in name else 96
    assert not any(part in n for n in plus for part in ('.se.', '.attn.fc', 'head'))
    found = Describe(net, ['layers', 'cfga+'])(torch.randn(1, 3, side, side))
    assert all(v.isfinite().all() and v.any() for v in found.values())


@pytest.mark.parametrize('build', [densenet121, mobilenet_v3_small, convnext_tiny, efficientnet_b0])
def test_classifiers_of_torchvision(build):
    """Networks made of features and a classifier are described as they are."""
    net = build().eval()
    cfga, x = CFGA(net), torch.randn(1, 3, 96, 96)
    assert cfga(x)['cfga+'].any() and net(x).shape == (1, 1000)
    assert not any('fc1' in n or 'classifier' in n for n in cfga.layers)


def test_transformed_weights():
    """A layer that computes its weights at each pass is named, with the reason."""
    net = resnet18()
    nn.utils.parametrizations.weight_norm(net.layer4[1].conv2)
    for _ in range(10):
        with pytest.raises(ValueError, match=r"'layer4.1.conv2' took no part: its weights are transformed"):
            CFGA(net)(torch.randn(1, 3, 64, 64))


def test_compiled():
    """A compiled network, or a model with a compiled backbone, is described by the original."""
    net, x = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=8).eval(), torch.randn(1, 3, 64, 64)
    want = Describe(net, ['cfga+', 'embedding'])(x)
    half = RetrievalNet(net.backbone, dim=8).eval()
    half.head, compiled = net.head, torch.compile(net.backbone, backend='eager')
    half.backbone = compiled
    for model in (torch.compile(net, backend='eager'), half):
        for name, v in Describe(model, ['cfga+', 'embedding'])(x).items(): torch.testing.assert_close(v, want[name])
    assert half.backbone is compiled
    torch.testing.assert_close(CFGA(compiled)(x)['cfga+'], want['cfga+'])


def test_capture_alone():
    """Recording is on from the first layer to the end of the block, not longer."""
    net = resnet18().eval()
    with torch.no_grad():
        with Capture({'conv': net.layer4[1].conv2}, 1) as capture:
            assert not torch.is_grad_enabled()
            net(torch.randn(1, 3, 64, 64))
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled() and list(capture.calls) == ['conv']


def test_record_of_the_model():
    """Pooling and head of a model are in the record of what it describes."""
    nets = [RetrievalNet(create_backbone('test_resnet', pretrained=False), pool, 8) for pool in 'SM']
    one, other = (Describe(net, ['cfga+', 'embedding']).config for net in nets)
    assert one != other and one['backbone'] == other['backbone'] and one['model'] == nets[0].config
    assert 'model' not in Describe(nets[0].backbone).config


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.floats(.2, .8))
@settings(max_examples=60, deadline=None)
def test_largest_component(h, w, seed, share):
    """SciPy's components, the first of the largest."""
    masks = torch.rand(4, h, w, generator=torch.Generator().manual_seed(seed)) < share
    for mask, found in zip(masks.numpy(), largest_component(masks).numpy(), strict=True):
        names, n = label(mask)
        want = names == np.bincount(names.ravel())[1:].argmax() + 1 if n else np.ones_like(mask)
        np.testing.assert_array_equal(found, want)


def test_every_small_mask():
    """All 65,536 masks of 4 × 4."""
    masks = (np.arange(65536)[:, None] >> np.arange(16) & 1).astype(bool).reshape(-1, 4, 4)
    found = largest_component(torch.from_numpy(masks)).numpy()
    names, n = label(masks, np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))]))
    sizes = np.where(masks, np.bincount(names.ravel(), minlength=n + 1)[names], 0)
    # Of components of one size the first counts, which has the smallest name.
    largest = np.where(sizes == sizes.max((1, 2), keepdims=True), names, n + 1).min((1, 2), keepdims=True)
    np.testing.assert_array_equal(found, np.where(masks.any((1, 2), keepdims=True), names == largest, True))


def test_flat_map_and_empty_mask():
    """Where all sums are equal everything belongs to the object, with and without components."""
    for lcc in (True, False): assert activation_mask(torch.ones(2, 3, 4, 4), lcc).all()
    avg, top = pool_masked(torch.ones(2, 3, 4, 4), activation_mask(torch.ones(2, 3, 4, 4)))
    assert torch.equal(avg, torch.ones(2, 3)) and torch.equal(top, torch.ones(2, 3))


def test_black_and_zero():
    """A network that gives nothing gives zero vectors, not NaN."""
    net = resnet18().eval()
    nn.init.zeros_(net.layer4[1].bn2.weight)
    nn.init.constant_(net.layer4[0].bn2.bias, -1e3)
    nn.init.constant_(net.layer4[0].downsample[1].bias, -1e3)
    found = Describe(net, ['layers', 'cfga+', *POOLED])(torch.zeros(2, 3, 64, 64))
    assert all(v.isfinite().all() for v in found.values())


def test_changes_far_from_zero():
    """The running deviation does not cancel when all taps have almost the same gradient."""
    x = 1000 + torch.randn(2, 64, 9*8)
    taps = [x[:, :, i::9].mT.contiguous() for i in range(9)]
    delta = torch.rand(2, 16, 8) + 1
    g = torch.stack([delta.double() @ t.double() for t in taps], -1)
    torch.testing.assert_close(filter_change(delta, taps).double(), g.amax(-1) - g.amin(-1) + g.std(-1), rtol=1e-3, atol=1e-2)


def test_bfloat16():
    """Autocast changes the vectors by little."""
    net, x = golden_net(), golden_image(128, 128, 1)
    exact = CFGA(net)(x)['cfga+']
    with torch.autocast('cpu', torch.bfloat16): coarse = CFGA(net)(x)['cfga+']
    assert coarse.dtype == torch.float32 and .97 < F.cosine_similarity(exact, coarse) < 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda():
    """A GPU gives what a CPU gives, up to rounding."""
    net, x = golden_net(), torch.cat([golden_image(256, 256, i) for i in range(4)])
    with torch.backends.cudnn.flags(allow_tf32=False): there = Describe(deepcopy(net).cuda(), ['layers', *POOLED])(x.cuda())
    for name, v in Describe(net, ['layers', *POOLED])(x).items():
        assert F.cosine_similarity(v, there[name].cpu()).min() > 1 - 1e-4


def checkpoint(tmp_path: Path, kind: str, blocks: str = 'resnet50') -> Path:
    """A checkpoint with random weights in the layout of a seed's training."""
    net = create_backbone(blocks, pretrained=False)
    torch.manual_seed(5)
    for t in net.state_dict().values():
        if t.is_floating_point(): t.uniform_(.1, .5)
    state = net.state_dict()
    if kind == 'margin': state |= {'class_fc.weight': torch.randn(1024, 2048), 'class_fc.bias': torch.randn(1024)}
    if kind == 'dgpcrl': state |= {'class_fc.weight': torch.randn(100, 2048), 'class_fc_2.weight': torch.randn(100, 4096)}
    if kind == 'proxy_anchor':
        state |= {'fc.weight': torch.randn(1000, 2048), 'fc.bias': torch.randn(1000), 'embedding.weight': torch.randn(512, 2048),
                  'embedding.bias': torch.randn(512)}
        state = {f'model.{k}': v for k, v in state.items()}
    torch.save({'model_state_dict' if kind == 'proxy_anchor' else 'model': state, 'epoch': 3}, tmp_path/'c.pth')
    return tmp_path/'c.pth'


@pytest.mark.parametrize('kind', ['margin', 'dgpcrl', 'proxy_anchor'])
def test_program_checkpoints(tmp_path, kind):
    """Each kind is recognized, loaded whole, and described by what the program saves for it."""
    path = checkpoint(tmp_path, kind)
    model, found = load_program_model(path)
    state = {k.removeprefix('model.'): v for k, v in read_weights(path).items()}
    assert found == kind and torch.equal(getattr(model, 'backbone', model).layer4[2].conv3.weight, state['layer4.2.conv3.weight'])
    if kind != 'dgpcrl':
        head = 'class_fc' if kind == 'margin' else 'embedding'
        for part in ('weight', 'bias'): assert torch.equal(getattr(model.head.linear, part), state[f'{head}.{part}'])
    torch.save({'model': {f'module.{k}': v for k, v in read_weights(path).items()}}, tmp_path/'parallel.pth')
    assert load_program_model(tmp_path/'parallel.pth')[1] == kind
    about = PROGRAM_NETWORKS[kind]
    assert Describe(model, about['what'], lcc=about['lcc']).what[-1] == about['what'][-1]


def test_wrong_checkpoints(tmp_path):
    """A checkpoint that is none, or that lacks weights, is refused by name."""
    torch.save({'model': {'a.weight': torch.zeros(2)}}, tmp_path/'a.pth')
    with pytest.raises(ValueError, match='a.pth: no checkpoint of the programs'): load_program_model(tmp_path/'a.pth')
    path = checkpoint(tmp_path, 'margin')
    state = read_weights(path)
    for gone, said in (('layer4.2.bn3.weight', 'layer4.2.bn3.weight missing'), ('class_fc.bias', 'Missing key')):
        torch.save({'model': {k: v for k, v in state.items() if k != gone}}, path)
        with pytest.raises(ValueError, match=said): load_program_model(path)


def test_the_example_of_the_specification():
    g = torch.sin(1.7*torch.arange(1, 25)).view(3, 2, 4)
    change = (g.amax(-1) - g.amin(-1) + g.std(-1))[None]
    torch.testing.assert_close(aggregate(change)[0], torch.tensor([1.8513, .8956]), rtol=0, atol=1e-4)
    torch.testing.assert_close(F.normalize(aggregate(change))[0], torch.tensor([.9002, .4355]), rtol=0, atol=1e-4)


def test_a_spiral_is_one_component():
    spiral = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    found = largest_component(torch.stack([spiral, ~spiral, spiral & False]))
    assert found.sum((1, 2)).tolist() == [17, 8, 25]


def test_a_depthwise_convolution_is_refused():
    net = create_backbone('test_convnext', pretrained=False)
    with pytest.raises(ValueError, match='conv_dw. is depthwise: nothing can be selected by rows of one; take select=False'):
        CFGA(net, ['stages.3.blocks.0.conv_dw'])


def test_an_image_is_described_alike_alone_and_in_company_and_leaves_the_network_alone():
    net, x = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=8).eval(), torch.randn(3, 3, 64, 64)
    together = CFGA(net)(x)['cfga+']
    for i in range(3): torch.testing.assert_close(CFGA(net)(x[i:i + 1])['cfga+'][0], together[i], rtol=0, atol=1e-5)
    assert not net.training and all(p.requires_grad and p.grad is None for p in net.parameters())


def test_the_arrays_of_a_program():
    net = RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=8)
    assert program_descriptor(net, 'proxy_anchor').what == ['layer4.0.conv1', 'layer4.0.conv2', 'cfga+', 'embedding']
