"""Networks of timm as backbones, beside timm itself: `python benchmarks/towers.py [NAME ...]`, about ten minutes on two cores.

Each network has random weights; those of its norms are drawn at random too. The checks of a row:

native   the backbone's native vector and that of `timm.create_model(name, num_classes=0)`: largest difference
map      the backbone's map and timm's `forward_features`, rearranged: equal, or 'none' (and an error that says so)
as       `as_backbone` of timm's classifier gives the same map and the same vector: largest difference
file     a classifier's weights, saved as .pth and as .safetensors, are loaded whole
size     images of three quarters of the native size, to multiples of 32: 'any', or 'one' with an error of one line
CFGA     the default layers of 'cfga+', and the largest difference to one whole backward pass an image (of the vector
         without selection, and 1 less the cosine with it), or why there are none

A row that fails says FAILED; the command then ends with status 1.
"""
import argparse
import gc
import sys
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fgir.backbones.registry import as_backbone, create_backbone
from fgir.backbones.weights import load_weights, read_weights
from fgir.papers.cfga import CFGA, LOSSES, activation_mask

TOWERS = {
    'beit': 'beit_base_patch16_224(depth=2)',
    'byoanet': 'halonet26t lambda_resnet26t botnet26t_256',
    'byobnet': 'test_byobnet repvgg_a0 mobileone_s0 gernet_s resnet50_clip resnet50_clip_gap',
    'cait': 'cait_xxs24_224',
    'coat': 'coat_lite_tiny',
    'convit': 'convit_tiny',
    'convmixer': 'convmixer_1024_20_ks9_p14',
    'convnext': 'test_convnext test_convnext2 convnextv2_atto convnext_zepto_rms convnext_atto',
    'crossvit': 'crossvit_9_240',
    'csatv2': 'csatv2',
    'cspnet': 'cs3darknet_focus_s',
    'davit': 'davit_tiny',
    'deit': 'deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224',
    'densenet': 'densenet121',
    'dla': 'dla46_c',
    'dpn': 'dpn48b',
    'edgenext': 'edgenext_xx_small',
    'efficientformer': 'efficientformer_l1',
    'efficientformer_v2': 'efficientformerv2_s0',
    'efficientnet': 'test_efficientnet test_efficientnet_gn efficientnet_b0 mobilenetv2_050 mnasnet_small '
                    'efficientnet_cc_b0_4e tinynet_e',
    'efficientvit_mit': 'efficientvit_b0',
    'efficientvit_msra': 'efficientvit_m0',
    'eva': 'eva02_tiny_patch14_224 vit_small_patch16_dinov3 vit_pe_core_tiny_patch16_384',
    'fasternet': 'fasternet_t0',
    'fastvit': 'fastvit_t8 fastvit_mci0',
    'focalnet': 'focalnet_tiny_srf',
    'gcvit': 'gcvit_xxtiny',
    'ghostnet': 'ghostnet_050 ghostnetv2_100',
    'hardcorenas': 'hardcorenas_a',
    'hgnet': 'hgnetv2_b0',
    'hiera': 'hiera_tiny_224',
    'hieradet_sam2': 'sam2_hiera_tiny',
    'hrnet': 'hrnet_w18_small',
    'inception_next': 'inception_next_atto',
    'inception_v3': 'inception_v3',
    'levit': 'levit_128s levit_conv_128s',
    'mambaout': 'test_mambaout',
    'maxxvit': 'coatnet_nano_rw_224 maxvit_pico_rw_256',
    'metaformer': 'poolformer_s12 convformer_s18',
    'mlp_mixer': 'gmlp_ti16_224 resmlp_12_224 mixer_s32_224',
    'mobilenetv3': 'mobilenetv3_small_050 lcnet_035 mobilenetv4_conv_small_035 fbnetv3_b',
    'mobilenetv5': 'mobilenetv5_base',
    'mobilevit': 'mobilevit_xxs mobilevitv2_050',
    'mvitv2': 'mvitv2_tiny',
    'naflexvit': 'naflexvit_base_patch16_gap(depth=2)',
    'nest': 'nest_tiny',
    'nextvit': 'nextvit_small',
    'nfnet': 'test_nfnet nfnet_l0 nf_resnet26',
    'pit': 'pit_ti_224 pit_ti_distilled_224',
    'pvt_v2': 'pvt_v2_b0',
    'rdnet': 'rdnet_tiny',
    'regnet': 'regnetx_002 regnety_002 regnetz_005',
    'repghost': 'repghostnet_050',
    'repvit': 'repvit_m0_9',
    'res2net': 'res2net50_14w_8s',
    'resnest': 'resnest14d',
    'resnet': 'test_resnet resnet10t seresnext26d_32x4d',
    'resnetv2': 'resnetv2_18 resnetv2_50x1_bit',
    'rexnet': 'rexnetr_100',
    'selecsls': 'selecsls42b',
    'sequencer': 'sequencer2d_s',
    'shvit': 'shvit_s1',
    'sknet': 'skresnet18',
    'starnet': 'starnet_s050',
    'swiftformer': 'swiftformer_xs',
    'swin_transformer': 'swin_tiny_patch4_window7_224',
    'swin_transformer_v2': 'swinv2_tiny_window8_256',
    'swin_transformer_v2_cr': 'swinv2_cr_tiny_224',
    'tiny_vit': 'tiny_vit_5m_224',
    'tnt': 'tnt_s_patch16_224',
    'tresnet': 'tresnet_m',
    'twins': 'twins_svt_small twins_pcpvt_small',
    'vgg': 'vgg11',
    'visformer': 'visformer_tiny',
    'vision_transformer': 'test_vit test_vit2 test_vit3 test_vit4 vit_tiny_patch16_224 vit_small_patch14_dinov2 '
                          'vit_small_patch14_reg4_dinov2 vit_xsmall_patch16_clip_224 vit_base_patch32_siglip_256(depth=2) '
                          'vit_wee_patch16_reg1_gap_256 vit_base_patch32_clip_quickgelu_224(depth=2) '
                          'beit3_base_patch16_224(depth=2)',
    'vision_transformer_hybrid': 'vit_tiny_r_s16_p8_224',
    'vision_transformer_relpos': 'test_vit_relpos',
    'vision_transformer_sam': 'samvit_base_patch16_224(depth=2)',
    'vitamin': 'vitamin_small_224',
    'volo': 'volo_d1_224',
    'vovnet': 'ese_vovnet19b_slim_dw',
    'xception_aligned': 'xception41',
    'xcit': 'xcit_nano_12_p16_224'}


def randomize(net: nn.Module):
    "Draw the weights of norms, scales and biases at random, and the statistics of batch norms."
    for p in net.parameters():
        if p.ndim > 1: continue
        is_scale = bool((p.detach().abs() > 0).all())
        with torch.no_grad():
            if is_scale: p.mul_(torch.empty_like(p).uniform_(.5, 1.5))
            else: p.normal_(std=.1)
    for name, b in net.named_buffers():
        if name.endswith('running_mean'): b.normal_(std=.1)
        if name.endswith('running_var'): b.uniform_(.5, 1.5)


def rearranged(own: nn.Module, out: torch.Tensor) -> torch.Tensor:
    "The map of timm's own network, arranged by what it says of its output."
    if out.ndim == 4: return out.permute(0, 3, 1, 2) if getattr(own, 'output_fmt', 'NCHW') == 'NHWC' else out
    tokens = out[:, getattr(own, 'num_prefix_tokens', 0):]
    side = round(tokens.shape[1]**.5)
    return tokens.transpose(1, 2).reshape(len(out), -1, side, side)


def whole_backward(net: nn.Module, x: torch.Tensor, layers: list[str]) -> dict[str, torch.Tensor]:
    "How much each filter would change (B,groups,O,I): a backward pass an image, the gradient of every weight."
    found = {name: [] for name in layers}
    for image in x.split(1):
        active = F.relu(net(image))
        loss = LOSSES['pooled'](active, activation_mask(active.detach()))
        weights = [net.get_submodule(name).weight for name in layers]
        for name, g in zip(layers, torch.autograd.grad(loss, weights), strict=True):
            taps = g.reshape(*g.shape[:2], -1)
            one = taps.shape[-1] == 1
            change = taps[..., 0].abs() if one else taps.amax(2) - taps.amin(2) + taps.std(2)
            found[name].append(change.unflatten(0, (getattr(net.get_submodule(name), 'groups', 1), -1)))
    return {name: torch.stack(v) for name, v in found.items()}


def selected(change: torch.Tensor) -> torch.Tensor:
    "Only what exceeds the means of its row and of its column."
    return change*((change > change.mean(-2, keepdim=True)) & (change > change.mean(-1, keepdim=True)))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, f'{tuple(a.shape)} and {tuple(b.shape)}'
    assert a.isfinite().all(), 'not finite'
    return float(((a - b).abs().max()/b.abs().max().clamp(min=1)).detach())


def one_line(act) -> str:
    "The error that `act` raises; fails if it is none of one line."
    try: act()
    except ValueError as e:
        assert '\n' not in str(e), f'more than one line: {e}'
        return str(e)
    raise AssertionError('no error')


def load_both(name: str, classifier: nn.Module, smaller: dict) -> nn.Module:
    "A backbone with the weights of a classifier, by way of both kinds of files."
    state = {k: v.contiguous().clone() for k, v in classifier.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)/'a.pth', Path(folder)/'a.safetensors'
        torch.save(state, files[0])
        save_file(state, files[1])
        cfg = timm.get_pretrained_cfg(name).to_dict()
        settings = dict(architecture=name, pretrained_cfg=cfg, model_args=smaller) if smaller else None
        net = create_backbone(name, weights=files[0], settings=settings).eval()
        other = read_weights(files[1])
        load_weights(net, other, 'a.safetensors')
    own = net.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in own.items()), 'weights differ'
    left = [k for k in state if k not in own and not k.startswith(net.cut)]
    assert not left, f'{left[0]} is not in the backbone'
    return net


def worst_of(found: dict, all_of_it: dict, expected: dict) -> float:
    "The largest difference; a cosine counts as 1 less it."
    worst = 0.
    for name, change in expected.items():
        worst = max(worst, difference(all_of_it[name], F.normalize(change.mean(-2).flatten(1))))
        # numbers that nearly equal a mean may fall on the other side of it: cosine, not difference
        chosen = F.normalize(selected(change).mean(-2).flatten(1))
        worst = max(worst, float(1 - F.cosine_similarity(found[name], chosen).min()))
    return worst


def check_cfga(net: nn.Module, x: torch.Tensor) -> tuple[str, float | None]:
    "The layers of 'cfga+' or why there are none, and the largest difference."
    try: describe, plain = CFGA(net), CFGA(net, select=False)
    except ValueError as e: return str(e), None
    expected = whole_backward(net, x, list(describe.layers))
    assert all(v.isfinite().all() and v.any() for v in expected.values()), 'CFGA: no gradient'
    worst, said = worst_of(describe(x), plain(x), expected), ' '.join(describe.layers)
    if worst < 1e-4: return said, worst
    # a batch is rounded in another way than an image, and a ReLU near zero may be on in one and off in the other
    found, all_of_it = ({name: torch.cat([d(image)[name] for image in x.split(1)]) for name in expected}
                        for d in (describe, plain))
    return f'{said} (one by one)', worst_of(found, all_of_it, expected)


def arguments(name: str) -> tuple[str, dict]:
    "A network's name, and arguments that make it smaller: 'vit_base_patch16_224(depth=2)'."
    name, _, rest = name.rstrip(')').partition('(')
    return name, {k: int(v) for k, v in (pair.split('=') for pair in rest.split(',') if pair)}


def check(name: str, cfga: bool = True) -> dict:
    "One row of the table; AssertionError where fgir and timm differ."
    torch.manual_seed(0)
    name, smaller = arguments(name)
    start, classifier = time.time(), timm.create_model(name, **smaller).eval()
    randomize(classifier)
    own = timm.create_model(name, num_classes=0, **smaller).eval()
    own.load_state_dict(classifier.state_dict(), strict=False)
    net = load_both(name, classifier, smaller)
    x = torch.randn(2 if net.native_size[0] <= 256 else 1, 3, *net.native_size)
    row = dict(name=net.name, size=net.native_size[0], numbers=net.vectors['native'])
    with torch.no_grad():
        maps, vectors = net(x, list(net.vectors))
        row['native'] = difference(vectors['native'], own(x))
        assert vectors['native'].shape[1] == net.vectors['native'], 'length of the native vector'
        again = as_backbone(classifier)
        maps2, vectors2 = again(x, list(again.vectors))
        row['as'] = difference(vectors2['native'], vectors['native'])
        if maps is None:
            row['map'] = 'none'
            one_line(lambda: net(x))
        else:
            row['map'] = ' × '.join(map(str, maps.shape[1:]))
            assert torch.equal(maps, rearranged(own, own.forward_features(x))), 'map'
            row['as'] = max(row['as'], difference(maps2, maps))
        if 'projection' in vectors:
            assert difference(vectors['projection'], classifier(x)) < 1e-5, 'projection'
        other = [max(32, round(s*3/4/32)*32) for s in net.native_size]
        try: net(torch.randn(1, 3, *other), ['native'])
        except ValueError:
            row['takes'] = 'one'
            assert str(net.native_size[0]) in one_line(lambda: net(torch.randn(1, 3, *other)))
        else: row['takes'] = 'any'
    assert max(row['native'], row['as']) < 1e-5, 'vectors differ'
    if cfga and maps is not None:
        row['CFGA'], row['CFGA error'] = check_cfga(net, x)
        assert (row['CFGA error'] or 0) < 1e-4, f"CFGA differs by {row['CFGA error']:.1e}"
    row['s'] = time.time() - start
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='networks; default all of the list')
    names, failed, done = parser.parse_args().names, [], 0
    warnings.filterwarnings('ignore')
    family = {name: f for f, all_of_it in TOWERS.items() for name in all_of_it.split()}
    print(f'timm {timm.__version__}, torch {torch.__version__}')
    print(f'{"network":44} {"family":26} size numbers native  as      map              takes  s   CFGA', flush=True)
    for name in names or family:
        try: r = check(name)
        except Exception as e:
            failed.append(name)
            print(f'{name:44} {family.get(name, ""):26} FAILED {type(e).__name__}: '
                  f'{" ".join(str(e).split())[:200]}', flush=True)
            continue
        error = r.get('CFGA error')
        cfga = f'{error:.0e} {r["CFGA"]}' if error is not None else r.get('CFGA', '')
        print(f'{r["name"]:44} {family.get(name, ""):26} {r["size"]:4} {r["numbers"]:7} {r["native"]:.1e} {r["as"]:.1e} '
              f'{r["map"]:16} {r["takes"]:5} {r["s"]:4.0f} {cfga}', flush=True)
        done += 1
        gc.collect()
    print(f'{done} networks of {len({family.get(n) for n in names or family})} families agree; '
          f'{len(failed)} failed: {" ".join(failed)}')
    sys.exit(bool(failed))


if __name__ == '__main__': main()
