"""What a gallery costs, by engine: to build, to save, to change, to search; its memory, and what an approximate one misses.

    python benchmarks/search.py [--kinds flat hnsw ivfpq:look=128 milvus lance] [--sizes 10000] [--dim 256] [--csv costs.csv]

Random unit vectors in classes of 20 around their own directions. Every line comes from a process of its own: seconds to
build, and to write the file; seconds to add 1,000 images to the file and to remove 1,000, opening it included; milliseconds
of a query alone (median of 50), in a batch of 500, and alone behind a filter that a tenth of the images pass; memory held
beside the features, bytes of the gallery's file, and the share of the ten nearest, by exact search, that were found.

`fgir.features.exact` is the exact search of the metrics, which needs no engine; `milvus` is Milvus Lite, flat; `lance` is
LanceDB, flat (`pip install lancedb`). HNSW, slow to build on few cores, and Milvus Lite, which is made for small galleries,
are left out above 200,000 rows.
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

K, QUERIES, MORE = 10, 500, 1000
LIMIT = dict(hnsw=200_000, milvus=200_000)


def peak() -> int: return 1024*resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def vectors(n: int, dim: int) -> tuple[Features, np.ndarray]:
    "A gallery with 1,000 images more, and queries of the same classes that are not in it."
    n += MORE
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(n//20 + 1, dim)).astype(np.float32)
    x = np.empty((n, dim), np.float32)
    for i in range(0, n, 2**15):
        part = x[i:i + 2**15]
        part[:] = centers[np.arange(i, i + len(part))//20]
        part += 1.5*rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    wanted = rng.integers(0, (n - MORE)//20, QUERIES)
    q = centers[wanted] + 1.5*rng.standard_normal((QUERIES, dim), dtype=np.float32)
    labels = np.arange(n)//20
    table = make_table([f'{i}.jpg' for i in range(n)], labels, labels.astype(str), 'test', '.', 'random')
    return Features({'x': x}, table, {}), q


def timed(f):
    start = time.perf_counter()
    found = f()
    return found, time.perf_counter() - start


class Lance:
    "A table of LanceDB that is searched whole, with the methods of an `Index` that are measured."
    def __init__(self, folder: str, features: Features | None = None):
        import lancedb

        database = lancedb.connect(folder)
        if features is None: self.table = database.open_table('gallery')
        else: self.table = database.create_table('gallery', data=self.rows(features))

    def rows(self, features: Features):
        import pyarrow

        vectors = pyarrow.FixedSizeListArray.from_arrays(features['x'].ravel(), features['x'].shape[1])
        columns = {c: pyarrow.array(features.table[c]) for c in ('path', 'label', 'name')}
        return pyarrow.table(columns | dict(vector=vectors))

    def search(self, q: np.ndarray, k: int, filter: dict | None = None) -> pd.DataFrame:
        found = self.table.search(q, vector_column_name='vector').distance_type('dot').limit(k)
        if filter: found = found.where('label % 10 = 0', prefilter=True)
        found = found.select(['path', 'label', '_distance']).to_pandas()
        return found if q.ndim == 1 else found.sort_values(['query_index', '_distance'])

    def add(self, features: Features): self.table.add(self.rows(features))

    def remove(self, paths: list[str]): self.table.delete(f'path in ({", ".join(map(repr, paths))})')


def bytes_of(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob('*') if f.is_file()) if path.is_dir() else path.stat().st_size


def changed(kind: str, path: Path, how) -> float:
    "Seconds to open a gallery, change it and keep the change."
    def change():
        if kind == 'lance': return how(Lance(str(path)))
        if kind == 'milvus': return how(Index.connect(str(path), collection='gallery'))
        index = Index.load(path, verify=False)
        how(index)
        index.save(path, force=True)
    return timed(change)[1]


def measure(kind: str, n: int, dim: int, folder: Path) -> dict:
    everything, q = vectors(n, dim)
    features, more = everything.select(range(n)), everything.select(range(n, n + MORE))
    kind, _, words = kind.partition(':')
    path = folder/('gallery.safetensors' if kind not in ('milvus', 'lance') else 'gallery.db')
    before = peak()
    def exactly(): return neighbours(q, features['x'], K)
    if kind == 'fgir.features.exact':
        alone = statistics.median(timed(lambda i=i: neighbours(q[i:i + 1], features['x'], K))[1] for i in range(5))
        return dict(build=0, alone=1000*alone, batch=1000*timed(exactly)[1]/QUERIES, held=peak() - before, file=0, found=1)
    if kind == 'milvus': index, build = timed(lambda: Index.connect(str(path), features, kind='flat'))
    elif kind == 'lance': index, build = timed(lambda: Lance(str(path), features))
    else:
        settings = parse_engine(words.split(',') if words else [])
        index, build = timed(lambda: Index.build(features, kind=kind, progress=False, **settings))
    few = 50 if n <= 10**5 else 10
    alone = statistics.median(timed(lambda i=i: index.search(q[i], K))[1] for i in range(few))
    (_, rows), size = exactly(), QUERIES if kind != 'lance' or n <= 10**5 else 50
    found, batch = timed(lambda: index.search(q[:size], K))
    held = peak() - before
    only = dict(label=list(range(0, n//20, 10)))
    filtered = statistics.median(timed(lambda i=i: index.search(q[i], K, only))[1] for i in range(few))
    paths = found['path'].str.removesuffix('.jpg').astype(int).to_numpy().reshape(size, K)
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(paths.tolist(), rows[:size].tolist(), strict=True)])/K
    save = timed(lambda: index.save(path))[1] if kind not in ('milvus', 'lance') else 0
    file = bytes_of(path)
    index = None  # closed
    add = changed(kind, path, lambda index: index.add(more))
    remove = changed(kind, path, lambda index: index.remove([f'{i}.jpg' for i in range(0, n, n//MORE)][:MORE]))
    return dict(build=build, save=save, add=add, remove=remove, alone=1000*alone, batch=1000*batch/size, filter=1000*filtered,
                held=held, file=file, found=recall)


COLUMNS = dict(build='9.1f', save='8.1f', add='8.2f', remove='8.2f', alone='9.2f', batch='9.2f', filter='9.2f')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kinds', nargs='+', default=['fgir.features.exact', 'flat', 'hnsw', 'ivfpq', 'milvus'])
    p.add_argument('--sizes', nargs='+', type=int, default=[10_000, 100_000, 1_000_000])
    p.add_argument('--dim', type=int, default=256)
    p.add_argument('--csv', help='also write the figures, times in s and ms, sizes in bytes')
    p.add_argument('--one', type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one: return print(json.dumps(measure(args.kinds[0], args.sizes[0], args.dim, args.one)))
    names = ''.join(f'{name:>{form.split(".")[0]}}' for name, form in COLUMNS.items())
    print(f'{"N":>8}  {"kind":20}{names}{"memory MiB":>12}{"file MiB":>10}{"found":>7}')
    rows = []
    for n, kind in product(args.sizes, args.kinds):
        if n > LIMIT.get(kind, n): continue
        with tempfile.TemporaryDirectory() as folder:
            words = ['--one', folder, '--kinds', kind, '--sizes', str(n), '--dim', str(args.dim)]
            out = subprocess.run([sys.executable, '-W', 'ignore', __file__, *words], capture_output=True, text=True)
        if out.returncode: raise SystemExit(out.stderr)
        m = json.loads(out.stdout.splitlines()[-1])
        rows.append(dict(n=n, kind=kind, dim=args.dim, **m))
        figures = ''.join(f'{m.get(name, 0):{form}}' for name, form in COLUMNS.items())
        print(f'{n:8}  {kind:20}{figures}{m["held"]/2**20:12.0f}{m["file"]/2**20:10.0f}{m["found"]:7.3f}', flush=True)
        if args.csv: pd.DataFrame(rows).round(4).to_csv(args.csv, index=False)


if __name__ == '__main__': main()
