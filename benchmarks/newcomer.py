"""What a newcomer meets who points fgir at a folder of 200 loose photographs from a phone.

    python benchmarks/newcomer.py --weights bvlc_googlenet.safetensors

makes the folder of drawn fish of ten kinds, enlarged to the sizes of a phone under the grain of its sensor: JPEG (some on
their side, with a note in the EXIF block), HEIC, PNG, WEBP, AVIF and TIFF, from 1 to 12 million pixels; three files are broken.
It then types `fgir index build`, `fgir index search` and `fgir index serve`, and prints what they print, how long each takes
and how many of the eight answers show the kind of the photograph that was searched with.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image

from fgir.data.fish import draw_fish, synth_classes
from fgir.data.readers import FORMATS

SIZES = {(4032, 3024): .3, (3264, 2448): .2, (2048, 1536): .3, (1200, 1600): .2}
ENDINGS = {'.jpg': .55, '.heic': .2, '.png': .07, '.webp': .08, '.avif': .05, '.tif': .05}
NEEDS = {'.heic': 'HEIF', '.webp': 'WEBP', '.avif': 'AVIF'}
FAST = dict(preset='ultrafast')
OPTIONS = {'.jpg': dict(quality=88), '.heic': dict(format='HEIF', quality=60, enc_params=FAST), '.png': dict(compress_level=1),
           '.webp': dict(quality=80, method=0), '.avif': dict(speed=10), '.tif': {}}


@cache
def grain() -> np.ndarray:
    "What a sensor adds to the pixels."
    return np.random.default_rng(0).normal(0, 4, (4096, 4096, 1)).round().astype(np.int16)


def photograph(traits: dict, size: tuple[int, int], seed: list[int]) -> Image.Image:
    "One fish of a size, with grain."
    w, h = size
    side, (x, y) = max(size), np.random.default_rng(seed).integers(0, 64, 2)
    box = (side - w)/2/side*384, (side - h)/2/side*384, (side + w)/2/side*384, (side + h)/2/side*384
    fish = draw_fish(traits, 384, seed)[0].resize(size, Image.Resampling.BICUBIC, box)
    return Image.fromarray((np.asarray(fish) + grain()[y:y + h, x:x + w]).clip(0, 255).astype(np.uint8))


def make(folder: Path, n: int) -> dict[str, int]:
    "Write the photographs; the kind of each."
    rng, kinds, kind_of = np.random.default_rng(0), synth_classes(10), {}
    endings = [e for e in ENDINGS if NEEDS.get(e, 'JPEG') in FORMATS]
    shares = np.array([ENDINGS[e] for e in endings])
    for i in range(n):
        ending, size = rng.choice(endings, p=shares/shares.sum()), list(SIZES)[rng.choice(len(SIZES), p=list(SIZES.values()))]
        if ending != '.jpg': size = (1600, 1200)
        path, exif = folder/f'IMG_{4000 + i}{ending}', Image.Exif()
        image = photograph(kinds[i % 10], size, [i, 1])
        if ending == '.jpg' and i % 3 == 0:
            exif[0x0112] = 6
            image = image.transpose(Image.Transpose.ROTATE_90)
        image.save(path, exif=exif.tobytes(), **OPTIONS[ending])
        kind_of[path.name] = i % 10
    jpegs = sorted(folder.glob('*.jpg'))
    jpegs[3].write_bytes(jpegs[3].read_bytes()[:200_000])
    jpegs[len(jpegs)//3].write_bytes(b'')
    jpegs[2*len(jpegs)//3].write_text('<html>404 not found</html>')
    return kind_of


def run(*words) -> tuple[str, int]:
    "Type a command; print it with what it prints and how long it takes; what it printed and its status."
    start = time.time()
    found = subprocess.run(['fgir', *map(str, words)], capture_output=True, text=True)
    took = f'{time.time() - start:.1f} s, status {found.returncode}'
    print(f'$ fgir {" ".join(map(str, words))}\n{found.stdout}{found.stderr}[{took}]\n', flush=True)
    return found.stdout, found.returncode


def serve(gallery: Path) -> None:
    "Open the page; print how long it takes until it answers."
    start = time.time()
    page = subprocess.Popen(['fgir', 'index', 'serve', str(gallery)], stdout=subprocess.PIPE, text=True, bufsize=1,
                            env=os.environ | dict(PYTHONUNBUFFERED='1'))
    said = next(line for line in page.stdout if 'http' in line)
    with urlopen(re.search(r'http://[\w.:]+', said)[0]) as answer: status = answer.status
    print(f'$ fgir index serve {gallery}\n{said}[{time.time() - start:.1f} s, answers {status}]')
    page.send_signal(signal.SIGINT)
    page.wait(30)


def main() -> None:
    "Make the folder and type the commands."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbone', default='bvlc_googlenet')
    parser.add_argument('--weights', default=None)
    parser.add_argument('-n', type=int, default=200)
    args = parser.parse_args()
    source = ['--backbone', args.backbone, *(['--weights', args.weights] if args.weights else [])]
    with tempfile.TemporaryDirectory() as here:
        os.chdir(here)
        Path('photos').mkdir()
        kind_of = make(Path('photos'), args.n)
        size = sum(file.stat().st_size for file in Path('photos').iterdir())/1e6
        print(f'{args.n} photographs, {size:.0f} MB, three of them broken\n', flush=True)
        photograph(synth_classes(10)[4], (4032, 3024), [999, 2]).save('new.jpg', quality=88)
        if run('index', 'build', 'photos', 'gallery.safetensors', *source)[1]:
            run('index', 'build', 'photos', 'gallery.safetensors', *source, '--skip-bad')
        run('index', 'search', 'gallery.safetensors', 'new.jpg')
        found = run('index', 'search', 'gallery.safetensors', 'new.jpg', '--json')[0]
        right = [kind_of[row['path']] == 4 for row in json.loads(found)]
        print(f'{sum(right)} of {len(right)} answers show the kind of new.jpg\n')
        serve(Path('gallery.safetensors'))


if __name__ == '__main__': sys.exit(main())
