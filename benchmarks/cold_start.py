"""Seconds until `fgir index search` answers, and how many of them are not `import torch`.

Each row is the median of several runs, each in a fresh process, after one that warms the files. The gallery has 1,000 images
and was described by the network that is named, with random weights; the search describes one photograph with it. `beyond
torch` is the difference to a process that only imports torch, of the same round.

    python benchmarks/cold_start.py [--runs 5] [--networks bvlc_googlenet resnet50 test_resnet]
"""
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fgir.app.cli import main
from fgir.backbones.registry import create_backbone
from fgir.data.fish import synth_dataset
from fgir.data.table import make_table
from fgir.features.store import Features
from fgir.gallery.index import Index

def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, capture_output=True)
    return time.perf_counter() - start


def gallery_of(name: str, folder: Path) -> Path:
    "A gallery of 1,000 rows whose record names a network with random weights."
    weights, made = folder/f'{name}.pth', folder/f'{name}.safetensors'
    torch.save(create_backbone(name, pretrained=False).state_dict(), weights)
    words = ['index', 'build', folder/'fish', made, '--backbone', name, '--weights', weights, '--size', '96']
    if main([*map(str, words), '--device', 'cpu']): sys.exit(1)
    few = Index.load(made).store.features
    vectors = np.random.default_rng(0).normal(size=(1000, few[few.names[0]].shape[1])).astype(np.float32)
    vectors[:len(few)] = few[few.names[0]]
    table = make_table([f'{i}.jpg' for i in range(1000)], [0]*1000, ['fish']*1000, 'test', folder/'fish', 'fish')
    table.loc[:len(few) - 1, 'path'] = few.table['path'].to_numpy()
    Index.build(Features({few.names[0]: vectors}, table, few.record)).save(made, force=True)
    return made


def main_():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--networks', nargs='+', default=['bvlc_googlenet', 'resnet50', 'test_resnet'])
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        fish = synth_dataset(folder/'fish', n_classes=4, n_per_class=4, size=96, progress=False)
        photo = folder/'photo.jpg'
        photo.write_bytes((folder/'fish'/fish['path'][0]).read_bytes())
        start = 'from fgir.app.cli import main; import sys; sys.exit(main(%r))'
        commands = {'import torch': 'import torch', 'fgir --help': start % ['--help']}
        for name in args.networks:
            words = ['index', 'search', str(gallery_of(name, folder)), str(photo), '--device', 'cpu']
            commands[f'fgir index search, {name}'] = start % words
        rounds = [{name: seconds(code) for name, code in commands.items()} for _ in range(args.runs + 1)][1:]
    print(f'{"seconds, median of " + str(args.runs):36} {"all":>6} {"beyond torch":>14}')
    for name in commands:
        took = [r[name] for r in rounds]
        beyond = [r[name] - r['import torch'] for r in rounds]
        print(f'{name:36} {statistics.median(took):6.2f} {statistics.median(beyond):14.2f}')


if __name__ == '__main__': main_()
