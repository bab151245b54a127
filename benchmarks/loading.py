"""Images a second of a training epoch of `retrieval_dls`, from the photographs and from the cache of resized images.

    python benchmarks/loading.py [--repeats 3] [--images 480]

Three sets: the synthetic one, photographs of 500×375 pixels (about the size of the full CUB), and the real cars where
`FGIR_SHARED` has them. The large photographs are the synthetic pictures, enlarged and saved as JPEG.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from fgir.data.batches import retrieval_dls
from fgir.data.files import shared_dir
from fgir.data.fish import synth_dataset
from fgir.data.images import load_row
from fgir.data.readers import read_cars
from fgir.data.table import image_path, make_table

def enlarged(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    "Save the images of the table as JPEG of 500×375 pixels, quality 90, below `root`."
    for i, path in enumerate(table['path']):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        load_row(table, i).resize((500, 375)).save(root / path, quality=90)
    return make_table(table['path'], table['label'], table['name'], table['split'], root, 'enlarged')


def first_rows(table: pd.DataFrame, n: int) -> pd.DataFrame:
    "Keep `n` rows of the training half, and one class to validate on."
    train = table[table['split'] == 'train'][:n]
    valid = table[table['split'] == 'test']
    return pd.concat([train, valid[valid['label'] == valid['label'].min()]]).reset_index(drop=True)


def speed(table: pd.DataFrame, num_workers: int, cache: Path | None, repeats: int) -> tuple[float, float]:
    "Images a second of an epoch (median), and the seconds that making the loaders took."
    began = time.perf_counter()
    dls = retrieval_dls(table, bs=32, per_class=4, num_workers=num_workers, cache=cache, device='cpu', progress=False)
    made = time.perf_counter() - began
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        n = sum(len(y) for _, y in dls.train)
        seconds.append(time.perf_counter() - began)
    return n / median(seconds), made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--repeats', type=int, default=3, help='epochs timed, of which the median counts (default 3)')
    parser.add_argument('--images', type=int, default=480, help='training images of each set (default 480)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        synth = synth_dataset(folder / 'synth', n_classes=40, n_per_class=24, progress=False)
        sets = {'synthetic, 128×128': synth, 'enlarged, 500×375': enlarged(synth, folder / 'enlarged')}
        if shared_dir() and (shared_dir() / 'data/cars').is_dir():
            sets['cars, short side 200'] = read_cars(shared_dir() / 'data/cars')
        rows = []
        for name, table in sets.items():
            table = first_rows(table, args.images)
            size = sum(image_path(table, i).stat().st_size for i in range(len(table))) / len(table) / 1000
            for workers in (0, 2):
                plain, _ = speed(table, workers, None, args.repeats)
                cached, made = speed(table, workers, folder / f'cache {name}', args.repeats)
                first = f'{made:.1f}' if workers == 0 else ''
                speeds = [f'{plain:.0f}', f'{cached:.0f}', f'{cached / plain:.1f}']
                rows.append([name, f'{size:.0f}', workers, *speeds, first])
    columns = ['photographs', 'kB each', 'workers', 'images/s', 'cached', 'ratio', 'seconds to cache']
    print(pd.DataFrame(rows, columns=columns).to_string(index=False))


if __name__ == '__main__':
    main()
