"""How often fgir's 95 % intervals hold the true value, how often `compare` sees a difference where there is none, and its power.

python benchmarks/intervals.py [coverage] [compare] [power] [--repeats 4000]      default all three, some minutes on one core

Classes are drawn from a population whose mean recall is known. The recall of a class is beta distributed around R@1 with a
correlation of its queries of 0 (all classes alike), 0.05, 0.1, 0.2 or 0.3 (at R@1 = 0.7 the classes' standard deviation is then
0.25); its queries succeed by that chance. Sizes: 20 queries each, 5 each, log-normal (median 12, factor e a standard deviation)
or Zipf's (100, 50, 33, 25…, at least 2). An interval is of fgir's own code, `fgir.features.intervals._interval`.

Two descriptors that are compared have the same mean; classes differ in both alike (correlation 0 or 0.2), and in each by itself
besides (0 or 0.1); 7 of 10 of their queries succeed or fail together as far as the two chances allow. Power: the second is better
by d in every class, before it differs by itself (R@1 0.5, 20 queries a class, correlations 0.2 and 0.02: the differences of
classes have a standard deviation of 10 points besides chance).
"""
import argparse
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import norm

from fgir.features.intervals import _interval

CLASSES, RECALLS, ALIKE = (2, 3, 4, 5, 7, 10, 20, 50, 100), (.3, .5, .7, .9, .95, .99), (0, .05, .1, .2, .3)
SIZES = {"20 each": lambda n: np.full(n, 20), "5 each": lambda n: np.full(n, 5),
         "log-normal": lambda n: np.exp(norm.ppf((np.arange(n) + .5)/n))*12, "Zipf": lambda n: 100/np.arange(1, n + 1)}


def sizes(kind: str, n: int) -> np.ndarray: return SIZES[kind](n).round().clip(2).astype(int)


def recalls(mean: float | np.ndarray, alike: float, shape: tuple, rng: np.random.Generator) -> np.ndarray:
    "Beta distributed chances with a mean and a correlation."
    mean = np.broadcast_to(mean, shape)
    if not alike: return mean
    a, b = (np.maximum(m*(1 - alike)/alike, 1e-12) for m in (mean, 1 - mean))
    return rng.beta(a, b)


def coverage(kind: str, classes: int, recall: float, alike: float, repeats: int, seed: int = 0) -> float:
    "Share of intervals that hold the population's recall; NaN where there are too few classes."
    rng, n = np.random.default_rng(seed), np.broadcast_to(sizes(kind, classes), (repeats, classes))
    hits = rng.binomial(n, recalls(recall, alike, n.shape, rng))
    low, high = _interval(hits, n)
    return float("nan") if np.isnan(low).any() else ((low <= recall) & (recall <= high)).mean()


def differences(kind: str, classes: int, recall: float, alike: float, own: float, together: float, repeats: int,
                better: float = 0., seed: int = 0) -> float:
    "Share of comparisons in which zero lies outside of the interval; NaN where there are too few classes."
    rng, n = np.random.default_rng(seed), np.broadcast_to(sizes(kind, classes), (repeats, classes))
    both = recalls(recall, alike, n.shape, rng)
    a, b = (recalls(np.clip(both + d, 0, 1), own, n.shape, rng) for d in (0, better))
    shared = np.round(together*n).astype(int)
    total = np.sign(b - a)*rng.binomial(shared, np.abs(b - a)) + rng.binomial(n - shared, b) - rng.binomial(n - shared, a)
    low, high = _interval(total, n, difference=True)
    return float("nan") if np.isnan(low).any() else ((low > 0) | (high < 0)).mean()


def span(values: list[float]) -> str:
    "Lowest and highest in percent, of what is printed at all."
    values = 100*np.array([v for v in values if not np.isnan(v)])
    return f"{values.min():.0f} to {values.max():.0f}" if len(values) else "too few classes"


def coverage_table(repeats: int) -> pd.DataFrame:
    def held(n, p): return span([coverage(s, n, p, alike, repeats) for s, alike in product(SIZES, ALIKE)])
    return pd.DataFrame({f"R@1 {p}": {n: held(n, p) for n in CLASSES} for p in RECALLS}).rename_axis("classes")


def compare_table(repeats: int) -> pd.DataFrame:
    kinds = list(product(SIZES, (0, .2), (0, .1)))
    def false(n, p): return span([differences(s, n, p, alike, own, .7, repeats) for s, alike, own in kinds])
    found = {f"R@1 {p}": {n: false(n, p) for n in CLASSES if n > 3} for p in (.5, .7, .9, .99)}
    return pd.DataFrame(found).rename_axis("classes")


def least(classes: int, repeats: int, power: float = .8) -> float:
    "The difference that is seen in four of five comparisons."
    steps = np.arange(.01, .45, .01)
    return next((d for d in steps if differences("20 each", classes, .5, .2, .02, .7, repeats, better=d) >= power), np.nan)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="*", default=["coverage", "compare", "power"])
    p.add_argument("--repeats", type=int, default=4000)
    args = p.parse_args()
    if "coverage" in args.what: print("intervals that hold, %\n", coverage_table(args.repeats).to_string(), flush=True)
    if "compare" in args.what: print("differences where there are none, %\n", compare_table(args.repeats).to_string(), flush=True)
    if "power" in args.what:
        for c in (5, 10, 20, 50, 100): print(f"{c:4} classes: a difference of {100*least(c, args.repeats):.0f} points", flush=True)


if __name__ == "__main__": main()
