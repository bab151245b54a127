"""Test R@1 of the epoch that a run picks against that of its last epoch, on fish of few classes.

Each run trains a small network by the recipe `cgd` (or `sane`) on half of the kinds and keeps the weights of every epoch.
Then the test images of the other half are described with the picked weights, with the last ones, and with those of the
first of the best epochs, as a plain `SaveModelCallback` would pick. Wanted: the picked epoch is within 3 points of the last
one in the median and never 10 below.

    python benchmarks/selection.py [--recipe cgd] [--classes 4 6 12 14 20 40] [--seeds 5] [--csv runs.csv]
"""
import argparse
import tempfile
from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback

from fgir.data.fish import synth_dataset
from fgir.features.retrieval import evaluate_recall
from fgir.training.callbacks import pick_epoch
from fgir.training.runs import describe_test, learner_from_recipe

RATES = dict(cgd=dict(lr=1e-2, schedule='one_cycle', net=dict(feature_dim=256), valid=.2),
             sane=dict(lr=1e-2, warm_up=0, precision='float32'))


class Weights(Callback):
    "The weights of every epoch."
    order, run_valid = 64, False

    def before_fit(self): self.states = []

    def after_epoch(self): self.states.append(deepcopy(self.model.state_dict()))


def run(args, root, n, seed):
    "One training: a row of the table."
    fish = synth_dataset(root/f'{n}-{seed}', n, args.images, 72, seed, progress=False)
    learn = learner_from_recipe(
        args.recipe, fish, backbone='test_resnet', pretrained=False, size=64, batch_size=min(32, 2*n), per_class=4, seed=seed,
        epochs=args.epochs, out=root/f'run-{n}-{seed}', loaders=dict(num_workers=0, device='cpu'), **RATES[args.recipe])
    weights = Weights()
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(cbs=weights)

    def tested(epoch):
        learn.model.load_state_dict(weights.states[epoch - 1])
        return 100*evaluate_recall(describe_test(learn, fish, progress=False))['R@1'].iloc[0]
    valid = [row[learn.recorder.columns.index('R@1')] for row in learn.history]
    picks = dict(picked=learn.picked, last=args.epochs)
    if learn.valid_split == 'valid': picks['first_best'] = pick_epoch(valid, strict=True)
    r1 = {epoch: tested(epoch) for epoch in set(picks.values())}
    return dict(recipe=args.recipe, classes=n, seed=seed, epoch=learn.picked, on=learn.selection,
                **{name: r1[epoch] for name, epoch in picks.items()})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--recipe', default='cgd', choices=list(RATES))
    p.add_argument('--classes', type=int, nargs='+', default=[4, 6, 12, 14, 20, 40])
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--images', type=int, default=24, help='of a class')
    p.add_argument('--epochs', type=int, default=8)
    p.add_argument('--csv', help='also write the runs, and skip those that are in it')
    args = p.parse_args()
    torch.set_num_threads(1)
    rows = pd.read_csv(args.csv).to_dict('records') if args.csv and Path(args.csv).exists() else []
    done = {(row['recipe'], row['classes'], row['seed']) for row in rows}
    with tempfile.TemporaryDirectory() as root:
        for seed in range(args.seeds):
            for n in args.classes:
                if (args.recipe, n, seed) in done: continue
                rows.append(run(args, Path(root), n, seed))
                if args.csv: pd.DataFrame(rows).to_csv(args.csv, index=False)
    show(pd.DataFrame(rows).query('recipe == @args.recipe'))


def show(runs):
    "Print a line for each number of classes, and the verdict over all runs."
    runs = runs.assign(picked_less_last=runs.picked - runs['last'], first_best_less_last=runs.first_best - runs['last'])
    table = runs.groupby('classes').agg(
        on=('on', lambda on: on.iloc[0].rpartition(' on ')[2]), last=('last', 'median'), picked=('picked', 'median'),
        median=('picked_less_last', 'median'), worst=('picked_less_last', 'min'),
        first_best_median=('first_best_less_last', 'median'), first_best_worst=('first_best_less_last', 'min'))
    print(table.to_string(float_format='%.1f'))
    gap = runs.picked_less_last
    print(f'{len(runs)} runs: picked less last, median {gap.median():+.1f}, worst {gap.min():+.1f} points of test R@1')


if __name__ == '__main__': main()
