"""What the engines of a gallery cost: time to build, time of a query, memory, and what an approximate one misses.

    python benchmarks/search.py [--kinds flat hnsw ivfpq:look=128 milvus] [--sizes 6000 60000 1000000] [--dim 512] [--csv costs.csv]

Random unit vectors in classes of 20 around their own directions. Every figure comes from a process of its own: seconds to
build, milliseconds of a query alone (median of 50) and in a batch of 500, memory held beside the features, bytes of the
gallery's file, and the share of the ten nearest, by exact search, that were found. `fgir.features.exact` is the exact search of
the metrics, which needs no engine; `milvus` is Milvus Lite, flat. HNSW, slow to build on few cores, and Milvus Lite, which
is made for small galleries, are left out above 200,000 rows.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from fgir.app.gallery import parse_engine
from fgir.data.table import make_table
from fgir.features.exact import neighbours
from fgir.features.store import Features
from fgir.gallery.index import Index

K, QUERIES = 10, 500
LIMIT = dict(hnsw=200_000, milvus=200_000)


def peak() -> int: return 1024*resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def vectors(n: int, dim: int) -> tuple[Features, np.ndarray]:
    "A gallery, and queries of the same classes that are not in it."
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(n//20 + 1, dim)).astype(np.float32)
    x = np.empty((n, dim), np.float32)
    for i in range(0, n, 2**15):
        part = x[i:i + 2**15]
        part[:] = centers[np.arange(i, i + len(part))//20]
        part += 1.5*rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    wanted = rng.integers(0, n//20, QUERIES)
    q = centers[wanted] + 1.5*rng.standard_normal((QUERIES, dim), dtype=np.float32)
    labels = np.arange(n)//20
    table = make_table([f'{i}.jpg' for i in range(n)], labels, labels.astype(str), 'test', '.', 'random')
    return Features({'x': x}, table, {}), q


def timed(f):
    start = time.perf_counter()
    found = f()
    return found, time.perf_counter() - start


def measure(kind: str, n: int, dim: int, database: str | None) -> dict:
    features, q = vectors(n, dim)
    before = peak()
    def exactly(): return neighbours(q, features['x'], K)
    if kind == 'fgir.features.exact':
        alone = statistics.median(timed(lambda i=i: neighbours(q[i:i + 1], features['x'], K))[1] for i in range(5))
        return dict(build=0, alone=1000*alone, batch=1000*timed(exactly)[1]/QUERIES, held=peak() - before, file=0, found=1)
    if kind == 'milvus': index, build = timed(lambda: Index.connect(database, features, kind='flat', collection=f'n{n}'))
    else:
        kind, _, words = kind.partition(':')
        index, build = timed(lambda: Index.build(features, kind=kind, **parse_engine(words.split(',') if words else [])))
    held, (_, rows) = peak() - before, exactly()
    alone = statistics.median(timed(lambda i=i: index.search(q[i], K))[1] for i in range(50))
    found, batch = timed(lambda: index.search(q, K))
    paths = found['path'].str.removesuffix('.jpg').astype(int).to_numpy().reshape(QUERIES, K)
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(paths.tolist(), rows.tolist(), strict=True)])/K
    with tempfile.TemporaryDirectory() as folder:
        size = index.save(Path(folder)/'g.safetensors').stat().st_size if kind != 'milvus' else 0
    return dict(build=build, alone=1000*alone, batch=1000*batch/QUERIES, held=held, file=size, found=recall)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kinds', nargs='+', default=['fgir.features.exact', 'flat', 'hnsw', 'ivfpq', 'milvus'])
    p.add_argument('--sizes', nargs='+', type=int, default=[6000, 60_000, 1_000_000])
    p.add_argument('--dim', type=int, default=512)
    p.add_argument('--database', help='for --kinds milvus; default a folder that is deleted')
    p.add_argument('--csv', help='also write the figures, times in s and ms, sizes in bytes')
    p.add_argument('--one', action='store_true')
    args = p.parse_args()
    if args.one: return print(json.dumps(measure(args.kinds[0], args.sizes[0], args.dim, args.database)))
    print(f'{"N":>8}  {"kind":15}{"build s":>9}{"query ms":>10}{"batch ms":>10}{"memory MiB":>12}{"file MiB":>10}{"found":>7}')
    rows = []
    for n, kind in product(args.sizes, args.kinds):
        if n > LIMIT.get(kind, n): continue
        with tempfile.TemporaryDirectory() as folder:
            words = ['--one', '--kinds', kind, '--sizes', str(n), '--dim', str(args.dim)]
            words += ['--database', args.database or f'{folder}/milvus.db']
            out = subprocess.run([sys.executable, '-W', 'ignore', __file__, *words], capture_output=True, text=True)
        if out.returncode: raise SystemExit(out.stderr)
        m = json.loads(out.stdout.splitlines()[-1])
        rows.append(dict(n=n, kind=kind, dim=args.dim, **m))
        print(f'{n:8}  {kind:15}{m["build"]:9.1f}{m["alone"]:10.2f}{m["batch"]:10.2f}{m["held"]/2**20:12.0f}{m["file"]/2**20:10.0f}'
              f'{m["found"]:7.3f}', flush=True)
        if args.csv: pd.DataFrame(rows).round(4).to_csv(args.csv, index=False)


if __name__ == '__main__': main()
