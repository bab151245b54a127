"""Time and memory of fgir's measures against the bare product, the whole matrix, pytorch-metric-learning and the programs' way.

python benchmarks/metrics.py [N ...]    default 6000 and 60502, the size of Stanford Online Products' test half; random
features of 512 columns, classes of 2 to 12 images. Each figure is the median of 3 runs (1 above 20,000 rows), each row of the
table a process of its own, so that the peak memory is that of the method. "over features" is what the method held beside the
features. The same measures where a method has them: R@1, 10, 100, 1000 and MAP@R; the program's way is R@1…32 by its loop over
rows and mAP@1…200 by a KD-tree. What a method cannot do at a size in this machine's memory is left out.
"""
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from fgir.features.metrics import recall_at_k, score_queries

D, KS = 512, (1, 10, 100, 1000)
MEASURES = [*(f"R@{k}" for k in KS), "MAP@R"]


def product(x, labels):
    "The floor: all similarities in float32, a thousand rows at a time, thrown away."
    for block in x.split(1024): block @ x.T


def whole_matrix(x, labels):
    "As evaluators do it: the whole matrix, and topk of each row; recall only."
    s = x @ x.T
    s.fill_diagonal_(-torch.inf)
    hit = labels[s.topk(min(max(KS), len(x) - 1)).indices] == labels[:, None]
    return {"R@1": hit[:, :1].any(1).double().mean().item()}


def learning(k):
    "pytorch-metric-learning's calculator: R@1 and MAP@R."
    def run(x, labels):
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        wanted = ("precision_at_1", "mean_average_precision_at_r")
        found = AccuracyCalculator(wanted, k=k).get_accuracy(x, labels)
        return {"R@1": found["precision_at_1"], "MAP@R": found["mean_average_precision_at_r"]}
    return run


def seed(x, labels):
    "As CFGA does it: a float64 matrix, a loop over the rows for each K; then 200 neighbors of each from a KD-tree."
    from sklearn.neighbors import KDTree

    x, labels = x.double().numpy(), labels.numpy()
    s, recall = x @ x.T, {}
    for k in (1, 2, 4, 8, 16, 32):
        hits = 0
        for i in range(len(x)):
            same = s[i][labels == labels[i]]
            hits += (s[i][labels != labels[i]] > np.sort(same)[-2]).sum() < k
        recall[k] = hits/len(x)
    tree, precision = KDTree(x), []
    for i in range(len(x)):
        right = labels[tree.query(x[i:i + 1], 200)[1][0][1:]] == labels[i]
        place = np.flatnonzero(right) + 1
        precision.append(np.mean(np.arange(1, len(place) + 1)/place) if len(place) else 0)
    return {"R@1": recall[1], "mAP@199/hits": float(np.mean(precision))}


def fgir_cfga(x, labels):
    names = [*(f"R@{k}" for k in (1, 2, 4, 8, 16, 32)), *(f"mAP@{k}/hits" for k in (1, 5, 10, 50, 100, 199))]
    return score_queries(x, labels, measures=names).mean().to_dict()


def fgir_all(x, labels): return score_queries(x, labels, measures=MEASURES).mean().to_dict()


METHODS = {"bare product": (product, 10**7), "fgir, R@K and MAP@R": (fgir_all, 10**7),
           "fgir, R@K": (lambda x, y: {f"R@{k}": r for k, r in recall_at_k(x, y, ks=KS).items()}, 10**7),
           "whole matrix + topk": (whole_matrix, 20_000),
           "pytorch-metric-learning, k=largest class": (learning("max_bin_count"), 100_000),
           "pytorch-metric-learning, k=None": (learning(None), 12_000),
           "fgir, R@K and mAP@K of CFGA": (fgir_cfga, 10**7), "CFGA's way": (seed, 6000)}


def peak() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def features(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n).repeat_interleave(torch.randint(2, 13, (n,), generator=rng))[:n]
    x = torch.randn(int(labels.max()) + 1, D, generator=rng)[labels] + 4 * torch.randn(n, D, generator=rng)
    return torch.nn.functional.normalize(x), labels


def measure(method: str, n: int) -> dict:
    x, labels = features(n)
    run = METHODS[method][0]
    run(x[:600], labels[:600])
    before, wall, cpu = peak(), [], []
    for _ in range(3 if n <= 20_000 else 1):
        start = time.perf_counter(), time.process_time()
        result = run(x, labels)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return dict(wall=statistics.median(wall), cpu=statistics.median(cpu), mib=peak() - before, result=result)


def main(sizes):
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D={D}")
    print(f"{'N':>7}  {'method':42}{'wall s':>9}{'CPU s':>9}{'ratio':>8}{'over features, MiB':>20}  R@1, MAP")
    for n in sizes:
        for method, (_, limit) in METHODS.items():
            if n > limit: continue
            command = [sys.executable, "-W", "ignore", __file__, "--one", method, str(n)]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode: raise SystemExit(out.stderr)
            m = json.loads(out.stdout.splitlines()[-1])
            if method == "bare product": floor = m["wall"]
            times = f"{m['wall']:9.2f}{m['cpu']:9.2f}{m['wall'] / floor:8.2f}"
            found = "  ".join(f"{v:.4f}" for name, v in (m["result"] or {}).items() if name in ("R@1", "MAP@R", "mAP@199/hits"))
            print(f"{n:7}  {method:42}{times}{m['mib']:20.0f}  {found}", flush=True)


if __name__ == "__main__":
    if "--one" in sys.argv: print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else: main([int(n) for n in sys.argv[1:]] or [6000, 60_502])
