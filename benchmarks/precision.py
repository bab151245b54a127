"""What bfloat16 costs in R@1 on photographs: birds and cars, two networks with published weights, pooled maps and CFGA+.

    python benchmarks/precision.py                    # 1,000 test images of each set that FGIR_SHARED has
    python benchmarks/precision.py --images 0         # all of them
    python benchmarks/precision.py --precision fp16 --device cuda

A row: R@1 in float32 and in the other precision, the difference in points with its 95 % interval over classes, how many
queries changed from right to wrong and back, `chance`, and the smallest and the mean cosine between both vectors of an image.
Chance is the standard deviation of the difference if the same errors are dealt to other images, twenty times: what a change of
this size does to a set of this size, whatever its cause.
`--keep FOLDER` keeps the vectors, and the same command goes on with them.

A CPU without instructions for bfloat16 needs six times as long as in float32. There `--emulate` rounds what goes into each
convolution and what comes out, forwards and backwards, and sums in float32, as such instructions do; a last line then tells
the smallest cosine to the real bfloat16 of 16 images.
"""
import argparse
import tempfile
import time
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fgir.backbones.memory import keep_memory
from fgir.backbones.registry import create_backbone
from fgir.data.files import shared_dir
from fgir.data.readers import read_cars, read_cub
from fgir.evaluation.comparison import compare
from fgir.features.extraction import extract
from fgir.features.metrics import score_queries
from fgir.features.store import Features
from fgir.papers.cfga import Describe

NETWORKS = ('squeezenet1_1', 'bvlc_googlenet')
ARRAYS = {'pool_norm_joint': 'pooled', 'cfga+': 'CFGA+'}


def photographs(n: int) -> dict[str, pd.DataFrame]:
    """Test images of the sets, `n` of each drawn at random, by the name of the set."""
    shared = shared_dir()
    if shared is None: raise SystemExit('FGIR_SHARED: name the folder that has data/CUB_100 and data/cars')
    sets = {'birds': read_cub(shared/'data'/'CUB_100'), 'cars': read_cars(shared/'data'/'cars')}
    tests = {name: table[table['split'] == 'test'] for name, table in sets.items()}
    return {name: (t.sample(n, random_state=0).sort_index() if 0 < n < len(t) else t).reset_index(drop=True)
            for name, t in tests.items()}


def rounded(x: object) -> object:
    """A tensor with the eight bits of bfloat16, its gradient too."""
    return x.bfloat16().float() if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x


class Emulated(TorchFunctionMode):
    """Convolutions and linear layers of bfloat16, summed in float32."""
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in (F.conv2d, F.linear): return func(*args, **(kwargs or {}))
        return rounded(func(*map(rounded, args), **{k: rounded(v) for k, v in (kwargs or {}).items()}))


def described(name: str, table: pd.DataFrame, precision: str, folder: Path, args: argparse.Namespace) -> Features:
    """What a network says of a set, from its file if it is there; `emulated` is float32 that is rounded."""
    out = folder/f'{name}-{table.attrs["dataset"]}-{len(table)}-{precision}.safetensors'
    if out.exists(): return Features.load(out)
    net = create_backbone(name, weights=str(shared_dir()/'data'/'weights'/f'{name}.safetensors'))
    describe = Describe(net, [*ARRAYS]).to(args.device).eval()
    is_emulated = precision == 'emulated'
    how = dict(tfms='squash', bs=args.batch, num_workers=0, progress=False, precision='float32' if is_emulated else precision)
    with Emulated() if is_emulated else nullcontext(): return extract(describe, table, args.size, out=out, **how)


def right(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which queries have an image of their class as nearest neighbor."""
    return score_queries(torch.tensor(x), labels, measures=['R@1'])['R@1'].to_numpy() > 0


def row(exact: Features, low: Features, array: str) -> dict:
    """R@1 of both and what changed."""
    found, labels = compare(exact, low, (array, array)), exact.table['label'].to_numpy()
    a, b = (f[array]/np.linalg.norm(f[array], axis=1, keepdims=True) for f in (exact, low))
    before, after, draw = right(a, labels), right(b, labels), np.random.default_rng(0)
    dealt = [right(a + draw.permutation(b - a), labels).mean() - before.mean() for _ in range(20)]
    cosines = (a*b).sum(1)
    return {'float32': 100*found['a'], 'lower': 100*found['b'], 'points': 100*found['difference'], 'from': 100*found['low'],
            'to': 100*found['high'], 'lost': int((before & ~after).sum()), 'won': int((after & ~before).sum()),
            'chance': 100*np.std(dealt), 'cosine, least': cosines.min(), 'mean': cosines.mean()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--precision', default='bf16')
    parser.add_argument('--networks', nargs='+', default=NETWORKS, metavar='NAME')
    for name, default in (('images', 1000), ('size', 224), ('batch', 8)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--emulate', action='store_true')
    parser.add_argument('--keep', type=Path)
    args = parser.parse_args()
    keep_memory()
    lower = 'emulated' if args.emulate else args.precision
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        for name, (which, table) in product(args.networks, photographs(args.images).items()):
            start = time.perf_counter()
            exact, low = (described(name, table, p, folder, args) for p in ('float32', lower))
            rows = [dict(network=name, photographs=f'{len(table)} {which}', by=ARRAYS[array], **row(exact, low, array))
                    for array in ARRAYS]
            print(pd.DataFrame(rows).to_string(index=False, float_format='%.4g'))
            print(f'{time.perf_counter() - start:.0f} s, {lower}, torch {torch.__version__}, {args.device}', flush=True)
            if not args.emulate: continue
            few = [described(name, table[:16], p, folder, args) for p in (lower, args.precision)]
            least = {ARRAYS[array]: round(float(row(*few, array)['cosine, least']), 5) for array in ARRAYS}
            print(f'smallest cosine to {args.precision} of 16 images: {least}', flush=True)


if __name__ == '__main__': main()
