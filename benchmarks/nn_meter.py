"""The recipe of nn-Meter as a baseline: a random forest a kernel, on absolute latency, from shapes alone.

It is trained on the rows of a latpred dataset and applied to the kernels that latpred detects, so that only features,
target and regressor differ. What it does not see is left out as published: batch, width, groups, dilations, padding,
element type, fused epilogue, rows of a matrix product, caches. A network is the sum of its kernels; a kernel that no
predictor knows counts as 0. `network_s` can also give every other kernel a forest of its own, on a generic vector of
the same kind of numbers (``every_kind``): that is kinder than what was published.

Hyper-parameters are those of its predictors for a CPU (``tflite_cpu``), its default elsewhere. ``se`` and
``channelshuffle`` have no row here: ONNX Runtime launches their parts one by one.

References
----------
Zhang, Han, Wei, Zheng, Cao, Yang, Liu: nn-Meter, towards accurate latency prediction of deep-learning model inference
on diverse edge devices. MobiSys 2021. Features, formulas and parameters follow microsoft/nn-Meter (MIT licence).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latpred.errors import InputError
from latpred.graph import Spec
from latpred.kernels.arithmetic_views import PRODUCT, WINDOW, product, window
from latpred.kernels.kernel import Kernel
from latpred.store import KernelSample

Features = tuple[float, ...]

BRANCHES = 4  # of a concatenation, that have a feature
MILLION = 1e6
SEED = 10
FEWEST_ROWS = 5  # a forest of fewer rows would only repeat them
PER_MS = 1e3


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one predictor sees, and how its forest is grown."""

    features: Callable[[Kernel], Features]
    trees: int = 370
    depth: int = 50
    columns: float = 1.0  # looked at for a split: a number of them, or 1.0 for all


def image(spec: Spec) -> tuple[float, float]:
    """(height, channels) of a tensor; of one that is no image, its last two dims.

    Examples
    --------
    >>> image(Spec((1, 64, 56, 28))), image(Spec((1, 197, 768)))
    ((56.0, 64.0), (197.0, 768.0))
    """
    shape = spec.shape
    if len(shape) == 4:
        return float(shape[2]), float(shape[1])
    return float(shape[-2]) if len(shape) > 1 else 1.0, float(shape[-1]) if shape else 1.0


def _window(kernel: Kernel) -> tuple[float, float, float, float, float]:
    """Input height, channels in and out, kernel size, stride: what its predictors take for square."""
    of = dict(zip(WINDOW, window(kernel), strict=True))
    return of["height_in"], of["channels_in"], of["channels_out"], of["kernel_width"], of["stride_width"]


def convolution(kernel: Kernel) -> Features:
    """Input height, channels, kernel size, stride, millions of MACs and of parameters by nn-Meter's formulas."""
    height, channels_in, channels_out, size, stride = _window(kernel)
    parameters = channels_out * (size * size * channels_in + 1)
    flops = 2 * (height / stride) ** 2 * parameters
    return height, channels_in, channels_out, size, stride, flops / (2 * MILLION), parameters / MILLION


def depthwise(kernel: Kernel) -> Features:
    """As `convolution`, one filter a channel."""
    height, channels_in, channels_out, size, stride = _window(kernel)
    parameters = channels_out * (size * size + 1)
    flops = 2 * (height / stride) ** 2 * parameters
    return height, channels_in, channels_out, size, stride, flops / (2 * MILLION), parameters / MILLION


def fully_connected(kernel: Kernel) -> Features:
    """Columns in and out; every matrix product counts as one row of a fully connected layer."""
    of = dict(zip(PRODUCT, product(kernel), strict=True))
    flops = (2 * of["k"] + 1) * of["n"]
    return of["k"], of["n"], flops / (2 * MILLION), flops / MILLION


def pooling(kernel: Kernel) -> Features:
    """Input height, channels in and out, kernel size, stride."""
    return _window(kernel)


def elementwise(kernel: Kernel) -> Features:
    """Height and channels of the first input."""
    return image(kernel.inputs[0])


def addition(kernel: Kernel) -> Features:
    """Height of the first input, channels of both."""
    height, channels = image(kernel.inputs[0])
    return height, channels, image(kernel.inputs[1])[1]


def concatenation(kernel: Kernel) -> Features:
    """Height, how many inputs, and the channels of the first four."""
    images = [image(spec) for spec in kernel.inputs]
    channels = [channels for _, channels in images][:BRANCHES]
    return images[0][0], float(len(images)), *channels, *[0.0] * (BRANCHES - len(channels))


def generic(kernel: Kernel) -> Features:
    """Height and channels before and after, elements, millions of FLOPs, bytes of weights; of any kernel."""
    first, last = (specs[0] if specs else Spec(()) for specs in (kernel.inputs, kernel.outputs))
    sizes = max((float(spec.elements) for spec in kernel.inputs), default=0.0), float(last.elements)
    return *image(first), *image(last), *sizes, kernel.work.flops / MILLION, float(kernel.work.weight_bytes)


RECIPES: Mapping[str, Recipe] = {
    "conv-bn-relu": Recipe(convolution, 320, 70, 6),
    "dwconv-bn-relu": Recipe(depthwise, 240, 50, 6),
    "fc": Recipe(fully_connected, 370, 50, 2),
    "maxpool": Recipe(pooling, 210, 50, 5),
    "avgpool": Recipe(pooling, 370, 50, 5),
    "global-avgpool": Recipe(elementwise, 370, 70, 2),
    "relu": Recipe(elementwise, 370, 50, 2),
    "hswish": Recipe(elementwise, 190, 50, 2),
    "bn": Recipe(elementwise, 370, 50, 2),
    "add": Recipe(addition, 570, 50, 3),
    "concat": Recipe(concatenation, 690, 100, 5),
    "split": Recipe(elementwise, 190, 50, 2),
}
OTHER = Recipe(generic)

# Op -> predictor, as nn-Meter names ops; convolutions are told apart by `predictor_of`.
PREDICTOR_OF_OP: Mapping[str, str] = {
    "Gemm": "fc",
    "FusedGemm": "fc",
    "MatMul": "fc",
    "FusedMatMul": "fc",
    "MaxPool": "maxpool",
    "AveragePool": "avgpool",
    "GlobalAveragePool": "global-avgpool",
    "ReduceMean": "global-avgpool",
    "Relu": "relu",
    "Clip": "relu",
    "HardSwish": "hswish",
    "BatchNormalization": "bn",
    "Add": "add",
    "Concat": "concat",
    "Split": "split",
    "Slice": "split",
}
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")


def predictor_of(kernel: Kernel) -> str | None:
    """Which of nn-Meter's predictors answers for a kernel; None where none does."""
    if kernel.op_type not in CONVOLUTIONS:
        return PREDICTOR_OF_OP.get(kernel.op_type)
    groups = kernel.attributes.get("group", 1)
    return "dwconv-bn-relu" if groups != 1 and kernel.inputs[1].shape[1] == 1 else "conv-bn-relu"


def _name_of(kernel: Kernel) -> str:
    return predictor_of(kernel) or f"other {kernel.kind}"


def _features_of(name: str, kernels: Sequence[Kernel]) -> NDArray[np.float64]:
    recipe = RECIPES.get(name, OTHER)
    return np.array([recipe.features(kernel) for kernel in kernels])


@dataclass(frozen=True, slots=True)
class Forests:
    """Fitted forests: predictor -> scikit-learn's regressor of latency in ms."""

    by_name: Mapping[str, Any]

    def kernels_s(self, kernels: Sequence[Kernel], every_kind: bool = False) -> NDArray[np.float64]:
        """Latency of one launch of each kernel.

        Parameters
        ----------
        kernels : sequence of Kernel
        every_kind : bool
            Whether kernels that nn-Meter has no predictor for get a forest too; else they count as 0.

        Returns
        -------
        ndarray, shape (len(kernels),)
            In s; 0 where no forest answers.
        """
        latency_s = np.zeros(len(kernels))
        members: dict[str, list[int]] = {}
        for index, kernel in enumerate(kernels):
            members.setdefault(_name_of(kernel), []).append(index)
        for name, inside in members.items():
            if name in self.by_name and (every_kind or name in RECIPES):
                rows = _features_of(name, [kernels[i] for i in inside])
                latency_s[inside] = self.by_name[name].predict(rows) / PER_MS
        return latency_s

    def networks_s(self, networks: Sequence[Sequence[Kernel]], every_kind: bool = False) -> list[float]:
        """Sum of each network's kernels in s, their repetitions included; nothing lies between kernels."""
        flat = [kernel for network in networks for kernel in network]
        latency_s = self.kernels_s(flat, every_kind) * np.array([kernel.repeat for kernel in flat], np.float64)
        ends = np.cumsum([len(network) for network in networks])[:-1]
        return [float(part.sum()) for part in np.split(latency_s, ends)]


def fit_forests(samples: Sequence[KernelSample]) -> Forests:
    """A forest for each predictor that has rows enough, unweighted, on absolute latency.

    Parameters
    ----------
    samples : sequence of KernelSample
        As `latpred.store.Dataset.kernels` gives them.

    Raises
    ------
    InputError
        When there are no samples.
    """
    from sklearn.ensemble import RandomForestRegressor

    if not samples:
        raise InputError("forests need measured kernels; got none: run `latpred collect` first")
    members: dict[str, list[KernelSample]] = {}
    for sample in samples:
        members.setdefault(_name_of(sample.kernel), []).append(sample)
    forests = {}
    for name, rows in sorted(members.items()):
        if len(rows) < FEWEST_ROWS:
            continue
        recipe = RECIPES.get(name, OTHER)
        forest = RandomForestRegressor(
            n_estimators=recipe.trees,
            max_depth=recipe.depth,
            max_features=recipe.columns,
            random_state=SEED,
            n_jobs=-1,
        )
        # In ms, as nn-Meter has it: scikit-learn ends a branch where the variance is below 2e-16, which in s is 15 ns.
        target_ms = [row.latency_s * PER_MS for row in rows]
        forests[name] = forest.fit(_features_of(name, [row.kernel for row in rows]), target_ms)
    return Forests(forests)
