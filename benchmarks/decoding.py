"""Photographs a second of decoding and resizing, and what decoding at a fraction of the size does to the vectors.

    python benchmarks/decoding.py FOLDER --weights bvlc_googlenet.safetensors

FOLDER holds photographs of any size; its subfolders are read too. Of them twelve-megapixel JPEGs are made, 4032 × 3024 pixels,
quality 90:

- enlarged: one photograph, enlarged by Lanczos, and a grain of standard deviation 4 on each pixel, as a sensor has it;
- two by two, three by three: a collage of so many enlarged photographs under the same grain.

A third of each kind is stored on its side with a note in the EXIF block, as phones do it. Each is read three ways, one thread,
the median of the passes: by Pillow (`Image.open`, `exif_transpose`, `convert`, `resize` to 224 × 224), by fgir's transform `cgd`,
which decodes all of it, and by `photos`, which decodes what it needs. Times are CPU times. The cosine is between the vectors of
`cgd` and `photos` (mean-pooled map of the network), its median and the least.
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps

from fgir.backbones.nets import Pooled
from fgir.backbones.registry import create_backbone
from fgir.data.images import load_image
from fgir.data.readers import read_folder
from fgir.data.table import image_path, make_table
from fgir.data.transforms import least_side, transform_to_test
from fgir.features.extraction import extract

WIDTH, HEIGHT = 4032, 3024
KINDS = {'enlarged': 1, 'two by two': 2, 'three by three': 3}


def make(photos: list[Path], side: int, rng) -> Image.Image:
    "A collage of `side`² photographs with grain."
    image, w, h = Image.new('RGB', (WIDTH, HEIGHT)), WIDTH//side, HEIGHT//side
    for i, photo in enumerate(photos):
        tile = load_image(photo).resize((w, h), Image.Resampling.LANCZOS)
        image.paste(tile, (i % side*w, i//side*h))
    grain = rng.normal(0, 4, (HEIGHT, WIDTH, 1)).astype(np.float32)
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, turned: bool) -> None:
    "Write a JPEG of quality 90, on its side if asked to."
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(path, quality=90, exif=exif)


def by_pillow(path: Path) -> Image.Image:
    "What a user writes."
    with Image.open(path) as img:
        return ImageOps.exif_transpose(img).convert('RGB').resize((224, 224), Image.Resampling.BILINEAR)


def by_fgir(path: Path, tfm) -> torch.Tensor: return tfm(load_image(path, least=least_side(tfm)))


def seconds(read, paths: list[Path], passes: int) -> float:
    "Median over some passes of the seconds for a photograph."
    took = []
    for _ in range(passes):
        start = time.process_time()
        for path in paths: read(path)
        took.append((time.process_time() - start)/len(paths))
    return float(np.median(took))


def row(kind: str, paths: list[Path], root: Path, net, passes: int) -> dict:
    "Measure one kind of photograph."
    tfms = {name: transform_to_test(name) for name in ('cgd', 'photos')}
    took = {'Pillow': seconds(by_pillow, paths, passes)}
    took |= {name: seconds(lambda path, tfm=tfm: by_fgir(path, tfm), paths, passes) for name, tfm in tfms.items()}
    table = make_table([path.name for path in paths], root=root)
    vectors = [extract(net, table, tfms=name, num_workers=0, progress=False)['S'] for name in tfms]
    unit = [v/np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    cosine = (unit[0]*unit[1]).sum(1)
    size = np.mean([path.stat().st_size for path in paths])/1e6
    rates = {f'{name}, a second': round(1/s, 1) for name, s in took.items()}
    return dict(kind=kind, n=len(paths), MB=round(size, 1), **rates, times=round(took['Pillow']/took['photos'], 2),
                cosine=round(float(np.median(cosine)), 5), least=round(float(cosine.min()), 5))


def main() -> None:
    "Make the photographs, measure, print a table."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--backbone', default='bvlc_googlenet')
    parser.add_argument('--weights', default=None)
    parser.add_argument('-n', type=int, default=15, help='photographs of each kind')
    parser.add_argument('--passes', type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, table = np.random.default_rng(0), read_folder(args.folder)
    net, rows = Pooled(create_backbone(args.backbone, weights=args.weights), ['S']).eval(), []
    with tempfile.TemporaryDirectory() as folder:
        for kind, side in KINDS.items():
            paths = []
            for i in range(args.n):
                chosen = [image_path(table, j) for j in rng.choice(len(table), side**2, replace=False)]
                paths.append(Path(folder)/f'{side} {i}.jpg')
                save(make(chosen, side, rng), paths[-1], i % 3 == 2)
            rows.append(row(kind, paths, Path(folder), net, args.passes))
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)


if __name__ == '__main__': main()
