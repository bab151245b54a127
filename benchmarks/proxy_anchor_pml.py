"""Proxy-Anchor by the recipe of PP written plainly with pytorch-metric-learning, beside `pp_proxy_anchor` of fgir.

The same network, start, images, held-out classes, transforms, optimizer, rates, warm-up and epochs; the loop, the loaders
and the loss are torch's, torchvision's and pytorch-metric-learning's. Both pick the epoch by R@1 on the held-out classes.

    python benchmarks/proxy_anchor_pml.py CUB_100 --backbone squeezenet1_1 --weights squeezenet1_1.safetensors --size 160

ROOT may be a folder of CUB-200-2011 or of Stanford Cars. `--shrink PIXELS` has both read copies of the photographs that were
shrunk once to that short side, or else a CPU decodes more than it trains. Prints one line a run: R@1, 2, 4, 8 on the test
classes, seconds an epoch.
"""
import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from fastai.callback.core import Callback
from PIL import Image
from pytorch_metric_learning.losses import ProxyAnchorLoss
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from timm.optim import AdamP
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from fgir.backbones.nets import RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.data.readers import read_cars, read_cub
from fgir.data.table import hold_out_classes
from fgir.features.retrieval import evaluate_recall
from fgir.training.runs import describe_test, learner_from_recipe

def shrunk(table, side, folder):
    "The table with JPEG copies whose short side is `side` pixels at most."
    for path in table['path']:
        image = Image.open(Path(table.attrs['root'])/path).convert('RGB')
        scale = min(1, side/min(image.size))
        copy = image.resize([round(scale*n) for n in image.size], Image.Resampling.BILINEAR, reducing_gap=3)
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        copy.save(folder/path, 'JPEG', quality=95)
    table = table.copy()
    table.attrs['root'] = str(folder)
    return table


class Photographs(Dataset):
    def __init__(self, table, transform):
        self.files = [Path(table.attrs['root'])/p for p in table['path']]
        self.labels, self.transform = table['label'].astype('category').cat.codes.tolist(), transform

    def __len__(self): return len(self.files)

    def __getitem__(self, i): return self.transform(Image.open(self.files[i]).convert('RGB')), self.labels[i]


def loader(table, args, train, body):
    crop = [T.RandomResizedCrop(args.size), T.RandomHorizontalFlip()] if train else [
        T.Resize(round(args.size*256/224)), T.CenterCrop(args.size)]
    transform = T.Compose([*crop, T.ToTensor(), T.Normalize(body.mean, body.std)])
    return DataLoader(Photographs(table, transform), 64, shuffle=train, num_workers=args.workers)


def embed(net, batches, args):
    net.eval()
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        found = [(net(x.to(args.device)).float().cpu(), y) for x, y in batches]
    return [torch.cat(part) for part in zip(*found, strict=True)]


def plain(table, args):
    torch.manual_seed(args.seed)
    held = hold_out_classes(table, .2, args.seed)
    body = create_backbone(args.backbone, weights=args.weights)
    net = RetrievalNet(body, pool='M', dim=512, layer_norm=True, bias=False).to(args.device, memory_format=torch.channels_last)
    train, valid, test = (loader(held[held['split'] == s], args, s == 'train', body) for s in ('train', 'valid', 'test'))
    loss = ProxyAnchorLoss(held[held['split'] == 'train']['label'].nunique(), 512, margin=.1, alpha=32).to(args.device)
    loss.proxies.data.copy_(F.normalize(torch.randn_like(loss.proxies)))
    opt = AdamP([dict(params=body.parameters()), dict(params=net.head.parameters()),
                 dict(params=loss.parameters(), lr=1e-2)], lr=1e-4)
    quarters = [args.epochs*k//4 for k in (1, 2, 3)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(opt, quarters, .5)
    recall, best, seconds = AccuracyCalculator(include=('precision_at_1',), k=1), (-1, None), []
    for epoch in range(args.epochs):
        start = time.perf_counter()
        body.requires_grad_(epoch >= 2)
        net.train()
        for m in net.modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.eval()
        for x, y in train:
            with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16): e = net(x.to(args.device))
            value = loss(e.float(), y.to(args.device))
            opt.zero_grad()
            value.backward()
            opt.step()
        schedule.step()
        seconds.append(time.perf_counter() - start)
        r = recall.get_accuracy(*embed(net, valid, args))['precision_at_1']
        if r > best[0]: best = r, copy.deepcopy(net.state_dict())
        print(f'plain {epoch}: loss {value.item():.3f}, valid R@1 {r:.4f}, {seconds[-1]:.0f} s', flush=True)
    net.load_state_dict(best[1])
    x, y = embed(net, test, args)
    order = (F.normalize(x)@F.normalize(x).T).fill_diagonal_(-9).topk(8).indices
    right = y[order] == y[:, None]
    return {f'R@{k}': right[:, :k].any(1).float().mean().item() for k in (1, 2, 4, 8)}, seconds


class Clock(Callback):
    "Seconds of the training part of each epoch."
    order, run_valid = 99, False

    def __init__(self, seconds): self.seconds = seconds

    def before_train(self): self.start = time.perf_counter()

    def after_train(self): self.seconds.append(time.perf_counter() - self.start)


def ours(table, args):
    learn = learner_from_recipe(
        'pp_proxy_anchor', table, out=tempfile.mkdtemp(), backbone=args.backbone, weights=args.weights, size=args.size, valid=.2,
        epochs=args.epochs, seed=args.seed, precision='bf16' if args.bf16 else 'float32',
        loaders=dict(num_workers=args.workers, device=args.device))
    seconds = []
    learn.add_cb(Clock(seconds))
    with learn.no_bar(): learn.fit_recipe()
    found = evaluate_recall(describe_test(learn, table, progress=False)).iloc[0]
    return {k: float(found[k]) for k in ('R@1', 'R@2', 'R@4', 'R@8')}, seconds


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('root', type=Path)
    p.add_argument('--backbone', default='resnet50')
    p.add_argument('--weights')
    p.add_argument('--size', type=int, default=224)
    p.add_argument('--epochs', type=int, default=20)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--workers', type=int, default=0)
    p.add_argument('--shrink', type=int)
    p.add_argument('--float32', dest='bf16', action='store_false')
    p.add_argument('--only', choices=['plain', 'fgir'])
    args = p.parse_args()
    args.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    table = (read_cub if (args.root/'images.txt').exists() else read_cars)(args.root)
    with tempfile.TemporaryDirectory() as folder:
        if args.shrink: table = shrunk(table, args.shrink, Path(folder))
        for name, run in dict(plain=plain, fgir=ours).items():
            if args.only not in (None, name): continue
            recalls, seconds = run(table, args)
            found = dict(run=name, seed=args.seed, **recalls, seconds_an_epoch=statistics.median(seconds))
            print(json.dumps(found), flush=True)


if __name__ == '__main__': main()
