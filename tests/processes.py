"How tests start several processes."
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

ALONE = {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'MPLBACKEND': 'Agg'}
# Each of its processes begins with the modules imported and nothing run, which takes a hundredth of a new Python's time.
FRESH = multiprocessing.get_context('forkserver')
FRESH.set_forkserver_preload(['fgir.training.runs', 'fgir.app.gallery', 'fgir.features.shards'])


def begin(target, *args):
    "Run a function in a copy of this process, whose exit status is what the function returns."
    process = multiprocessing.get_context('fork').Process(target=_in_a_copy, args=(target, *args))
    process.start()
    return process


def _in_a_copy(target, *args):
    torch.set_num_threads(1)
    sys.exit(target(*args))


class Fresh:
    "A function in a process that has run nothing yet; its exit status is what the function returns."

    def __init__(self, target, *args, **env):
        self.said = [Path(tempfile.mkdtemp(), name) for name in ('out', 'err')]
        for path in self.said: path.touch()
        self.process = FRESH.Process(target=_fresh, args=(target, args, self.said, ALONE | env, os.getcwd()))
        self.process.start()

    def send(self, number: int):
        os.kill(self.process.pid, number)

    def end(self, timeout: float = 240) -> subprocess.CompletedProcess:
        "Wait until it ends; its status and what it wrote."
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(self.said[1].read_text())
        out, err = (path.read_text() for path in self.said)
        for path in self.said: shutil.rmtree(path.parent)
        return subprocess.CompletedProcess([], self.process.exitcode, out, err)


def two_of_a_group(target, *args) -> list[subprocess.CompletedProcess]:
    "A function in two fresh processes whose environment is that of `torchrun`."
    group = dict(WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    both = [Fresh(target, *args, RANK=rank, LOCAL_RANK=rank, **group) for rank in range(2)]
    return [one.end() for one in both]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def _fresh(target, args, said, env, folder):
    for number, path in enumerate(said, 1): os.dup2(os.open(path, os.O_WRONLY), number)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update({name: str(value) for name, value in env.items()})
    os.chdir(folder)
    with suppress(KeyError): tempfile.tempdir = str(env['TMPDIR'])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.exit(target(*args))


def command(*words) -> int:
    "The command `fgir` with some words; its status."
    from fgir.app.cli import main

    return main([str(word) for word in words])


def command_in_copies(*words) -> int:
    "As `command`; the processes that it starts are copies of this one, so that they need not import all anew."
    from fgir.app import processes

    launch = processes._launch
    def by_fork(n):
        config = launch(n)
        config.start_method = 'fork'
        return config
    processes._launch = by_fork
    return command(*words)
