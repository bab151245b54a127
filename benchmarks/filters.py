"""What a gallery finds behind filters, after removals and after additions.

    python benchmarks/filters.py [--kinds flat hnsw ivfpq milvus] [--size 60000] [--dim 64] [--few 20000] [--csv f.csv]

Rows lie in 20 clusters, or evenly on the sphere. They are ordered by cluster, or along one direction, and the first of them,
a share from 0.1 % to all, are kept: by a filter, by removing the others, or as those that the gallery was built of before the
others were added. Queries are new, from where the kept rows are (inside) or where they are not (outside). A line tells the
share of the true ten nearest that was found, the fewest answers that a query got, and milliseconds of processor time a query,
in a batch of 100. IVF-PQ has a byte for 4 numbers, as by default a gallery of 256 has. `--few 0` has the engines search where
they would compare few rows one by one. Milvus Lite holds a tenth of the rows.
"""
import argparse
import math
import tempfile
import time
from itertools import product
from pathlib import Path

import faiss
import numpy as np
import pandas as pd

import fgir.gallery.faiss
from fgir.data.table import make_table
from fgir.features.store import Features
from fgir.gallery.faiss import unit_rows
from fgir.gallery.index import Index

SHARES = (.001, .01, .1, .25, .5, .75, .9, 1)
K, QUERIES, CLUSTERS = 10, 100, 20
ADDED = dict(hnsw=(.5, .9))
LINE = '{kind:7}{data:10}{rows:7}  {change:7}{share:6.1%}  {queries:8}{found:6.3f}{fewest:4}{ms:9.2f}'


def points(data: str, n: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Vectors in order, and the place of each, from 0 to 1."
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim), dtype=np.float32)
    if data == 'even': place = np.array([math.erf(-v) for v in x[:, 0]])/2 + .5
    else:
        place = rng.random(n)
        centers = np.random.default_rng(9).standard_normal((CLUSTERS, dim), dtype=np.float32)
        x = centers[(place*CLUSTERS).astype(int)] + .3*x
    order = place.argsort()
    return unit_rows(x[order]), place[order]


def features_of(x: np.ndarray, first: int = 0) -> Features:
    "Features of one class, whose paths are their numbers."
    rows, n = np.arange(first, first + len(x)), len(x)
    table = make_table([f'{i}.jpg' for i in rows], rows*0, ['one']*n, 'test', '.', 'points')
    return Features({'x': x}, table, {})


def built(kind: str, features: Features, folder: Path) -> Index:
    if kind == 'milvus': return Index.connect(str(folder/f'{time.time_ns()}.db'), features)
    return Index.build(features, kind=kind, **dict(bytes=features['x'].shape[1]//4) if kind == 'ivfpq' else {})


def asked(index: Index, q: np.ndarray, true: np.ndarray, filter: dict | None = None) -> dict:
    "Ask, and compare with the true rows (Q, K)."
    start = time.process_time()
    found = index.search(q, min(K, len(index)), filter)
    took = time.process_time() - start
    numbers = found['path'].str.removesuffix('.jpg').astype(int)
    lists = [set(numbers[found['query'] == i]) for i in range(len(q))]
    hits = np.mean([len(a & set(b))/len(b) for a, b in zip(lists, true.tolist(), strict=True)])
    return dict(found=hits, fewest=min(map(len, lists)), ms=1000*took/len(q))


def queries_of(data: str, dim: int, share: float) -> dict[str, np.ndarray]:
    "New vectors from where the kept rows are, and where they are not."
    q, place = points(data, 40*QUERIES, dim, 5)
    edge = max(share, 1/CLUSTERS) if data == 'clustered' else max(share, .01)
    sides = dict(inside=q[place <= edge], outside=q[place > edge] if share < 1 else q[:0])
    return {side: np.random.default_rng(0).permutation(part)[:QUERIES] for side, part in sides.items() if len(part)}


def nearest(q: np.ndarray, x: np.ndarray) -> np.ndarray:
    return faiss.knn(q, x, min(K, len(x)), metric=faiss.METRIC_INNER_PRODUCT)[1]


def measured(kind: str, data: str, n: int, dim: int, folder: Path):
    "All lines of a kind of engine over one set of points, as dicts."
    n = n//10 if kind == 'milvus' else n
    x, _ = points(data, n, dim, 0)
    features = features_of(x)
    kept = {share: max(10, round(share*n)) for share in SHARES}
    features.table['step'] = np.searchsorted([*kept.values()], np.arange(n), side='right')
    whole, one = built(kind, features, folder), dict(kind=kind, data=data, rows=n)
    for step, (share, m) in enumerate(kept.items()):
        for side, q in queries_of(data, dim, share).items():
            answer = asked(whole, q, nearest(q, x[:m]), dict(step=list(range(step + 1))))
            yield one | dict(change='filter', share=share, queries=side) | answer
    for share, m in reversed(kept.items()):
        if m < len(whole): whole.remove([f'{i}.jpg' for i in range(m, len(whole))])
        for side, q in queries_of(data, dim, share).items():
            yield one | dict(change='remove', share=share, queries=side) | asked(whole, q, nearest(q, x[:m]))
    for share in ADDED.get(kind, (.1, .5, .9)):
        m = kept[share]
        grown = built(kind, features.select(range(m)), folder)
        for part in np.array_split(np.arange(m, n), 20): grown.add(features.select(part))
        for side, q in queries_of(data, dim, share).items():
            yield one | dict(change='add', share=share, queries=side) | asked(grown, q, nearest(q, x))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kinds', nargs='+', default=['flat', 'hnsw', 'ivfpq', 'milvus'])
    p.add_argument('--data', nargs='+', default=['clustered', 'even'])
    p.add_argument('--size', type=int, default=60_000)
    p.add_argument('--dim', type=int, default=64)
    p.add_argument('--few', type=int, default=fgir.gallery.faiss._FEW, help='rows that are compared one by one')
    p.add_argument('--csv', help='also write the figures')
    args = p.parse_args()
    fgir.gallery.faiss._FEW, lines = args.few, []
    for kind, data in product(args.kinds, args.data):
        with tempfile.TemporaryDirectory() as folder:
            for line in measured(kind, data, args.size, args.dim, Path(folder)):
                lines.append(line)
                print(LINE.format(**line), flush=True)
    if args.csv: pd.DataFrame(lines).round(4).to_csv(args.csv, index=False)


if __name__ == '__main__': main()
