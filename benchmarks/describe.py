"""Images a second of `extract`, of its network part, and of the float32 loop that one writes with torchvision and a DataLoader.

    python benchmarks/describe.py                                    # medians of 5, in the precision that `auto` is here
    python benchmarks/describe.py --precision float32 --images 8 --large 4 --repeats 1        # a short look

Four tables: the networks from JPEG files of 224 pixels and of 12 megapixels; CFGA+ beside the forward pass of its network;
batch sizes 1 to 64 with memory given back and kept, in float32 and in bf16; the training step in both precisions. On a GPU
also the loop of timm's benchmark script: `timm.create_model`, cast to bfloat16, channels last, the same random batch.

The plain loop runs in one process, fgir in another that keeps its memory, as the command does; they take turns.
"""
import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fgir.backbones.memory import keep_memory
from fgir.backbones.nets import Pooled
from fgir.backbones.precision import best_precision, in_layout, in_precision
from fgir.backbones.registry import as_backbone, create_backbone
from fgir.data.fish import synth_dataset
from fgir.data.images import load_row
from fgir.data.table import make_table
from fgir.features.extraction import extract
from fgir.papers.cfga import CFGA

NETWORKS = ('resnet50', 'googlenet', 'vit')
NAMES = {'vit': 'vit_small_patch14_dinov2'}
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def photographs(folder: Path, n: int, width: int, height: int) -> pd.DataFrame:
    """JPEG files of drawn fish, enlarged, with the grain of a camera."""
    fish = synth_dataset(folder/'drawn', n_classes=2, n_per_class=(n + 1)//2, size=224, progress=False)
    draw, names = np.random.default_rng(0), [f'{i:04}.jpg' for i in range(n)]
    for i, name in enumerate(names):
        img = np.asarray(load_row(fish, i).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        grain = draw.integers(-6, 7, (height, width, 1), np.int16)
        Image.fromarray((img + grain).clip(0, 255).astype(np.uint8)).save(folder/name, quality=90)
    return make_table(names, fish['label'][:n], fish['name'][:n], 'test', folder, 'benchmark')


def timm_model(name: str, size: int):
    import timm

    more = dict(img_size=size) if name == 'vit' else {}
    return timm.create_model(NAMES.get(name, name), pretrained=False, num_classes=0, **more)


@cache
def plain_network(name: str, size: int, device: str):
    """As one makes it with torchvision, or timm for a transformer: float32, the pooled vector."""
    torch.manual_seed(0)
    if name == 'vit': return timm_model(name, size).to(device).eval()
    import torchvision

    more = dict(aux_logits=False, init_weights=False) if name == 'googlenet' else {}
    net = getattr(torchvision.models, name)(weights=None, **more)
    net.fc = torch.nn.Identity()
    return net.to(device).eval()


@cache
def our_network(name: str, size: int, device: str):
    torch.manual_seed(0)
    if name == 'cfga': return CFGA(our_network('resnet50', size, device).backbone, layers=())
    net = as_backbone(timm_model(name, size)) if name == 'vit' else create_backbone(name, pretrained=False)
    net = Pooled(net, ['S']).to(device).eval()
    return net if best_precision(torch.device(device)) == 'float32' else net.to(memory_format=torch.channels_last)


class Files(torch.utils.data.Dataset):
    """The plain loop's images."""
    def __init__(self, table: pd.DataFrame, size: int):
        from torchvision import transforms

        self.files = [Path(table.attrs['root'])/path for path in table['path']]
        norm = transforms.Normalize([.485, .456, .406], [.229, .224, .225])
        self.tfm = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor(), norm])

    def __len__(self) -> int: return len(self.files)
    def __getitem__(self, i: int): return self.tfm(Image.open(self.files[i]).convert('RGB'))


def clock(device: str) -> float:
    if device.startswith('cuda'): torch.cuda.synchronize()
    return time.perf_counter()


def plain_loop(name: str, table: pd.DataFrame, size: int, device: str) -> float:
    """Seconds to describe the files of a table by the plain loop."""
    net, start = plain_network(name, size, device), clock(device)
    loader = DataLoader(Files(table, size), batch_size=32, num_workers=os.cpu_count())
    with torch.no_grad(): vectors = [F.normalize(net(x.to(device))).cpu() for x in loader]
    assert len(torch.cat(vectors)) == len(table)
    return clock(device) - start


def our_loop(name: str, table: pd.DataFrame, size: int, device: str, precision: str) -> float:
    """Seconds to describe the files of a table by `extract`."""
    net, start = our_network(name, size, device), clock(device)
    extract(net, table, size, tfms='squash', num_workers=os.cpu_count(), progress=False, precision=precision)
    return clock(device) - start


def plain_part(name: str, n: int, batch: int, size: int, device: str) -> float:
    """Seconds of the plain network alone, for images in memory."""
    net, x = plain_network(name, size, device), torch.randn(batch, 3, size, size, device=device)
    with torch.no_grad():
        net(x[:1])
        start = clock(device)
        for i in range(0, n, batch): net(x[:n - i])
        return clock(device) - start


def our_part(name: str, n: int, batch: int, size: int, device: str, precision: str) -> float:
    """Seconds of the network part of `extract`, for images in memory."""
    net, x = our_network(name, size, device), torch.randn(batch, 3, size, size, device=device)
    with torch.no_grad(), in_precision(precision, torch.device(device)):
        net(in_layout(x[:1], precision))
        start = clock(device)
        for i in range(0, n, batch): net(in_layout(x[:n - i], precision))
        return clock(device) - start


def timm_part(name: str, n: int, batch: int, size: int, device: str) -> float:
    """Seconds of what timm's benchmark script times: a cast network, the same batch again and again."""
    how = dict(device=device, dtype=torch.bfloat16)
    net = timm_model(name, size).eval().to(**how, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size, **how).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(10): net(x)
        start = clock(device)
        for _ in range(0, n, batch): net(x)
        return clock(device) - start


def training_step(name: str, steps: int, batch: int, size: int, device: str, precision: str) -> float:
    """Seconds of some steps of fgir's training, batches in memory."""
    sys.path.insert(0, str(Path(__file__).parent))
    from fastai.data.core import DataLoaders
    from training import Batches, ours

    batches = Batches((torch.randn(batch, 3, size, size), torch.arange(batch) % 8) for _ in range(steps))
    batches.device = torch.device(device)
    args = Namespace(backbone=name, classes=8, bf16=precision == 'bf16')
    run = ours(args, torch.device(device), DataLoaders(batches, Batches(), device=torch.device(device)))
    run()
    start = clock(device)
    run()
    return clock(device) - start


def start(keep: bool, threads: int, method: str):
    """Begin a process of the benchmark, whose loaders start theirs by a method."""
    multiprocessing.set_start_method(method, force=True)
    if threads: torch.set_num_threads(threads)
    if keep: keep_memory()


class Sides:
    """Two processes, one that gives memory back and one that keeps it, and the median time of what they run in turns."""
    def __init__(self, args: Namespace):
        context, method = multiprocessing.get_context('spawn'), multiprocessing.get_start_method()
        self.args = args
        self.sides = [ProcessPoolExecutor(1, context, start, (keep, args.threads, method)) for keep in (False, True)]

    def rates(self, n: int, *tasks: tuple) -> list[float]:
        """Images a second of several tasks, (keeps memory, function, arguments…)."""
        seconds = [[] for _ in tasks]
        for turn in range(self.args.repeats + 1):
            for times, (keep, function, *more) in zip(seconds, tasks, strict=True):
                found = self.sides[keep].submit(function, *more).result()
                if turn: times.append(found)
        return [n/statistics.median(times) for times in seconds]


def networks(sides: Sides, tables: dict[str, pd.DataFrame], args: Namespace) -> pd.DataFrame:
    rows = []
    for name, (photos, table) in ((n, t) for n in args.networks for t in tables.items()):
        n, size, where = len(table), args.size, args.device
        files, memory = (name, table, size, where), (name, n, args.batch, size, where)
        found = sides.rates(n, (False, plain_loop, *files), (True, our_loop, *files, args.precision),
                            (False, plain_part, name, n, 32, size, where), (True, our_part, *memory, args.precision))
        rows.append([name, photos, n, *found[:2], found[1]/found[0], *found[2:], found[3]/found[2]])
        if where.startswith('cuda'):
            rate, = sides.rates(n, (True, timm_part, *memory))
            rows[-1] += [rate, found[3]/rate]
    columns = ['network', 'photographs', 'images', 'plain loop', 'extract', 'times', 'plain network', 'its network part', 'times',
               "timm's script", 'times']
    return pd.DataFrame(rows, columns=columns[:len(rows[0])])


def cfga(sides: Sides, args: Namespace) -> pd.DataFrame:
    rows, how = [], (args.images, args.batch, args.size, args.device)
    for precision in dict.fromkeys(['float32', args.precision]):
        forward, plus = sides.rates(args.images, *((True, our_part, name, *how, precision) for name in ('resnet50', 'cfga')))
        rows.append([precision, forward, plus, plus/forward])
    return pd.DataFrame(rows, columns=['precision', 'forward', 'CFGA+', 'share'])


def batches(sides: Sides, args: Namespace) -> pd.DataFrame:
    rows, precisions = [], list(dict.fromkeys(['float32', args.precision]))
    for batch in args.batches:
        n = -(-args.images//batch)*batch
        how = args.networks[0], n, batch, args.size, args.device
        tasks = [(keep, our_part, *how, p) for p in precisions for keep in (False, True)]
        rows.append([batch, *sides.rates(n, *tasks)])
    return pd.DataFrame(rows, columns=['batch', *(f'{p}, {what}' for p in precisions for what in ('given back', 'kept'))])


def training(sides: Sides, args: Namespace) -> pd.DataFrame:
    steps, batch, rows = 2, min(args.images, 16), []
    for precision in dict.fromkeys(['float32', 'bf16' if args.precision == 'bf16' else 'float32']):
        rates = sides.rates(steps*batch, *((keep, training_step, args.networks[0], steps, batch, args.size, args.device, precision)
                                           for keep in (False, True)))
        rows.append([precision, *rates])
    return pd.DataFrame(rows, columns=['precision', 'given back', 'kept'])


def machine(device: str) -> str:
    """What it runs on, in a line."""
    if device.startswith('cuda'): chip = torch.cuda.get_device_name(device)
    else:
        lines = Path('/proc/cpuinfo').read_text().splitlines() if platform.system() == 'Linux' else []
        chip = next((x.partition(': ')[2] for x in lines if x.startswith('model name')), platform.processor())
        flags = next((x for x in lines if x.startswith('flags')), '').split()
        chip += ', ' + (' '.join(f for f in ('avx512f', 'avx512_bf16', 'amx_bf16') if f in flags) or 'no AVX-512, no AMX')
    return f'{chip}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--precision', help='float32, bf16 or fp16; default what auto is on this machine')
    parser.add_argument('--networks', nargs='+', default=NETWORKS, metavar='NAME')
    parser.add_argument('--batches', nargs='+', type=int, default=BATCHES, metavar='N')
    parser.add_argument('--batch', type=int, help='images a batch of the network part; default 16 on a CPU, 64 on a GPU')
    for name, default in (('size', 224), ('images', 64), ('large', 16), ('repeats', 5), ('threads', 0)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--only', nargs='+', choices=['networks', 'cfga', 'batches', 'training'], default=[])
    parser.add_argument('--json', type=Path, help='also write the tables to this file')
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    args.precision = args.precision or best_precision(device)
    args.batch = args.batch or (16 if device.type == 'cpu' else 64)
    print(f'{machine(args.device)}; {args.precision}, {args.size} pixels, {args.repeats} runs; images a second', flush=True)
    sides, found = Sides(args), {'machine': machine(args.device), 'precision': args.precision}
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder)/'small', Path(folder)/'large'
        for which in (small, large): which.mkdir()
        tables = {'224 px': photographs(small, args.images, 224, 224), '12 Mpx': photographs(large, args.large, 4000, 3000)}
        parts = {'networks': lambda: networks(sides, tables, args), 'cfga': lambda: cfga(sides, args),
                 'batches': lambda: batches(sides, args), 'training': lambda: training(sides, args)}
        for name, part in parts.items():
            if args.only and name not in args.only: continue
            table = part()
            print(f'\n{name}\n{table.to_string(index=False, float_format="%.2f")}', flush=True)
            found[name] = json.loads(table.to_json(orient='split'))
    for side in sides.sides: side.shutdown()
    if args.json: args.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__': main()
