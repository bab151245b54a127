"""bfloat16 where the machine is fast in it, float32 elsewhere; memory that is kept."""
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fgir.app.cli import main
from fgir.backbones import precision as room
from fgir.backbones.memory import keep_memory
from fgir.backbones.nets import Pooled, RetrievalNet
from fgir.backbones.precision import best_precision, in_precision, normalized, pick_precision, recorded_precision
from fgir.backbones.registry import create_backbone
from fgir.backbones.saving import load_model, save_model
from fgir.data.fish import synth_dataset
from fgir.features.extraction import describe_photo, extract
from fgir.features.shards import extract_shard
from fgir.features.store import Features
from fgir.gallery.index import Index, photo_table
from fgir.papers.cfga import CFGA

CPU, GPU = torch.device('cpu'), torch.device('cuda')
NETWORK = Path(__file__).parents[1]/'nbs'/'fish_net'
HOW = dict(size=32, num_workers=0, progress=False)


@pytest.fixture(scope='module')
def fish(tmp_path_factory):
    return synth_dataset(tmp_path_factory.mktemp('fish'), n_classes=2, n_per_class=2, size=32, progress=False)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return Pooled(create_backbone('test_resnet', pretrained=False), ['S']).eval()


@pytest.fixture
def plain(monkeypatch): monkeypatch.delenv('FGIR_PRECISION', raising=False)


@pytest.mark.parametrize('flags, found', [
    ('fpu avx2 avx512f', 'float32'), ('fpu avx512f avx512_bf16', 'bf16'), ('fpu amx_bf16 amx_tile', 'bf16'), ('', 'float32')])
def test_auto_reads_what_the_processor_can_do(plain, monkeypatch, flags, found):
    monkeypatch.setattr(room, '_cpu_flags', lambda: frozenset(flags.split()))
    assert best_precision(CPU) == pick_precision('auto', CPU) == found
    assert best_precision(torch.device('mps')) == 'float32'


def test_the_flags_are_those_of_linux(monkeypatch, tmp_path):
    room._cpu_flags.cache_clear()
    (tmp_path/'cpuinfo').write_text('processor\t: 0\nvmx flags\t: ept\nflags\t\t: fpu amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n')
    for file, flags in [('cpuinfo', 'fpu amx_bf16'), ('none', '')]:
        monkeypatch.setattr(room, 'Path', lambda _, file=file: tmp_path/file)
        assert room._cpu_flags() >= set(flags.split()) and bool(room._cpu_flags()) == bool(flags)
        room._cpu_flags.cache_clear()


@pytest.mark.parametrize('has', [True, False])
def test_auto_asks_a_gpu(plain, monkeypatch, has):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: has and not including_emulation)
    assert best_precision(GPU) == ('bf16' if has else 'float32')


def test_a_variable_says_what_auto_is(monkeypatch):
    for name in ('bf16', 'fp16', 'float32'):
        monkeypatch.setenv('FGIR_PRECISION', name)
        assert pick_precision('auto', CPU) == name and pick_precision(None, CPU) == 'float32'
    monkeypatch.setenv('FGIR_PRECISION', 'half')
    with pytest.raises(ValueError, match="FGIR_PRECISION: expected one of .*, found 'half'"): best_precision(CPU)


@pytest.mark.parametrize('device, best, gallery, found', [
    (CPU, 'bf16', 'bf16', 'bf16'), (CPU, 'bf16', 'float32', 'float32'), (CPU, 'bf16', 'fp16', 'float32'),
    (CPU, 'float32', 'bf16', 'float32'), (GPU, 'bf16', 'fp16', 'fp16'), (GPU, 'bf16', 'float32', 'float32'),
    (CPU, 'bf16', '[damaged]', 'float32')])
def test_a_gallery_asks_for_its_own(monkeypatch, device, best, gallery, found):
    monkeypatch.setenv('FGIR_PRECISION', best)
    assert pick_precision('auto', device, gallery) == found
    assert pick_precision('bf16', device, gallery) == 'bf16'


def test_unknown_names_are_refused(net, fish):
    with pytest.raises(ValueError, match="precision: expected one of .*, found 'half'"): extract(net, fish, precision='half', **HOW)
    with pytest.raises(ValueError, match="precision: expected one of .*, found ''"): pick_precision('', CPU)


@pytest.mark.parametrize('found, record', [
    ('bf16', dict(precision='bf16')), ('[1]', dict(precision=[1], autocast=None)), ('float32', dict(autocast=None)),
    ('fp16', dict(autocast='torch.float16')), (None, dict(autocast=[1])), (None, {})])
def test_records_of_today_and_before(found, record): assert recorded_precision(record) == found


def test_float32_is_exact_whatever_surrounds_it():
    x = torch.randn(8, 8)
    with torch.autocast('cpu', torch.bfloat16):
        with in_precision('float32', CPU): assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled('cpu')


def test_features_in_bf16(net, fish, tmp_path):
    """Near float32, of length one, the same alone, in shares, and inside of an autocast."""
    exact, low = extract(net, fish, **HOW), extract(net, fish, precision='bf16', **HOW)
    assert (exact.record['precision'], low.record['precision']) == ('float32', 'bf16')
    cosines = (exact['S']*low['S']).sum(1)
    assert .99 < cosines.min() and cosines.max() <= 1.00001 and not np.array_equal(exact['S'], low['S'])
    np.testing.assert_allclose(np.linalg.norm(low['S'], axis=1), 1, atol=1e-6)
    with torch.autocast('cpu', torch.bfloat16):
        around, inner = extract(net, fish, **HOW), extract(net, fish, precision='float32', **HOW)
    np.testing.assert_array_equal(around['S'], low['S'])
    np.testing.assert_array_equal(inner['S'], exact['S'])
    assert around.record['precision'] == 'bf16' and inner.record['precision'] == 'float32'
    for i in range(2): both = extract_shard(net, fish, tmp_path/'both.safetensors', (i, 2), bs=2, precision='bf16', **HOW)
    assert both.record['precision'] == 'bf16'
    np.testing.assert_allclose(both['S'], low['S'], atol=1e-2)
    assert (*net.parameters(),)[0].dtype == torch.float32


def test_a_photograph_in_the_precision_of_its_gallery(net, fish, monkeypatch):
    file = f'{fish.attrs["root"]}/{fish.path[0]}'
    index = Index.build(extract(net, fish, precision='bf16', **HOW))
    for best, wanted in [('float32', 'float32'), ('bf16', 'bf16')]:
        monkeypatch.setenv('FGIR_PRECISION', best)
        how = index.as_described(descriptor=net)
        assert how['precision'] == wanted == describe_photo(net, photo_table(file), **how).record['precision']
        assert index.search_image(file, net, 1, leave_out_self=False)['score'][0] > .99
    asked = SimpleNamespace(precision='fp16')
    assert index.as_described(descriptor=asked)['precision'] == 'fp16'


def test_cfga_in_bf16_sums_in_float32(fish):
    net, how = CFGA(load_model(NETWORK).eval()), HOW | dict(size=96)
    exact, low = extract(net, fish, **how), extract(net, fish, precision='bf16', **how)
    for name in exact.names:
        cosines = F.cosine_similarity(*(torch.tensor(f[name]) for f in (exact, low)))
        assert .98 < cosines.min() < 1


def test_double_stays_double():
    assert normalized(torch.ones(2, 4).double()).dtype == torch.float64
    assert normalized(torch.ones(2, 4).half()).dtype == torch.float32


def test_commands(fish, tmp_path, capsys, monkeypatch):
    """What a command is asked for is recorded; a search follows the gallery where it can."""
    torch.manual_seed(0)
    root, gallery, file = fish.attrs['root'], tmp_path/'g.safetensors', tmp_path/'f.safetensors'
    saved = save_model(RetrievalNet(create_backbone('test_resnet', pretrained=False), dim=8).eval(), tmp_path/'net')
    how = ['--model', str(saved), '--size', '32', '--workers', '0', '--device', 'cpu']
    assert main(['extract', str(root), '--out', str(file), '--rows', 'all', '--precision', 'bf16', *how]) == 0
    assert Features.load(file).record['precision'] == 'bf16'
    assert main(['index', 'build', str(root), str(gallery), '--precision', 'bf16', *how]) == 0
    capsys.readouterr()
    assert main(['index', 'info', str(gallery)]) == 0 and json.loads(capsys.readouterr().out)['precision'] == 'bf16'
    seen = []
    real = room.in_precision
    monkeypatch.setattr('fgir.features.extraction.in_precision', lambda p, d: (seen.append(p), real(p, d))[1])
    photo = f'{root}/{fish.path[0]}'
    for best, words, wanted in [('float32', [], 'float32'), ('bf16', [], 'bf16'), ('bf16', ['--precision', 'float32'], 'float32')]:
        monkeypatch.setenv('FGIR_PRECISION', best)
        seen.clear()
        assert main(['index', 'search', str(gallery), photo, '-k', '1', *words]) == 0 and set(seen) == {wanted}
    assert main(['index', 'add', str(gallery), str(root), '--replace', '--workers', '0']) == 0 and seen[-1] == 'bf16'
    capsys.readouterr()
    assert main(['index', 'search', str(gallery), photo, '--precision', 'half']) == 1
    assert "precision: expected one of ('auto', 'float32', 'bf16', 'fp16'), found 'half'" in capsys.readouterr().err
    assert main(['index', 'search', str(file), photo, '--precision', 'bf16']) == 1
    assert 'is described already' in capsys.readouterr().err


FAULTS = '''
import resource, sys
from fgir.backbones.memory import keep_memory
kept = keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4): b'x'*2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(int(kept), faults(), int("torch" in sys.modules))
'''


@pytest.mark.skipif(sys.platform != 'linux' or not os.confstr('CS_GNU_LIBC_VERSION'), reason='glibc only')
@pytest.mark.parametrize('word, kept', [('', 1), ('0', 0)])
def test_memory_is_kept(word, kept):
    env = os.environ | dict(FGIR_KEEP_MEMORY=word)
    said = subprocess.run([sys.executable, '-c', FAULTS], capture_output=True, text=True, env=env, check=True).stdout
    is_kept, faults, has_torch = map(int, said.split())
    assert is_kept == kept and not has_torch and (faults < 2000 or not kept)


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'win32')
    assert keep_memory() is False


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', ['auto', 'fp16'])
def test_on_a_gpu(plain, fish, name):
    """A GPU describes in bf16 by itself; the vectors are near those of the CPU in float32."""
    net, how = load_model(NETWORK).eval(), HOW | dict(size=96)
    exact, low = extract(net, fish, **how), extract(net.cuda(), fish, precision=name, device='cuda', **how)
    assert low.record['precision'] == ('bf16' if name == 'auto' else name)
    assert (exact['embedding']*low['embedding']).sum(1).min() > .995
