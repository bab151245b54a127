"""Everything that waits for a GPU, in one run of at most 20 minutes: one JSON file, a part after the other.

    python benchmarks/gpu.py --out gpu.json                      # all parts, on the GPU
    python benchmarks/gpu.py --minutes 9 --wheels wheels         # shorter limits; what is missing comes from a folder
    python benchmarks/gpu.py --list-wheels                       # how to make that folder, with this environment's versions
    python benchmarks/gpu.py --tiny --device cpu                 # a rehearsal without a GPU

Parts: the tests marked cuda and the cells of notebooks flagged so; `describe`, `training` and `cfga` of the other benchmarks;
the measures at 60,502 vectors of 512 numbers, on the GPU and on the CPU; a flat and an IVF-PQ gallery and faiss on the device;
one short training on the birds of FGIR_SHARED, or on drawn fish. Each part is a process with a time limit of its own: one that
fails, or for which something is missing, does not stop the others. Only torch and torchvision have to be there.
"""
import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Of 20 minutes; the sum is 19.5.
MINUTES = dict(tests=3, notebooks=1, describe=5, training=2.5, cfga=1.5, metrics=1.5, faiss=2, train=3)


FISH, SMALL = dict(n_classes=40, n_per_class=20, size=128), dict(n_classes=16, n_per_class=4, size=32)


def flagged_tests() -> list[str]:
    return [str(f) for f in sorted((ROOT/'tests').glob('test_*.py')) if 'mark.cuda' in f.read_text()]


def flagged_notebooks() -> list[str]:
    books = sorted([*(ROOT/'nbs').glob('*.ipynb'), *(ROOT/'nbs'/'tutorials').glob('*.ipynb')])
    return [str(f) for f in books if re.search(r'"#\| ?cuda', f.read_text())]


def commands(args: argparse.Namespace) -> dict[str, list[list[str]]]:
    """The command lines of each part."""
    python, device, tiny = [sys.executable, '-W', 'ignore'], args.device, args.tiny
    def script(name: str, *words) -> list[str]: return [*python, str(HERE/f'{name}.py'), *map(str, words)]
    def own(part: str) -> list[str]: return script('gpu', '--part', part, '--device', device, *(['--tiny'] if tiny else []))
    small = dict(
        describe=['--images', 4, '--large', 2, '--repeats', 1, '--size', 64, '--networks', 'resnet50', '--batches', 1, 4],
        training=['--size', 32, '--batch', 8, '--steps', 1, '--repeats', 1], cfga=['--size', 64, '--images', 4, '--runs', 1])
    large = dict(
        describe=['--images', 2048, '--large', 256, '--repeats', 5, '--batch', 256, '--batches', 1, 8, 64, 256],
        training=['--backbone', 'resnet50', '--size', 224, '--batch', 64, '--workers', min(8, os.cpu_count())],
        cfga=['--images', 512, '--batch', 64, '--runs', 3, '--channels-last'])
    words = small if tiny else large
    return dict(
        tests=[[*python, '-m', 'pytest', '-n', '0', '-m', 'cuda', '-q', *flagged_tests()]],
        notebooks=[['nbdev-test', '--flags', 'cuda', '--n_workers', '1', '--path', book] for book in flagged_notebooks()],
        describe=[script('describe', '--device', device, '--json', args.folder/'describe.json', *words['describe'])],
        training=[script('training', *words['training'], *more) for more in ([], ['--float32'])],
        cfga=[script('cfga', '--device', device, *words['cfga'])],
        metrics=[own('metrics')], faiss=[own('faiss')], train=[own('train')])


def seconds(run, device: str, repeats: int = 3) -> float:
    """The median time of a function, after one call that is not counted."""
    import torch

    times = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.startswith('cuda'): torch.cuda.synchronize()
        if turn: times.append(time.perf_counter() - start)
    return statistics.median(times)


def vectors(n: int, dim: int = 512, device: str = 'cpu'):
    """Unit vectors in classes of 2 to 12."""
    import torch

    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n).repeat_interleave(torch.randint(2, 13, (n,), generator=rng))[:n]
    x = torch.randn(int(labels.max()) + 1, dim, generator=rng)[labels] + 4*torch.randn(n, dim, generator=rng)
    return torch.nn.functional.normalize(x).to(device), labels


def metrics(device: str, tiny: bool) -> dict:
    """R@1, R@100 and MAP@R, beside the bare product of all pairs."""
    from fgir.features.metrics import score_queries

    found, n, wanted = {}, 600 if tiny else 60_502, ['R@1', 'R@100', 'MAP@R']
    for where in dict.fromkeys([device, 'cpu']):
        x, labels = vectors(n, device=where)
        repeats = 3 if where.startswith('cuda') or tiny else 1
        floor = seconds(lambda x=x: [block @ x.T for block in x.split(4096)], where, repeats)
        answers = []
        took = seconds(lambda x=x, y=labels, a=answers: a.append(score_queries(x, y, measures=wanted)), where, repeats)
        means = {name: float(answers[-1][name].mean()) for name in wanted}
        found[where] = dict(n=n, product=floor, measures=took, times=took/floor, means=means)
    return found


def faiss(device: str, tiny: bool) -> dict:
    """Galleries of fgir, and faiss's own exact search on the device."""
    import faiss
    import numpy as np

    from fgir.data.table import make_table
    from fgir.features.store import Features
    from fgir.gallery.index import Index

    x, labels = (np.ascontiguousarray(v.numpy()) for v in vectors(5000 if tiny else 500_000, 64 if tiny else 512))
    table = make_table([f'{i}.jpg' for i in range(len(x))], labels, labels.astype(str), 'test', Path(), 'benchmark')
    features, found = Features({'embedding': x}, table, {}), {'gpus': faiss.get_num_gpus() if hasattr(faiss, 'get_num_gpus') else 0}
    for kind in ('flat', 'ivfpq'):
        start = time.perf_counter()
        index = Index.build(features, 'embedding', kind)
        built, queries = time.perf_counter() - start, x[:500]
        took = seconds(lambda index=index, q=queries: index.search(q, 10), 'cpu')
        first = index.search(queries, 1)['path'].to_numpy()
        found[kind] = dict(rows=len(x), build=built, queries=500, search=took, itself=float((first == table['path'][:500]).mean()))
    if not found['gpus']: return found
    flat = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatIP(x.shape[1]))
    flat.add(x)
    return found | {'faiss flat on the GPU': dict(search=seconds(lambda: flat.search(x[:500], 10), 'cpu'))}


def train(device: str, tiny: bool) -> dict:
    """`fgir train sane` for a few epochs, and what it prints."""
    from contextlib import redirect_stdout
    from io import StringIO

    from fgir.app.cli import main
    from fgir.data.files import shared_dir
    from fgir.data.fish import synth_dataset

    with tempfile.TemporaryDirectory() as folder:
        shared = shared_dir()
        root = None if tiny or shared is None else shared/'data'/'CUB_100'
        weights = root and shared/'data'/'weights'/'squeezenet1_1.safetensors'
        if root is None or not root.is_dir() or not weights.is_file():
            root, weights = Path(folder)/'fish', None
            synth_dataset(root, **(SMALL if tiny else FISH), progress=False)
        words = ['train', 'sane', root, '--out', Path(folder)/'run', '--device', device, '--epochs', 1 if tiny else 4]
        if weights: words += ['--backbone', 'squeezenet1_1', '--weights', weights]
        else: words += ['--backbone', 'test_resnet', '--from-scratch', '--size', (SMALL if tiny else FISH)['size']]
        if tiny: words += ['--batch-size', 16]
        start, said = time.perf_counter(), StringIO()
        with redirect_stdout(said): status = main([str(word) for word in words])
        if status: raise SystemExit(status)
        took, lines = time.perf_counter() - start, said.getvalue().splitlines()
        return dict(command=shlex.join(map(str, words)), seconds=took, lines=lines[-12:])


OWN = dict(metrics=metrics, faiss=faiss, train=train)


def run(command: list[str], limit: float, env: dict) -> dict:
    """Run a command for some seconds at most; how it ended and the end of what it printed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True)
        try: status = process.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f'stopped after {limit:.0f} s'
        said.seek(0)
        lines = said.read().decode(errors='replace').splitlines()
    return dict(command=shlex.join(command), status=status, seconds=round(time.perf_counter() - start, 1), lines=lines[-60:])


def run_part(name: str, todo: list[list[str]], limit: float, env: dict, folder: Path) -> dict:
    """Run the commands of a part within its limit, with the figures that they leave."""
    if not todo: return dict(status='nothing is flagged')
    start, runs = time.perf_counter(), []
    for command in todo: runs.append(run(command, limit - (time.perf_counter() - start), env))
    bad = [r['status'] for r in runs if r['status'] != 0]
    found = dict(status=bad[0] if bad else 'done', seconds=round(time.perf_counter() - start, 1), runs=runs)
    if name in OWN and not bad: found['figures'] = json.loads(runs[0]['lines'].pop())
    if (folder/f'{name}.json').exists(): found['figures'] = json.loads((folder/f'{name}.json').read_text())
    return found


def is_there(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try: return bool(version(package))
    except PackageNotFoundError: return False


def install(wheels: Path, folder: Path) -> Path:
    """Unpack the wheels of packages that this Python lacks into a folder; no index is asked."""
    site, files = folder/'site', sorted(wheels.glob('*.whl'))
    if not files: raise SystemExit(f'--wheels {wheels}: no wheels in it; --list-wheels says how to make it')
    files = [str(f) for f in files if not is_there(f.name.partition('-')[0])]
    if not files: return site
    how = ['install', '-q', '--no-index', '--no-deps', '--no-compile', '--target', str(site)]
    subprocess.run([sys.executable, '-m', 'pip', *how, *files], check=True)
    return site


LARGE = ('torch', 'torchvision', 'spacy', 'nvidia-', 'ipython', 'jupyter')


def requirements(names: list[str]) -> dict[str, str]:
    """Name and version here of packages and of all that they need, but for what is `LARGE`."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement

    found, todo = {}, list(names)
    while todo:
        wanted = Requirement(todo.pop())
        name = re.sub(r'[-_.]+', '-', wanted.name).lower()
        if name in found or name.startswith(LARGE): continue
        try: there = distribution(name)
        except PackageNotFoundError: continue
        found[name] = there.version
        for text in there.requires or []:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({'extra': e}) for e in (*wanted.extras, '')): todo.append(text)
    return found


def list_wheels():
    """Print how to make a folder of wheels for a machine with another Python, or no network."""
    found = requirements(['fgir', 'pytest', 'pytest-xdist', 'hypothesis', 'pytorch-metric-learning'])
    for own in ('fgir', 'faiss-gpu'): found.pop(own, None)
    pins = ' '.join(f'{name}=={version}' for name, version in sorted(found.items()))
    platforms = ' '.join(f'--platform manylinux{p}_x86_64' for p in ('_2_28', '_2_27', '_2_17', '2014'))
    print(f'# Name the Python of the other machine. What it has is not taken from the folder, and need not be in it.\n'
          f'# faiss-gpu needs nvidia-cublas-cu12 and others, 1 GB together: bring faiss-cpu where that is too much.\n'
          f'pip download --no-deps --only-binary=:all: --python-version 3.12 {platforms} -d wheels \\\n  {pins} faiss-cpu\n'
          f'python setup.py -q egg_info          # so that recipes are found; the checkout itself is the package\n'
          f'python benchmarks/gpu.py --wheels wheels')


def machine(device: str) -> dict:
    import torch

    about = dict(torch=torch.__version__, python=sys.version.split()[0], cores=os.cpu_count(), date=time.strftime('%F %T'))
    return about | (dict(gpu=torch.cuda.get_device_name()) if device.startswith('cuda') else dict(gpu=None))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('gpu.json'))
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--minutes', type=float, default=20, help='of all parts together, at most')
    parser.add_argument('--parts', nargs='+', choices=MINUTES, default=[*MINUTES])
    parser.add_argument('--wheels', type=Path, help='folder of wheels to use')
    parser.add_argument('--list-wheels', action='store_true', help='print how to make it')
    parser.add_argument('--tiny', action='store_true', help='sizes to see that all parts run')
    parser.add_argument('--part', choices=OWN, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list_wheels: return list_wheels()
    if args.part: return print(json.dumps(OWN[args.part](args.device, args.tiny), default=float))
    began, share = time.perf_counter(), args.minutes/20
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        paths = [str(ROOT), *([str(install(args.wheels, args.folder))] if args.wheels else []), os.environ.get('PYTHONPATH', '')]
        env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, paths)), MPLBACKEND='Agg', TMPDIR=folder)
        found = dict(machine=machine(args.device), parts={})
        for name, todo in commands(args).items():
            if name not in args.parts: continue
            left = 60*args.minutes - (time.perf_counter() - began)
            limit = min(60*share*MINUTES[name], left)
            part = run_part(name, todo, limit, env, args.folder) if left > 5 else dict(status='no time left')
            found['parts'][name] = part
            args.out.write_text(json.dumps(found, indent=1))
            print(f'{name:10} {part.get("seconds", 0):7.1f} s of {limit:4.0f}  {part["status"]}', flush=True)
            if isinstance(part['status'], int): print('\n'.join(f'    {x}' for x in part['runs'][-1]['lines'][-3:]), flush=True)
    print(f'{args.out}: {time.perf_counter() - began:.0f} s')


if __name__ == '__main__': main()
