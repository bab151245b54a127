"""Images a second of a training step: fgir's Learner against the bare torch loop of the same network, loss and optimizer.

Two ratios, each of runs that alternate in one process: batches that lie in memory, and batches that a loader makes from
image files (fgir's loader against torch's DataLoader over the same images and transforms). Above 1 means fgir is faster.

    python benchmarks/training.py [--backbone bvlc_googlenet] [--size 112] [--batch 32] [--steps 8] [--repeats 5]
"""
import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from fastai.data.core import DataLoaders
from fastai.optimizer import OptimWrapper
from torch.utils.data import DataLoader

from fgir.backbones.nets import RetrievalNet
from fgir.backbones.registry import create_backbone
from fgir.data.batches import retrieval_dls
from fgir.data.files import shared_dir
from fgir.data.fish import synth_dataset
from fgir.data.readers import read_cub
from fgir.losses.proxies import ProxyAnchorLoss
from fgir.training.learner import retrieval_learner

class Batches(list):
    "Batches in memory, in the place of a loader."
    shuffle, device, table, after_batch = False, None, None, None

    def to(self, device): self.device = device


def make(args, device):
    torch.manual_seed(0)
    net = RetrievalNet(create_backbone(args.backbone, pretrained=False), dim=512)
    return net.to(device, memory_format=torch.channels_last), ProxyAnchorLoss(args.classes, 512).to(device)


def bare(args, device, batches):
    "A plain loop as one would write it: autocast, backward, AdamW."
    net, loss = make(args, device)
    opt = torch.optim.AdamW([*net.parameters(), *loss.parameters()], 1e-4)
    net.train()

    def run():
        for x, y in batches:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            if x.dtype == torch.uint8: x = (x/255 - args.mean)/args.std
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16): value = loss(net(x), y)
            value.backward()
            opt.step()
            opt.zero_grad()
        value.item()
    return run


def ours(args, device, dls):
    net, loss = make(args, device)
    learn = retrieval_learner(dls, net, loss, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), path=tempfile.mkdtemp())
    if args.bf16: learn.to_bf16()

    def run():
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return run


def compare(args, name, n_images, **runs):
    "Median images a second of each, measured in turns, and the median of the ratios."
    seconds = {k: [] for k in runs}
    for turn in range(args.repeats + 1):
        for k, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available(): torch.cuda.synchronize()
            if turn: seconds[k].append(time.perf_counter() - start)
    rate = {k: n_images/statistics.median(v) for k, v in seconds.items()}
    ratio = statistics.median(b/a for a, b in zip(seconds['fgir'], seconds['bare'], strict=True))
    print(f"{name:24} bare {rate['bare']:8.1f}  fgir {rate['fgir']:8.1f} images/s  ratio {ratio:.3f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--backbone', default='bvlc_googlenet')
    p.add_argument('--size', type=int, default=112)
    p.add_argument('--batch', type=int, default=32)
    p.add_argument('--steps', type=int, default=8)
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--workers', type=int, default=0)
    p.add_argument('--float32', dest='bf16', action='store_false')
    args = p.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    real = shared_dir() and (shared_dir()/'data'/'CUB_100')
    table = read_cub(real) if real else synth_dataset(Path(tempfile.mkdtemp())/'fish', n_classes=40, progress=False)
    train = table[table['split'] == 'train'].iloc[:args.steps*args.batch]
    table = table.loc[[*train.index, *table.index[table['split'] == 'test'][:2]]].reset_index(drop=True)
    table['split'] = ['train']*len(train) + ['test']*2
    args.classes = train['label'].nunique()
    body = create_backbone(args.backbone, pretrained=False)
    args.mean, args.std = (torch.tensor(v, device=device)[:, None, None] for v in (body.mean, body.std))
    dls = retrieval_dls(table, args.size, args.batch, tfms='proxy_anchor', mean=body.mean, std=body.std, device=device,
                        num_workers=args.workers)
    print(f'{args.backbone}, {args.size} pixels, batches of {args.batch}, {"bf16" if args.bf16 else "float32"}, {device}, '
          f'{torch.get_num_threads()} threads, {"photographs" if real else "drawn fish"}, {args.workers} workers')
    batches = Batches((x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)) for x, y in dls.train)
    batches.device = device
    memory = DataLoaders(batches, Batches(), device=device)
    n = len(batches)*args.batch
    compare(args, 'batches in memory', n, bare=bare(args, device, batches), fgir=ours(args, device, memory))
    files = DataLoader(dls.train.dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers,
                       pin_memory=device.type == 'cuda')
    dls = DataLoaders(dls.train, Batches(), device=device)
    compare(args, 'batches from files', n, bare=bare(args, device, files), fgir=ours(args, device, dls))


if __name__ == '__main__': main()
