"""A command that does not train loads neither what trains nor what draws; the shell completes its words."""
import os
import subprocess
import sys

import pytest
import torch

from fgir.app.cli import main
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import save_model
from fgir.data.fish import synth_dataset
from fgir.papers.cgd import CGDNet

HEAVY = ['fastai', 'sklearn', 'scipy', 'timm', 'torchvision.models', 'matplotlib.pyplot', 'pymilvus', 'gradio', 'wandb']


def loaded(*words) -> tuple[list[str], str]:
    """Which of `HEAVY` and torch a command leaves in a fresh process, and what it printed."""
    code = ('import sys; from fgir.app.cli import main; status = main(sys.argv[1:]); '
            f'print("loaded", *(m for m in {["torch", *HEAVY]!r} if m in sys.modules)); sys.exit(status)')
    p = subprocess.run([sys.executable, '-c', code, *map(str, words)], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    said, _, modules = p.stdout.rpartition('loaded')
    return modules.split(), said


def test_help_loads_no_torch():
    modules, said = loaded('index', 'search', '--help')
    assert modules == [] and '--where' in said


def test_the_shell_completes_words():
    env = os.environ | dict(_FGIR_COMPLETE='complete_bash', COMP_WORDS='fgir index s', COMP_CWORD='2')
    code = 'import sys; from fgir.app.cli import main; sys.exit(main())'
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert p.stdout.split() == ['search', 'serve'], p.stderr


@pytest.mark.parametrize('kind', ['backbone', 'model'])
def test_a_search_loads_torch_alone(tmp_path, kind):
    fish = synth_dataset(tmp_path/'fish', n_classes=4, n_per_class=2, size=48, progress=False)
    net, gallery = create_backbone('bvlc_googlenet', pretrained=False), tmp_path/'fish.safetensors'
    photo = tmp_path/'fish'/fish['path'][0]
    if kind == 'model': words = ['--model', save_model(CGDNet(net, 'SG', 8, n_classes=2).eval(), tmp_path/'net')]
    else:
        torch.save(net.state_dict(), tmp_path/'net.pth')
        words = ['--backbone', 'bvlc_googlenet', '--weights', tmp_path/'net.pth']
    engine = 'hnsw' if kind == 'model' else 'flat'
    words = ['index', 'build', tmp_path/'fish', gallery, *words, '--kind', engine, '--size', 48, '--device', 'cpu']
    assert main([str(word) for word in words]) == 0
    modules, said = loaded('index', 'search', gallery, photo, '-k', 3, '--json')
    assert modules == ['torch'] and said.count('"rank"') == 3
