"""Evidence adds up to the cosine for every kind of layer, and works wherever a descriptor does."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from fgir.backbones.nets import Pooled, RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.papers.cfga import CFGA, Describe
from fgir.papers.explain import _grid, _on_grid, evidence
from fgir.papers.gradients import Call

def small_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return resnet18().eval() if name == 'resnet18' else create_backbone(name, pretrained=False).eval()


@pytest.mark.parametrize('joint', [False, True])
@pytest.mark.parametrize(('name', 'layers', 'size'), [
    ('test_convnext', ['stages.2.blocks.0.mlp.fc1'], (160, 192)),
    ('test_convnext', ['stages.2.blocks.0.mlp.fc1', 'stages.3.blocks.0.mlp.fc2'], (160, 160)),
    ('resnet18', ['layer3.1.conv2', 'layer4.1.conv2'], (240, 208)),
    ('test_vit', ['blocks.4.mlp.fc1', 'blocks.5.attn.qkv'], (160, 160)),
    ('test_efficientnet', None, (144, 160))])
def test_sum_is_the_cosine(name, layers, size, joint):
    """NHWC grids, grids that do not divide, class tokens and joint norms: both maps add up, and the number is right."""
    cfga = CFGA(small_net(name), layers, plus=layers, joint_norm=joint)
    a, b = torch.randn(2, 1, 3, *size)
    of_a, of_b, similarity = evidence(cfga, a, b)
    want = float(F.cosine_similarity(cfga(a)['cfga+'], cfga(b)['cfga+']))
    assert of_a.shape == cfga.backbone(a).shape[2:]
    assert similarity == pytest.approx(want, abs=1e-5)
    for heat in (of_a, of_b): assert float(heat.sum()) == pytest.approx(want, abs=2e-4)


def test_share_stays_in_its_place():
    """What lies in one corner of a finer grid is in that corner of the map."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4))
    net.n_features, net.stride, net.name = 8, 4, 'small'
    x = torch.zeros(1, 3, 30, 30)
    x[..., :6, -6:] = torch.rand(3, 6, 6)
    heat = evidence(CFGA(net, ['0'], plus=()), x, torch.randn(1, 3, 30, 30))[0]
    assert heat.shape == (7, 7) and heat.abs()[:2, -2:].sum() > .99*heat.abs().sum()


def test_places_unknown():
    """Tokens in windows, or fewer or more than the map has places, are refused in one line."""
    size = torch.Size((4, 4))
    for shape in ((1, 16, 8), (1, 18, 8), (1, 8, 17), (4, 4, 8), (4, 2, 2, 8)):
        call = Call(1, torch.zeros(1), torch.zeros(shape))
        with pytest.raises(ValueError, match='places unknown'): _grid(call, size, 1)
    assert _grid(Call(1, torch.zeros(1), torch.zeros(1, 17, 8)), size, 1) == size


@pytest.mark.parametrize('around', [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('frozen', [False, True])
def test_frozen_and_inference(around, frozen):
    """Weights without gradients and inputs made in inference mode change nothing."""
    torch.manual_seed(0)
    net = RetrievalNet(create_backbone('resnet18', pretrained=False), dim=8).requires_grad_(not frozen)
    x = torch.randn(2, 3, 64, 64)
    want = [evidence(d, x[:1], x[1:]) for d in (net, CFGA(net))]
    with around():
        found = [evidence(d, x[:1].clone(), x[1:].clone()) for d in (net, CFGA(net))]
        assert torch.is_inference_mode_enabled() == (around is torch.inference_mode)
    for one, other in zip(want, found, strict=True):
        torch.testing.assert_close(one, other)
        assert one[0].abs().sum() > 0 and not one[0].requires_grad
    with torch.no_grad(), torch.inference_mode(False): u = net.eval()(x)
    assert want[0][2] == pytest.approx(float(F.cosine_similarity(u[:1], u[1:])), abs=1e-5)


def test_names():
    """The first set of layers is explained, else the first layer, else the embedding, or what is named."""
    torch.manual_seed(0)
    net = RetrievalNet(create_backbone('resnet18', pretrained=False), dim=8).eval()
    a, b = torch.randn(2, 1, 3, 64, 64)
    def number(what, name=None): return evidence(Describe(net, what), a, b, name)[2]
    assert number(['layers', 'cfga+', 'embedding', 'scda_norm_each']) == number(['cfga+'])
    assert number(['scda_norm_each', 'layer4.1.conv1', 'embedding']) == number(['layer4.1.conv1'])
    assert number(['embedding']) == number(['cfga+', 'embedding'], 'embedding') == evidence(net, a, b)[2]
    for what, name in ((['scda_norm_each'], None), (['cfga+'], 'layer9')):
        with pytest.raises(ValueError, match='is no layer'): number(what, name)
    with pytest.raises(ValueError, match='no model with backbone'): evidence(net.backbone, a, b)


def test_an_unknown_pooling_is_named():
    a, b = torch.randn(2, 1, 3, 64, 64)
    pooled = Pooled(create_backbone('test_resnet', pretrained=False), ['S', 'M'])
    with pytest.raises(ValueError, match="no array 'G', there are S, M"): evidence(pooled, a, b, 'G')


def test_evidence_of_native_vectors():
    a, b = torch.randn(2, 1, 3, 64, 64)
    native, mean = (Pooled(create_backbone('squeezenet1_1', False), [pool]).eval() for pool in ('native', 'S'))
    mean.backbone = native.backbone
    for ours, expected in zip(evidence(native, a, b), evidence(mean, a, b), strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(expected))
    with pytest.raises(ValueError, match='test_resnet.* comes from its own head.*pool S'):
        evidence(Pooled(create_backbone('test_resnet', pretrained=False)), a, b)


@pytest.mark.parametrize('given, size', [((15, 13), (8, 7)), ((4, 4), (8, 8)), ((16, 16), (4, 4))])
def test_a_map_on_another_grid_keeps_its_sum(given, size):
    heat = torch.rand(given)
    moved = _on_grid(heat.flatten(), Call(1, heat, heat[None, None], moves=(1, 0, 1, 1)), torch.Size(size))
    assert moved.shape == size and float(moved.sum()) == pytest.approx(float(heat.sum()), rel=1e-4)


def test_the_share_of_a_class_token_is_spread():
    tokens = torch.tensor([4., 0, 1, 2, 3])
    spread = _on_grid(tokens, Call(1, tokens, torch.zeros(1, 5, 7)), torch.Size((2, 2)), 1)
    assert spread.tolist() == [[1, 2], [3, 4]]
