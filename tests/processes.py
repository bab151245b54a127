"How tests start several processes."
import os
import sys
from pathlib import Path

ENV = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
                    'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
TORCHRUN = [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone']
