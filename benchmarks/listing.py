"""CPU seconds and system calls of listing a folder of many images.

    python benchmarks/listing.py 1000000

makes that many empty files, half of them loose in one folder and half in folders of 100 below a hundred kinds, and lists them
three times: as `read_folder` does, as `os.walk` with one `stat` a file does, and as `Path.rglob` does. Linux only: `strace` counts
the calls if it is installed.
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

FGIR = 'from fgir.data.readers import read_folder; n = len(read_folder({root!r}))'
WALK = ('import os; n = sum(os.path.isfile(os.path.join(d, f)) for d, _, fs in os.walk({root!r}) for f in fs '
        'if f.endswith(".jpg"))')
RGLOB = 'from pathlib import Path; n = sum(f.is_file() for f in Path({root!r}).rglob("*.jpg"))'
WAYS = {'read_folder, to the table': FGIR, 'os.walk and isfile': WALK, 'Path.rglob and is_file': RGLOB}


def make(root: Path, n: int) -> None:
    "Write `n` empty files."
    for i in range(n//2): os.close(os.open(root/f'IMG_{i:07}.jpg', os.O_CREAT))
    for start in range(n//2, n, 100):
        folder = root/f'kind {start % 10000//100:02}'/f'{start//10000:04}'
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(start, min(start + 100, n)): os.close(os.open(folder/f'{i:07}.jpg', os.O_CREAT))


def seconds(code: str) -> tuple[float, int]:
    "CPU time of a piece of code in a fresh process after its imports, and the images that it finds."
    timed = f'import time, fgir.data.readers; t = time.process_time(); {code}; print(time.process_time() - t, n)'
    took, n = subprocess.run([sys.executable, '-c', timed], capture_output=True, text=True, check=True).stdout.split()
    return float(took), int(n)


def stats(code: str) -> int | None:
    "Calls that ask for a file's status; None without strace."
    words = ['strace', '-f', '-c', '-e', 'trace=stat,lstat,fstat,newfstatat,statx', sys.executable, '-c', code]
    try: said = subprocess.run(words, capture_output=True, text=True).stderr
    except FileNotFoundError: return None
    return sum(int(calls) for calls in re.findall(r'^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+).*(?:stat\w*)$', said, re.M))


def main(n: int = 100_000) -> None:
    "Print a table of the three ways."
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), n)
        idle, rows = stats('import fgir.data.readers'), []
        for name, code in WAYS.items():
            code = code.format(root=folder)
            took, found = seconds(code)
            calls = stats(f'import fgir.data.readers; {code}')
            rows.append(dict(way=name, images=found, seconds=round(took, 2), stats=calls if calls is None else calls - idle))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
