"""Time and memory of `recall_at_k` against a bare matrix product and against the whole matrix with topk.

python benchmarks/metrics.py [N ...]    default 6000 and 60000; random features of 512 columns, classes of 12 images.
Each figure is the median of 3 runs (1 above 20,000 rows), each row of the table a process of its own, so that the peak
memory is that of the method. "over features" is what the method held beside the features themselves. CPU time is summed
over the threads.
"""
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from fgir.metrics import recall_at_k

D, KS = 512, (1, 10, 100, 1000)


def product(x, labels):
    "The floor: all similarities in float32, a thousand rows at a time, thrown away."
    for block in x.split(1024): block @ x.T


def whole_matrix(x, labels):
    "As evaluators do it: the whole matrix, and topk of each row."
    s = x @ x.T
    s.fill_diagonal_(-torch.inf)
    hit = labels[s.topk(min(max(KS), len(x) - 1)).indices] == labels[:, None]
    return {k: hit[:, :k].any(1).double().mean().item() for k in KS}


METHODS = {"bare product": product, "whole matrix + topk": whole_matrix,
           "recall_at_k": lambda x, labels: recall_at_k(x, labels, ks=KS),
           "recall_at_k euclidean": lambda x, labels: recall_at_k(x, labels, ks=KS, metric="euclidean")}


def peak() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(method: str, n: int) -> dict:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n) // 12
    x = torch.randn(n // 12 + 1, D, generator=rng)[labels] + 4 * torch.randn(n, D, generator=rng)
    x = torch.nn.functional.normalize(x)
    METHODS[method](x[:64], labels[:64])
    before, wall, cpu = peak(), [], []
    for _ in range(3 if n <= 20_000 else 1):
        start = time.perf_counter(), time.process_time()
        result = METHODS[method](x, labels)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return dict(wall=statistics.median(wall), cpu=statistics.median(cpu), mib=peak() - before, result=result)


def main(sizes):
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D={D}")
    print(f"{'N':>7}  {'method':24}{'wall s':>9}{'CPU s':>9}{'CPU ratio':>11}{'over features, MiB':>20}  R@1")
    for n in sizes:
        for method in METHODS:
            if method == "whole matrix + topk" and n > 20_000: continue
            out = subprocess.run([sys.executable, __file__, "--one", method, str(n)], capture_output=True, text=True)
            if out.returncode: raise SystemExit(out.stderr)
            m = json.loads(out.stdout)
            if method == "bare product": floor = m["cpu"]
            times = f"{m['wall']:9.2f}{m['cpu']:9.2f}{m['cpu'] / floor:11.2f}"
            first = f"{m['result']['1']:.4f}" if m["result"] else ""
            print(f"{n:7}  {method:24}{times}{m['mib']:20.0f}  {first}", flush=True)


if __name__ == "__main__":
    if "--one" in sys.argv: print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else: main([int(n) for n in sys.argv[1:]] or [6000, 60_000])
