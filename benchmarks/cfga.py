"""How fast CFGA is, beside a plain forward pass and beside the published way, in images a second.

    python benchmarks/cfga.py                 # ResNet-50, 256 pixels, float32, random weights and images
    python benchmarks/cfga.py --device cuda --images 256 --runs 5

Rows: the forward pass with pooled maps (mean and maximum); CFGA+ alone; six layers, SCDA and pooled maps at once; and the
published way to the same, one image at a time with a whole backward pass, which shares no code with fgir. Every run times all
of them in turn, and the medians of the runs are divided by that of the forward pass. `--peak` adds the memory of a batch.
"""
import argparse
import multiprocessing
import resource
import statistics
import time

import numpy as np
import torch
from scipy.ndimage import label
from torch import nn
from torch.nn import functional as F

from fgir.backbones.registry import create_backbone
from fgir.papers.cfga import CFGA, POOLED, Describe

LAYERS = [f'layer4.{b}.conv{c}' for b in (1, 2) for c in (1, 2, 3)]


def pooled(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The forward pass and what pooling makes of it."""
    with torch.no_grad(): maps = net(x)
    return F.normalize(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask, found on the host."""
    names, n = label(mask)
    best, size = 0, 0
    for i in range(1, n + 1):
        if (names == i).sum() > size: best, size = i, (names == i).sum()
    return names == best


def unit(v: torch.Tensor) -> torch.Tensor: return v/v.norm().clamp(min=1e-12)


def published(net: nn.Module, x: torch.Tensor) -> list[dict]:
    """Six layers, SCDA and pooled maps, an image at a time, the gradients read from the weights after a whole backward pass."""
    weights, answers = dict(net.named_parameters()), []
    for image in x:
        maps = net(image[None])
        total = maps.detach().sum(1)[0]
        mask = torch.from_numpy(largest((total > total.mean()).cpu().numpy())).to(maps)
        masked = maps*mask
        mean, top = F.adaptive_avg_pool2d(masked, 1)*(mask.numel()/mask.sum()), F.adaptive_max_pool2d(masked, 1)
        net.zero_grad()
        (mean.sum() + top.sum()).backward()
        answer = {}
        for name in LAYERS:
            grad = weights[f'{name}.weight'].grad
            if grad.shape[-1] == 1: change = grad[:, :, 0, 0].abs()
            else:
                grad = grad.flatten(2)
                change = grad.max(2).values + (-grad).max(2).values + grad.std(2)
            kept = torch.where((change > change.mean(0, keepdim=True)) & (change > change.mean(1, keepdim=True)), change, 0)
            answer[name] = unit(kept.mean(0)).cpu()
        whole = F.adaptive_avg_pool2d(maps, 1), F.adaptive_max_pool2d(maps, 1)
        for kind, (a, b) in dict(scda=(mean, top), pool=whole).items():
            a, b = a.detach().flatten(), b.detach().flatten()
            answer[f'{kind}_norm_each'] = torch.cat([unit(a), unit(b)]).cpu()
            answer[f'{kind}_norm_joint'] = unit(torch.cat([a, b])).cpu()
        answers.append(answer)
    return answers


def ways(net: nn.Module) -> dict:
    """What is timed: name and function of a batch."""
    plus, everything = CFGA(net), Describe(net, [*LAYERS, *POOLED])
    return {'forward, pooled': lambda x: pooled(net, x), 'CFGA+': plus, 'six layers, SCDA, pooled': everything,
            'published way': lambda x: published(net, x)}


def make(args: argparse.Namespace, n: int) -> tuple[nn.Module, torch.Tensor]:
    """A network and images."""
    torch.manual_seed(0)
    if args.threads: torch.set_num_threads(args.threads)
    net = create_backbone(args.arch, pretrained=False).to(args.device).eval()
    if args.channels_last: net = net.to(memory_format=torch.channels_last)
    return net, torch.randn(n, 3, args.size, args.size, device=args.device)


def seconds(way, x: torch.Tensor, batch: int) -> float:
    """Wall time of a way over all images."""
    start = time.perf_counter()
    for part in x.split(batch): way(part)
    if x.is_cuda: torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(args: argparse.Namespace, name: str | None, queue) -> None:
    """Put the peak memory of this process (of the GPU's tensors with one) over a batch into a queue, MB; None: before it.

    A new process begins with the peak of the one that started it, so this comes before anything large.
    """
    net, x = make(args, args.batch)
    if name: ways(net)[name](x)
    on_gpu = args.device.startswith('cuda')
    queue.put(torch.cuda.max_memory_allocated()/1e6 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3)


def measure_peak(args: argparse.Namespace, name: str | None) -> float:
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=peak, args=(args, name, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def agree(net: nn.Module, x: torch.Tensor) -> float:
    """The smallest cosine between what the fast and the published way say of some images."""
    fast, slow = Describe(net, [*LAYERS, *POOLED])(x), published(net, x)
    return min(float(F.cosine_similarity(fast[n][i].cpu(), v, 0)) for i, one in enumerate(slow) for n, v in one.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='resnet50', choices=['resnet50', 'resnet101', 'resnet152'])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    for name, default in (('size', 256), ('images', 32), ('batch', 4), ('runs', 3), ('threads', 0)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--peak', action='store_true', help='measure memory too')
    args = parser.parse_args()
    names = [None, 'forward, pooled', 'CFGA+', 'six layers, SCDA, pooled', 'published way'] if args.peak else []
    memory = {name: measure_peak(args, name) for name in names}
    net, x = make(args, args.images)
    todo = ways(net)
    print(f'{args.arch}, {args.size} px, float32, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, '
          f'{args.images} images in batches of {args.batch}, {args.runs} runs')
    print(f'smallest cosine to the published way: {agree(net, x[:4]):.7f}')
    for way in todo.values(): seconds(way, x[:args.batch], args.batch)
    times = {name: [] for name in todo}
    for _ in range(args.runs):
        for name, way in todo.items(): times[name].append(seconds(way, x, args.batch))
    base, slow = (statistics.median(times[n]) for n in ('forward, pooled', 'published way'))
    for name, found in times.items():
        mid = statistics.median(found)
        extra = f'  {memory[name] - memory[None]:6.0f} MB above an idle process' if args.peak else ''
        print(f'{name:26} {args.images/mid:8.2f} images/s  {base/mid:5.2f} of the forward pass  '
              f'{slow/mid:5.1f} times the published way{extra}')


if __name__ == '__main__': main()
