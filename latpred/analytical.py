"""Latency of a kernel on a device that nobody has measured, from its `Device` alone.

The kernels are those of whatever rule book they were detected with, the default one unless told otherwise: a GPU's
runtime fuses by rules of its own, which nobody probed. So the result is an estimate of the device, not of a runtime.

The model
---------
A device has P processing elements (`Device.threads`: cores, or SMs of a GPU), each of which works on one tile of the
output at a time. A kernel with multiply-adds is a product of `rows` x `channels` outputs, each the sum of `depth`
products. A tile of m rows and n channels costs

* compute: ``2 m n' depth / (peak / P)``, n' = n rounded up to the lanes of the processing element (where a group has
  fewer channels than lanes, as in a depthwise kernel, positions may lie side by side instead: then m is rounded up);
  the tiles go round in ``ceil(tiles / P)`` waves, so that a last wave costs as much as a full one;
* on-chip traffic: its operands, read again by each tile, and its outputs, over the shared on-chip bandwidth. A
  convolution's tile reads the positions under its kernel once, with the rim that it shares with its neighbours.

Off-chip traffic is what the caches do not hold (`latpred.kernels.roofline`), over the off-chip bandwidth. Then

    latency = max(compute, on-chip + off-chip) + dispatch

with the tile size that makes it least among powers of two whose accumulators fit the processing element's memory:
a runtime's library picks a good one. Arithmetic that is no multiply-add (activations, normalisation) runs over all
elements, rounded up to whole vectors on all processing elements.

References
----------
Williams, Waterman, Patterson: Roofline, an insightful visual performance model. CACM 52(4), 2009.
Han et al.: Latency-aware Unified Dynamic Networks for Efficient Image Recognition. IEEE TPAMI, 2024,
arXiv:2308.15949: its hardware model with processing elements, on-chip and off-chip memory, and a search for the tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from latpred.device import Device
from latpred.graph import Spec
from latpred.kernels.kernel import Kernel
from latpred.kernels.roofline import roofline_terms

__all__ = ["AnalyticalTerms", "analytical_s", "analytical_terms"]

_CHANNELS_LAST = ("com.ms.internal.nhwc",)  # domains whose convolutions have their channels last

_TILE_ROWS = tuple(2**k for k in range(9))  # 1 to 256
_TILE_VECTORS = (1, 2, 4, 8)  # a tile's channels, in vectors of the processing element


@dataclass(frozen=True, slots=True)
class AnalyticalTerms:
    """What the parts of one launch take, in s."""

    compute_s: float
    on_chip_s: float
    off_chip_s: float
    dispatch_s: float

    @property
    def total_s(self) -> float:
        """The launch: the longer of arithmetic and memory, plus dispatch."""
        return max(self.compute_s, self.on_chip_s + self.off_chip_s) + self.dispatch_s


@dataclass(frozen=True, slots=True)
class _Product:
    """A kernel's multiply-adds: `batch` times, each of rows x channels outputs a sum of `depth` products."""

    batch: int
    rows: int
    channels: int
    groups: int  # channels / groups of them share their inputs
    depth: float
    window: tuple[int, ...]  # kernel size of a convolution
    strides: tuple[int, ...]


def analytical_s(kernel: Kernel, device: Device) -> float:
    """Latency in s of one launch of a kernel, by the model of this module.

    Examples
    --------
    A product of 64 rows, 20 channels and depth 100, on 2 processing elements of 8 lanes and 1 GFLOP/s each. The best
    tile is 32 x 24: 2 tiles, one wave of 2 x 32 x 24 x 100 FLOPs at 1 GFLOP/s.

    >>> from latpred.device import Device, Level
    >>> from latpred.graph import Spec
    >>> from latpred.kernels.kernel import Work
    >>> levels = Level("near", 2**16, 1e13), Level("shared", 2**22, 1e12), Level("off-chip", 2**32, 1e11)
    >>> device = Device("toy", "toy", 2, 2, 1e9, {"float32": 2e9}, levels, 5e-6, {"float32": 8})
    >>> work = Work(macs=64 * 20 * 100, flops=2 * 64 * 20 * 100, read_bytes=25600, write_bytes=5120, weight_bytes=8000)
    >>> kernel = Kernel("gemm", "MatMul", "", "m", (), (Spec((64, 100)), Spec((100, 20), constant=True)),
    ...                 (Spec((64, 20)),), work=work)
    >>> round(analytical_s(kernel, device) * 1e6, 3)  # 2 * 32 * 24 * 100 / 1e9 s, and 5 us of dispatch
    158.6
    """
    return analytical_terms(kernel, device).total_s


def analytical_terms(kernel: Kernel, device: Device) -> AnalyticalTerms:
    """The parts of `analytical_s`.

    Parameters
    ----------
    kernel : Kernel
        With its work and, for what the caches hold, its context.
    device : Device
    """
    off_chip_s = float(roofline_terms([kernel], device).off_chip_s[0])
    elementwise_s = _elementwise_s(kernel, device)
    shared_bandwidth = device.levels[1].bandwidth_bytes_per_s
    if kernel.work.macs == 0 or not kernel.outputs or not kernel.inputs:
        return AnalyticalTerms(
            elementwise_s, kernel.work.traffic_bytes / shared_bandwidth, off_chip_s, device.dispatch_s
        )
    product = _product(kernel)
    tilings = [
        AnalyticalTerms(compute_s + elementwise_s, on_chip_bytes / shared_bandwidth, off_chip_s, device.dispatch_s)
        for compute_s, on_chip_bytes in _tilings(product, kernel, device)
    ]
    # Among equals the one with the least traffic: it is the one that a library would take.
    return min(tilings, key=lambda terms: (terms.total_s, terms.on_chip_s))


def _product(kernel: Kernel) -> _Product:
    """Rows, channels and depth by the output's shape and the MACs, whatever the kernel."""
    shape = kernel.outputs[0].shape or (1,)
    elements = max(1, prod(shape))
    depth = kernel.work.macs / elements
    if "Conv" in kernel.op_type and len(shape) > 2:
        window = _integers(kernel, "kernel_shape") or _window_of_weights(kernel, len(shape))
        strides = _integers(kernel, "strides") or (1,) * len(window)
        groups = _integers(kernel, "group") or (1,)
        last = kernel.domain in _CHANNELS_LAST or bool(kernel.attributes.get("channels_last"))
        channels = max(1, shape[-1 if last else 1])
        return _Product(1, elements // channels, channels, max(1, groups[0]), depth, window, strides)
    channels = max(1, shape[-1])
    # Two activations multiplied (attention): leading dims are products of their own, sharing nothing.
    batched = len(shape) > 2 and len(kernel.inputs) > 1 and not kernel.inputs[1].constant
    batch = max(1, prod(shape[:-2])) if batched and len(kernel.inputs[1].shape) > 2 else 1
    return _Product(batch, max(1, elements // channels // batch), channels, 1, depth, (1,), (1,))


def _integers(kernel: Kernel, name: str) -> tuple[int, ...]:
    value = kernel.attributes.get(name, ())
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)


def _window_of_weights(kernel: Kernel, rank: int) -> tuple[int, ...]:
    weights = next((spec for spec in kernel.inputs[1:] if len(spec.shape) == rank), None)
    return weights.shape[2:] if weights else (1,) * (rank - 2)


def _tilings(product: _Product, kernel: Kernel, device: Device) -> list[tuple[float, float]]:
    """(compute time in s, on-chip traffic in B) for each tile size that fits."""
    processing_elements = device.threads
    dtype = kernel.inputs[0].dtype
    lanes = device.width(dtype)
    element_flops = device.peak(dtype) / processing_elements
    item_bytes, out_bytes = (_item_bytes(spec) for spec in (kernel.inputs[0], kernel.outputs[0]))
    per_group = max(1, product.channels // product.groups)
    found: list[tuple[float, float]] = []
    for rows in _sizes(_TILE_ROWS, product.rows):
        for channels in _sizes([lanes * v for v in _TILE_VECTORS], _up(product.channels, lanes)):
            fits = rows * channels * out_bytes + (rows + channels) * item_bytes <= device.levels[0].size_bytes
            if not fits and found:
                continue
            used = min(channels, product.channels)
            tiles = product.batch * ceil(product.rows / rows) * ceil(product.channels / channels)
            padded = rows * _up(used, lanes)
            if per_group < lanes:
                padded = min(padded, _up(rows, lanes) * used)
            compute_s = ceil(tiles / processing_elements) * 2 * padded * product.depth / element_flops
            read = _positions(rows, product) * product.depth / prod(product.window) * ceil(used / per_group)
            bytes_a_tile = (read + used * product.depth) * item_bytes + rows * used * out_bytes
            found.append((compute_s, tiles * bytes_a_tile))
    return found


def _positions(rows: int, product: _Product) -> float:
    """Input positions under a tile of `rows` output positions, as square as can be, rim included."""
    side = rows ** (1 / len(product.window))
    spans = zip(product.window, product.strides, strict=False)
    return prod([float(side * stride + max(0, kernel - stride)) for kernel, stride in spans])


def _elementwise_s(kernel: Kernel, device: Device) -> float:
    # At the float32 peak whatever the dtype: units for matrix products do no activations.
    flops = max(0, kernel.work.flops - 2 * kernel.work.macs)
    # Reductions write less than they work on.
    elements = max((spec.elements for spec in (*kernel.outputs, *kernel.inputs[:1])), default=1) or 1
    at_a_time = device.width() * device.threads
    return flops * _up(elements, at_a_time) / elements / device.peak()


def _item_bytes(spec: Spec) -> float:
    return spec.size_bytes / max(1, spec.elements)


def _sizes(candidates: tuple[int, ...] | list[int], limit: int) -> list[int]:
    """Candidates up to the first that covers the limit."""
    covering = next((size for size in candidates if size >= limit), candidates[-1])
    return [size for size in candidates if size <= covering]


def _up(value: int, step: int) -> int:
    return ceil(value / step) * step
