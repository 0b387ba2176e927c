"""Trains the residual network of `hooks.py` and writes it as ONNX: weights of less than 1 MB, seeds fixed.

    python benchmarks/train_digits.py [--out benchmarks/digits.onnx] [--epochs N]

It needs PyTorch, which latpred does not, and a few minutes on one core. Eight residual blocks in three stages, at
32 x 32, 16 x 16 and 8 x 8 positions. While it learns, blocks are left out at random (stochastic depth: Huang et al.,
ECCV 2016) and so are inner channels (Dropout2d): a usual way to train on few images, and one that leaves a network
able to do without some of them. Nothing else prepares it for hooks.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from digits import CLASSES, SIDE, Digits, digits, shifted
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OUT = Path(__file__).parent / "digits.onnx"
# Width, inner width, blocks of each stage.
STAGES = ((32, 32, 3), (48, 32, 3), (48, 32, 2))
EPOCHS, BATCH, RATE, DECAY = 30, 32, 2e-3, 0.02
MOST_SHIFT = 4  # of 32, one pixel of the original
LEFT_OUT = 0.15  # probability of the last block; the l-th of L has l / L of it
CHANNELS_LEFT_OUT = 0.1
SEED = 0


def conv(before: int, behind: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, behind, 3, stride, 1, bias=False)


class Layer(nn.Module):
    """A convolution with its normalisation and activation."""

    def __init__(self, before: int, behind: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = conv(before, behind, stride), nn.BatchNorm2d(behind)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of shape (n, behind, ...)."""
        return torch.relu(self.norm(self.conv(x)))


class Block(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int, inner: int, left_out: float) -> None:
        super().__init__()
        self.first, self.drop = Layer(width, inner), nn.Dropout2d(CHANNELS_LEFT_OUT)
        self.conv, self.norm = conv(inner, width), nn.BatchNorm2d(width)
        self.left_out = left_out

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the shape that came."""
        if not self.training:
            return torch.relu(x + self.norm(self.conv(self.first(x))))
        if torch.rand(()) < self.left_out:
            return x
        return torch.relu(x + self.norm(self.conv(self.drop(self.first(x)))) / (1.0 - self.left_out))


def network() -> nn.Sequential:
    """Untrained."""
    count = sum(blocks for _, _, blocks in STAGES)
    left_out = iter([LEFT_OUT * number / count for number in range(1, count + 1)])
    layers: dict[str, nn.Module] = {"stem": Layer(1, STAGES[0][0])}
    width = STAGES[0][0]
    for number, (wide, inner, blocks) in enumerate(STAGES, 1):
        if number > 1:
            layers[f"down{number}"] = Layer(width, wide, stride=2)
        width = wide
        layers[f"stage{number}"] = nn.Sequential(*(Block(wide, inner, next(left_out)) for _ in range(blocks)))
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "classes": nn.Linear(width, CLASSES)}
    return nn.Sequential(OrderedDict(layers)).to(memory_format=torch.channels_last)  # a fifth faster


def trained(model: nn.Module, part: Digits, epochs: int) -> nn.Module:
    """The same after so many epochs, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * -(-len(part) // BATCH))
    for epoch in range(epochs):
        start_s = time.monotonic()
        loss = learned(model, part, optimizer, schedule, epoch)
        print(f"epoch {epoch + 1}: loss {loss:.4f}, {time.monotonic() - start_s:.1f} s", flush=True)
    return model.eval()


def learned(model: nn.Module, part: Digits, optimizer: Optimizer, schedule: LRScheduler, epoch: int) -> float:
    """One epoch; the mean loss. What is drawn hangs on the epoch's number alone."""
    torch.manual_seed(SEED + epoch)
    rng = np.random.default_rng([SEED, epoch])
    images = torch.from_numpy(shifted(part.images, MOST_SHIFT, rng))
    labels = torch.from_numpy(part.labels)
    model.train()
    losses = []
    for rows in torch.from_numpy(rng.permutation(len(part))).split(BATCH):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def accuracy(model: nn.Module, part: Digits) -> float:
    found = model(torch.from_numpy(part.images)).argmax(1).numpy()
    return float(np.mean(found == part.labels))


def folded(model: nn.Module) -> nn.Module:
    """The same with normalisations in the weights of their convolutions, in place."""
    for module in model.modules():
        if isinstance(module, Layer | Block):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
    return model


def exported(model: nn.Module) -> onnx.ModelProto:
    """As ONNX, without what the exporter notes of the machine that it ran on."""
    image = (torch.zeros(1, 1, SIDE, SIDE),)
    program = torch.onnx.export(model, image, input_names=["image"], output_names=["logits"], dynamo=True)
    assert program is not None
    found = program.model_proto
    graph = found.graph
    for noted in (found, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del noted.metadata_props[:]
        noted.doc_string = ""
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = folded(trained(network(), digits("learned"), options.epochs))
    for part in ("learned", "tuned", "held_out"):
        print(f"accuracy on images {part}: {accuracy(model, digits(part)):.4f}")
    onnx.save(exported(model), options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
