"""What can be had after the descriptor: projections, combination, mirror images and re-ranking on features of photographs.

    fgir extract CUB_200_2011 --backbone bvlc_googlenet --weights … --pool S,M --rows all --out birds.safetensors
    python benchmarks/rerank.py birds.safetensors [--views views.safetensors]

The file holds training and test rows with the arrays S and M (mean and maximum pooling); projections are learned on the
training rows, measures are those of the test rows. `--views` names features of the test rows by `Views` of the same
descriptor. Milliseconds are those of the search and the re-ranking of one query, on this machine; the description of a
mirror image costs as much as that of the image.
"""
import argparse

import pandas as pd

from fgir.features.store import Features
from fgir.gallery.rerank import RERANK, evaluate_rerank, fit_pca, fit_whitening

MEASURES = ('R@1', 'R@8', 'mAP@100', 'MAP@R')


def described(path: str, views: str | None) -> Features:
    "The test rows, with all arrays that are to be compared."
    f = Features.load(path).combine(dict(S=1, M=1), 'S + M')
    train, test = f.select('train'), f.select('test')
    x, labels = train['S + M'], train.table['label']
    for name, fit in {'S + M, pca 256': fit_pca(x, 256), 'S + M, whitened 256': fit_pca(x, 256, whiten=1),
                      'S + M, half whitened 512': fit_pca(x, 512, whiten=.5), 'S + M, learned 256': fit_whitening(x, labels, 256),
                      'S + M, learned 512': fit_whitening(x, labels, 512)}.items():
        test = test.project('S + M', fit, name)
    if views:
        v = Features.load(views).combine(dict(S=1, M=1), 'both')
        test = test.project('S + M', lambda x: v['both'], 'S + M, mirrored')
        test = test.project('S + M, mirrored', fit_whitening(x, labels, 512), 'S + M, mirrored, learned 512')
    return test


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('features')
    p.add_argument('--views')
    p.add_argument('--csv')
    args = p.parse_args()
    f = described(args.features, args.views)
    best = f.names[-1]
    parts = {name: evaluate_rerank(f, name, ['none'], MEASURES) for name in f.names}
    parts[f'{best}, then'] = evaluate_rerank(f, best, [m for m in RERANK if m != 'none'], MEASURES)
    parts['S + M, then'] = evaluate_rerank(f, 'S + M', [m for m in RERANK if m != 'none'], MEASURES)
    table = pd.concat(parts, names=['vectors']).reset_index()
    table[list(MEASURES)] *= 100
    print(table.round(1).to_string(index=False))
    if args.csv: table.round(2).to_csv(args.csv, index=False)


if __name__ == '__main__': main()
