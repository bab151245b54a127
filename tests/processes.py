"How tests start several processes."
import multiprocessing
import os
import sys
from pathlib import Path

import torch

ENV = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
                    'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
TORCHRUN = [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone']


def begin(target, *args):
    "Run a function in a copy of this process, whose exit status is what the function returns."
    process = multiprocessing.get_context('fork').Process(target=_begun, args=(target, *args))
    process.start()
    return process


def _begun(target, *args):
    torch.set_num_threads(1)
    sys.exit(target(*args))
