"""Networks of `benchmarks/unseen.py` that no library builds: recurrent, dense, generative and geometric ones.

They are small versions of well-known designs, written as such networks commonly are. Needs PyTorch.
"""
# ruff: noqa: D102 - every `forward` maps the network's one input to its results

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn


def conv_norm(
    channels_in: int, channels: int, size: int = 3, stride: int = 1, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), activation())


def conv3x3(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1)


class Recurrent(nn.Module):
    """LSTM or GRU over tokens (or frames, where there is no vocabulary), a result for each step."""

    def __init__(
        self, kind: type[nn.RNNBase], vocabulary: int, width: int, hidden: int, layers: int, both_ways: bool, out: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width) if vocabulary else nn.Linear(width, width)
        self.rnn = kind(width, hidden, layers, batch_first=True, bidirectional=both_ways)
        self.out = nn.Linear(hidden * (2 if both_ways else 1), out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embedding(x))[0])


class TextReader(nn.Module):
    """CRNN: convolutions over a line of text, an LSTM over its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.Sequential(
            conv_norm(1, 32), nn.MaxPool2d(2),
            conv_norm(32, 64), nn.MaxPool2d(2),
            conv_norm(64, 128), conv_norm(128, 128), nn.MaxPool2d((2, 1)),
            conv_norm(128, 256), nn.MaxPool2d((2, 1)),
            nn.Conv2d(256, 256, (2, 1)), nn.ReLU(),
        )  # fmt: skip
        self.rnn = nn.LSTM(256, 192, 2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(384, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.columns(x).squeeze(2).transpose(1, 2))[0]).log_softmax(-1)


class UNet(nn.Module):
    """Segmentation: pooled down, transposed up, joined at every size."""

    def __init__(self, channels: Sequence[int], classes: int = 5) -> None:
        super().__init__()

        def double(channels_in: int, channels: int) -> nn.Sequential:
            return nn.Sequential(conv_norm(channels_in, channels), conv_norm(channels, channels))

        self.down = nn.ModuleList(double(*pair) for pair in pairwise((3, *channels)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, flat, 2, 2) for flat, deep in pairwise(channels))
        self.join = nn.ModuleList(double(2 * flat, flat) for flat in channels[:-1])
        self.out = nn.Conv2d(channels[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for i in reversed(range(len(self.up))):
            x = self.join[i](torch.cat([self.up[i](x), kept[i]], 1))
        return self.out(x)


class TimedResidual(nn.Module):
    """Two normed convolutions around a shift by the embedded time step."""

    def __init__(self, channels_in: int, channels: int, time_width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, channels_in), conv3x3(channels_in, channels)
        self.time = nn.Linear(time_width, channels)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels), conv3x3(channels, channels)
        self.skip = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        skipped = self.skip(x)
        hidden = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return skipped + self.conv2(F.silu(self.norm2(hidden)))


class PixelAttention(nn.Module):
    """Every pixel attends to every other."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        one = channels // self.heads
        q, k, v = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, one, height * width).unbind(1)
        weights = ((q.transpose(-1, -2) @ k) * one**-0.5).softmax(-1)
        return x + self.out((v @ weights.transpose(-1, -2)).reshape(batch, channels, height, width))


class Diffusion(nn.Module):
    """The U-Net of a diffusion model; its time step comes from the input's mean, so that there is one input."""

    def __init__(self, c: int, channels_in: int) -> None:
        super().__init__()
        width = 4 * c
        self.time = nn.Sequential(nn.Linear(c, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = conv3x3(channels_in, c)
        sizes = ((c, c), (c, 2 * c), (2 * c, 4 * c), (4 * c, 4 * c), (6 * c, 2 * c), (3 * c, c))
        self.residual = nn.ModuleList(TimedResidual(*pair, width) for pair in sizes)
        self.attention = nn.ModuleList(PixelAttention(channels) for channels in (4 * c, 4 * c, 2 * c))
        self.down = nn.ModuleList([conv3x3(c, c, 2), conv3x3(2 * c, 2 * c, 2)])
        self.out, self.norm = conv3x3(c, channels_in), nn.GroupNorm(8, c)
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(c // 2) / (c // 2)))

    def forward(self, x: Tensor) -> Tensor:
        angles = x.mean((1, 2, 3))[:, None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        flat = self.residual[0](self.stem(x), time)
        middle = self.residual[1](self.down[0](flat), time)
        deep = self.attention[0](self.residual[2](self.down[1](middle), time))
        h = self.attention[1](self.residual[3](deep, time))
        h = self.residual[4](torch.cat([F.interpolate(h, scale_factor=2.0), middle], 1), time)
        h = self.residual[5](torch.cat([F.interpolate(self.attention[2](h), scale_factor=2.0), flat], 1), time)
        return self.out(F.silu(self.norm(h)))


class Hourglass(nn.Module):
    """Key points: heat maps, and the soft position of each map's maximum."""

    def __init__(self, c: int, depth: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, c, 7, 2), conv_norm(c, c, 3, 2))
        self.down = nn.ModuleList(conv_norm(c, c, activation=activation) for _ in range(depth))
        self.skip = nn.ModuleList(conv_norm(c, c, 1) for _ in range(depth))
        self.up = nn.ModuleList(conv_norm(c, c, activation=activation) for _ in range(depth))
        self.out = nn.Conv2d(c, 17, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        kept = []
        for down, skip in zip(self.down, self.skip, strict=True):
            kept.append(skip(x))
            x = down(F.avg_pool2d(x, 2))
        for up in self.up:
            x = kept.pop() + F.interpolate(up(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        heat = self.out(x)
        batch, points, height, width = heat.shape
        shares = heat.flatten(2).softmax(-1).reshape(batch, points, height, width)
        across = (shares.sum(2) * torch.linspace(0, 1, width)).sum(-1)
        return heat, across, (shares.sum(3) * torch.linspace(0, 1, height)).sum(-1)


class SuperResolution(nn.Module):
    """EDSR: residual blocks without norms, three times the pixels by shuffling channels."""

    def __init__(self, c: int = 48, blocks: int = 8) -> None:
        super().__init__()
        self.stem = conv3x3(3, c)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv3x3(c, c), nn.LeakyReLU(0.2), conv3x3(c, c)) for _ in range(blocks)
        )
        self.out = conv3x3(c, 27)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        z = stem
        for block in self.blocks:
            z = z + 0.2 * block(z)
        return F.pixel_shuffle(self.out(stem + z), 3) + F.interpolate(x, scale_factor=3.0, mode="bilinear")


class StyleTransfer(nn.Module):
    """Convolutions of reflected images with a norm of every image by itself."""

    def __init__(self, c: int = 24) -> None:
        super().__init__()

        def conv(channels_in: int, channels: int, size: int, stride: int = 1) -> nn.Sequential:
            reflected = nn.ReflectionPad2d(size // 2), nn.Conv2d(channels_in, channels, size, stride)
            return nn.Sequential(*reflected, nn.InstanceNorm2d(channels, affine=True))

        self.down = nn.Sequential(
            conv(3, c, 9), nn.ReLU(), conv(c, 2 * c, 3, 2), nn.ReLU(), conv(2 * c, 4 * c, 3, 2), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(4 * c, 4 * c, 3), nn.ReLU(), conv(4 * c, 4 * c, 3)) for _ in range(4)
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2.0), conv(4 * c, 2 * c, 3), nn.ReLU(),
            nn.Upsample(scale_factor=2.0), conv(2 * c, c, 3), nn.ReLU(),
            nn.ReflectionPad2d(4), nn.Conv2d(c, 3, 9), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = x + block(x)
        return self.up(x)


class Separator(nn.Module):
    """Conv-TasNet: dilated convolutions over a sound wave, a mask for each of two speakers."""

    def __init__(self, c: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, c, 16, 8)
        self.blocks = nn.ModuleList(self.block(c, 2 ** (i % 6)) for i in range(12))
        self.masks = nn.Conv1d(c, 2 * c, 1)
        self.decoder = nn.ConvTranspose1d(c, 1, 16, 8)

    @staticmethod
    def block(c: int, dilation: int) -> nn.Sequential:
        widen = nn.Conv1d(c, 2 * c, 1), nn.PReLU(), nn.GroupNorm(1, 2 * c)
        depthwise = nn.Conv1d(2 * c, 2 * c, 3, padding=dilation, dilation=dilation, groups=2 * c)
        return nn.Sequential(*widen, depthwise, nn.PReLU(), nn.GroupNorm(1, 2 * c), nn.Conv1d(2 * c, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.encoder(x)
        z = encoded
        for block in self.blocks:
            z = z + block(z)
        one, other = self.masks(z).sigmoid().chunk(2, 1)
        return torch.cat([self.decoder(one * encoded), self.decoder(other * encoded)], 1)


class PointNet(nn.Module):
    """Every point of a cloud by itself, a maximum over all of them, and a class for each."""

    def __init__(self) -> None:
        super().__init__()

        def shared(*channels: int) -> nn.Sequential:
            steps = [(nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(channels)]
            return nn.Sequential(*(module for step in steps for module in step))

        self.turn, self.turned = shared(3, 64, 128, 512), nn.Linear(512, 9)
        self.local, self.whole, self.joined = shared(3, 64, 64), shared(64, 128, 1024), shared(1088, 256, 128)
        self.out = nn.Conv1d(128, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.transpose(1, 2) @ self.turned(self.turn(x).amax(-1)).view(-1, 3, 3)).transpose(1, 2)
        local = self.local(x)
        whole = self.whole(local).amax(-1, keepdim=True)
        return self.out(self.joined(torch.cat([local, whole.expand(-1, -1, local.shape[2])], 1)))


class VideoConvolutions(nn.Module):
    """R(2+1)D: convolutions over space, then over time."""

    def __init__(self) -> None:
        super().__init__()

        def split(channels_in: int, channels: int, stride: int) -> nn.Sequential:
            space = nn.Conv3d(channels_in, channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
            time = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
            return nn.Sequential(space, nn.BatchNorm3d(channels), nn.ReLU(), time, nn.BatchNorm3d(channels), nn.ReLU())

        self.body = nn.Sequential(
            split(3, 24, 2), split(24, 48, 2), nn.MaxPool3d(2), split(48, 96, 1), split(96, 128, 2),
            nn.AdaptiveAvgPool3d(1),
        )  # fmt: skip
        self.out = nn.Linear(128, 101)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x).flatten(1))


class Recommender(nn.Module):
    """DLRM: embedded features, the product of each with each, dense layers."""

    def __init__(self) -> None:
        super().__init__()

        def dense(*widths: int) -> nn.Sequential:
            return nn.Sequential(*(m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())))

        self.embedding = nn.Embedding(2000, 64)
        self.bottom, self.top = dense(64 * 26, 512, 256, 64), dense(351 + 64, 1024, 1024, 512)
        self.out = nn.Linear(512, 1)
        i, j = torch.triu_indices(27, 27, 1)
        self.register_buffer("pairs", i * 27 + j)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embedding(x)
        dense = self.bottom(embedded.flatten(1))
        z = torch.cat([dense[:, None], embedded], 1)
        products = (z @ z.transpose(1, 2)).flatten(1)[:, self.pairs]
        return self.out(self.top(torch.cat([dense, products], 1))).sigmoid()


class Conformer(nn.Module):
    """Speech: attention, gated depthwise convolution and a dense block, four times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(80, 256, 3, 2, 1), nn.GELU(), nn.Conv1d(256, 256, 3, 2, 1), nn.GELU())
        self.blocks = nn.ModuleList(nn.ModuleList(self.layers()) for _ in range(4))
        self.out = nn.Linear(256, 128)

    @staticmethod
    def layers() -> list[nn.Module]:
        attention = [nn.LayerNorm(256), nn.Linear(256, 768)]
        widen = [nn.LayerNorm(256), nn.Conv1d(256, 512, 1)]
        depthwise = [nn.Conv1d(256, 256, 15, padding=7, groups=256), nn.BatchNorm1d(256), nn.Conv1d(256, 256, 1)]
        return [*attention, *widen, *depthwise, nn.LayerNorm(256), nn.Linear(256, 1024), nn.Linear(1024, 256)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).transpose(1, 2)
        for norm1, qkv, norm2, widen, depthwise, batch_norm, narrow, norm3, dense1, dense2 in self.blocks:
            batch, length, width = x.shape
            q, k, v = qkv(norm1(x)).reshape(batch, length, 3, 4, 64).permute(2, 0, 3, 1, 4).unbind(0)
            attended = ((q @ k.transpose(-1, -2)) * 0.125).softmax(-1) @ v
            x = x + attended.transpose(1, 2).reshape(batch, length, width)
            gated = F.glu(widen(norm2(x).transpose(1, 2)), 1)
            x = x + narrow(F.silu(batch_norm(depthwise(gated)))).transpose(1, 2)
            x = x + 0.5 * dense2(F.silu(dense1(norm3(x))))
        return self.out(x)


BUILD: dict[tuple[str, str], Callable[[], nn.Module]] = {
    ("lstm", "bitagger"): lambda: Recurrent(nn.LSTM, 8000, 256, 256, 2, True, 32),
    ("lstm", "lm"): lambda: Recurrent(nn.LSTM, 8000, 384, 512, 2, False, 8000),
    ("gru", "frames"): lambda: Recurrent(nn.GRU, 0, 80, 384, 3, False, 64),
    ("gru", "bitext"): lambda: Recurrent(nn.GRU, 8000, 200, 256, 2, True, 8),
    ("crnn", "ocr"): TextReader,
    ("unet", "seg24"): lambda: UNet((24, 48, 96, 192)),
    ("unet", "seg16"): lambda: UNet((16, 32, 64, 128)),
    ("diffusion", "unet64"): lambda: Diffusion(64, 4),
    ("diffusion", "unet32"): lambda: Diffusion(32, 3),
    ("hourglass", "kp64"): lambda: Hourglass(64, 4, nn.PReLU),
    ("hourglass", "kp96"): lambda: Hourglass(96, 3, nn.Hardswish),
    ("edsr", "x3"): SuperResolution,
    ("style", "fast24"): StyleTransfer,
    ("convtasnet", "c128"): Separator,
    ("pointnet", "seg"): PointNet,
    ("conv3d", "r2plus1"): VideoConvolutions,
    ("dlrm", "small"): Recommender,
    ("conformer", "small"): Conformer,
}
"""Family and model -> what builds it."""
