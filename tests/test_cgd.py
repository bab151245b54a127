"""CGD: configurations, optimizer and schedule of CGD, files, selection."""
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch import nn

from fgir.backbones.nets import count_operations, count_parameters
from fgir.backbones.registry import create_backbone
from fgir.data.fish import synth_dataset
from fgir.data.table import hold_out_classes
from fgir.features.store import Features
from fgir.papers.cgd import GD_CONFIGS, CGDLoss, CGDNet, cgd_learner
from fgir.training.runs import save_results

class Stem(nn.Module):
    "A backbone of one convolution."
    n_features, config = 8, {'name': 'stem'}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x): return self.conv(x).relu()


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp('synth')/'set', n_classes=16, n_per_class=8, size=48, progress=False)


def tiny(table, out, **kwargs):
    kwargs = dict(feature_dim=16, batch_size=8, epochs=2, backbone='resnet18', pretrained=False, size=32, valid=.5,
                  num_workers=0, lr=1e-3, out=out) | kwargs
    return cgd_learner(table, 'synth', **kwargs)


@pytest.mark.parametrize('config', GD_CONFIGS)
def test_every_configuration_trains(config):
    torch.manual_seed(0)
    net = CGDNet(Stem(), config, 12, n_classes=3)
    embedding, scores = net(torch.randn(6, 3, 9, 9))
    assert embedding.shape == (6, 12) and scores.shape == (6, 3)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(6), atol=1e-5)
    CGDLoss()((embedding, scores), torch.tensor([0, 0, 1, 1, 2, 2])).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())
    assert len(GD_CONFIGS) == len(set(GD_CONFIGS)) == 12


def test_evaluation_mode_gives_the_embedding_only():
    assert CGDNet(Stem(), 'SG', 12).eval()(torch.randn(2, 3, 9, 9)).shape == (2, 12)


def test_the_first_letter_feeds_the_classifier():
    x = torch.rand(2, 3, 9, 9)
    for config, index in {'SG': 0, 'GS': 0, 'MSG': 0}.items():
        net, seen = CGDNet(Stem(), config, 12), []
        net.classifier[0].register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        net(x)
        assert torch.equal(seen[0], net.pooled(x)[index])


def test_all_zero_channels_do_not_poison_training():
    net = CGDNet(Stem(), 'G', 12, n_classes=2)
    net.backbone.conv.weight.data.zero_()
    net.backbone.conv.bias.data.fill_(-1)
    embedding, scores = net(torch.randn(4, 3, 9, 9))
    (embedding.sum() + scores.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_recipe_is_the_programs(table, tmp_path):
    learn = tiny(table, tmp_path, epochs=20)
    learn.create_opt()
    opt = learn.opt.opt
    assert type(opt) is torch.optim.Adam and opt.defaults['betas'] == (.9, .999) and opt.defaults['eps'] == 1e-8
    assert all(g['weight_decay'] == 0 for g in opt.param_groups)
    assert learn.prefix == 'synth_uncropped_resnet18_SG_16_0.1_0.5_0.1_8'


class Rates(Callback):
    "The rate of torch's optimizer at every step."

    def __init__(self): self.rates = []

    def after_step(self): self.rates.append(self.opt.opt.param_groups[0]['lr'])


@pytest.mark.parametrize('epochs, expected', [(1, [1e-3]), (2, [1e-3, 1e-5]), (3, [1e-3, 1e-4, 1e-5]),
                                              (5, [1e-3, 1e-3, 1e-3, 1e-4, 1e-5])])
def test_the_optimizer_steps_at_the_rates_of_the_program(table, tmp_path, epochs, expected):
    learn, watch = tiny(table, tmp_path, epochs=epochs, backbone='test_resnet'), Rates()
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(cbs=watch)
    steps = len(learn.dls.train)
    assert watch.rates == pytest.approx([rate for rate in expected for _ in range(steps)], rel=1e-9)
    if epochs == 1: return
    seeds = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(seeds, [int(.6*epochs), int(.8*epochs)], gamma=.1)
    for rate in watch.rates[::steps]:
        assert seeds.param_groups[0]['lr'] == pytest.approx(rate, rel=1e-9)
        seeds.step()
        schedule.step()


@pytest.mark.parametrize('backbone, stride', [('resnet18', 16), ('resnet10t', 32)])
def test_only_the_resnets_of_torchvision_have_the_strides_of_the_program(table, tmp_path, backbone, stride):
    assert tiny(table, tmp_path, backbone=backbone).model.backbone.stride == stride


def test_run_leaves_the_files_of_the_program_and_never_overwrites(table, tmp_path):
    learn = tiny(table, tmp_path, backbone='test_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    stats = pd.read_csv(tmp_path/f'{learn.prefix}_statistics.csv', index_col='epoch')
    assert list(stats.index) == [1, 2]
    assert list(stats.columns) == ['train_loss', 'train_accuracy', *(f'valid_recall@{k}' for k in (1, 2, 4, 8))]
    assert stats.iloc[:, 1:].to_numpy().max() > 1
    features = save_results(learn, table, n_queries=2, retrieval_num=3, progress=False)
    stored = Features.load(tmp_path/f'{learn.prefix}_data_base.safetensors')
    assert (stored['embedding'] == features['embedding']).all() and set(stored.table.split) == {'test'}
    pictures = list(tmp_path.rglob('retrieval_img_*.jpg'))
    assert len(pictures) == 2*3 and len(list(tmp_path.rglob('query_img.jpg'))) == 2
    with pytest.raises(FileExistsError): save_results(learn, table, progress=False)
    with pytest.raises(FileExistsError, match='earlier run'): tiny(table, tmp_path, backbone='test_resnet').fit_recipe()


def test_selecting_on_the_test_classes_says_so(table, tmp_path, capsys):
    learn = tiny(table, tmp_path, valid='test')
    assert 'test images' in capsys.readouterr().out
    assert set(learn.dls.valid.table.split) == {'test'}
    held = tiny(table, tmp_path, valid=.5)
    assert set(held.dls.valid.table.split) == {'valid'} and held.dls.n_classes == 4
    assert not set(held.dls.valid.table.label) & set(table[table.split == 'test'].label)


def test_valid_rows_of_the_table_pick_the_epoch_unless_the_test_classes_do(table, tmp_path, capsys):
    own = hold_out_classes(table, .25, seed=3)
    learn = tiny(own, tmp_path)
    assert "own 16 rows of split 'valid'" in capsys.readouterr().out
    assert set(learn.dls.valid.table.label) == set(own[own.split == 'valid'].label)
    assert set(tiny(own, tmp_path, valid='test').dls.valid.table.split) == {'test'}


def test_the_statistics_file_belongs_to_the_run(table, tmp_path):
    learn = tiny(table, tmp_path, epochs=1, backbone='test_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe()
    file = tmp_path/f'{learn.prefix}_statistics.csv'
    before = file.read_text()
    learn.validate()
    assert file.read_text() == before

    class Stop(Callback):
        def before_epoch(self): raise KeyboardInterrupt
    again = tiny(table, tmp_path, epochs=1, backbone='test_resnet')
    with again.no_bar(), pytest.raises(KeyboardInterrupt): again.fit_recipe(force=True, cbs=Stop())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('bad, words', [(dict(gd_config='XS'), 'XS'), (dict(feature_dim=15), '15'), (dict(valid=2.), 'valid'),
                                        (dict(batch_size=10), 'per_class'), (dict(backbone='resnet51'), 'resnet51')])
def test_bad_arguments_are_named(table, tmp_path, bad, words):
    with pytest.raises(ValueError, match=words): tiny(table, tmp_path, **bad)


def wave(rows: int, cols: int, a: float, b: float) -> torch.Tensor:
    i, j = torch.meshgrid(torch.arange(rows).double(), torch.arange(cols).double(), indexing='ij')
    return torch.sin(a*(i + 1)*(j + 1) + b*(i - j))


class PassThrough(nn.Identity):
    n_features, config = 4, {'name': 'none'}


def test_golden_embedding():
    "The head alone, against numbers computed once in float64 with the program's formula."
    net = CGDNet(PassThrough(), 'SG', 6, n_classes=2).double().eval()
    net.reductions[0].weight.data, net.reductions[1].weight.data = wave(3, 4, .9, -.5), wave(3, 4, 1.3, .4)
    embedding = net(wave(2, 16, .7, .3).abs().reshape(2, 4, 2, 2))
    golden = [[0.0928818363, 0.4039177934, 0.5729078291, 0.4993054655, 0.2099995204, -0.4545264057],
              [-0.0253436006, 0.6611023866, 0.2496023564, 0.6177410256, 0.0853527093, -0.3333330772]]
    assert embedding.flatten().tolist() == pytest.approx(sum(golden, []), abs=1e-9)
    a, b = embedding.detach()
    halves = ((a[:3] - b[:3])**2).sum()*2, ((a[3:] - b[3:])**2).sum()*2
    assert ((a - b)**2).sum().item() == pytest.approx(sum(halves).item()/2, abs=1e-12)


def test_golden_loss():
    x, y = F.normalize(wave(8, 4, .7, .3)), torch.arange(8)//2
    loss = CGDLoss()((x, 3*wave(8, 5, 1.1, .2)), y)
    assert loss.item() == pytest.approx(1.360406858569605 + 4.286278755353275, abs=1e-9)


COSTS = [  # parameters and operations of SG, 1536, as the README of the program rounds them
    ('resnet50', 98, 26_858_658, 10_644_007_424), ('resnet50', 100, 26_862_756, 10_644_015_616),
    ('resnet50', 11318, 49_848_438, 10_689_964_544), ('resnet50', 3997, 34_847_709, 10_659_977_728),
    ('resnext50_32x4d', 98, 26_330_530, 10_839_894_528), ('resnext50_32x4d', 100, 26_334_628, 10_839_902_720),
    ('resnext50_32x4d', 11318, 49_320_310, 10_885_851_648), ('resnext50_32x4d', 3997, 34_319_581, 10_855_864_832)]


@pytest.mark.parametrize('backbone, n_classes, parameters, operations', COSTS)
def test_the_costs_that_the_program_states(backbone, n_classes, parameters, operations):
    with torch.device('meta'):
        net = CGDNet(create_backbone(backbone, pretrained=False, last_strides=(1, 2)), 'SG', 1536, n_classes)
    assert (count_parameters(net), count_operations(net)) == (parameters, operations)


@pytest.mark.parametrize('config, dim, words', [('GG', 6, "'GG': not one of S, M"), ('SMG', 64, 'not divisible by 3')])
def test_wrong_configurations(config, dim, words):
    with pytest.raises(ValueError, match=words): CGDNet(PassThrough(), config, dim)
