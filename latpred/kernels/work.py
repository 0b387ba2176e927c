"""The work of one kernel: a table op -> function of one signature that counts MACs, FLOPs and bytes.

Three outcomes: an op is counted (it stands in `COUNTED`), declared free with a reason (`FREE`), or unsupported
(`UnsupportedError`). Nothing unknown silently costs zero.

FLOPs = 2 x MACs + elementwise. A transcendental function counts as the operations of the polynomial that a CPU
runtime evaluates for it. Bytes are what must move once through perfect caches: each operand once.
"""

# ruff: noqa: ARG001 - every row of the table has one signature, whether it needs all of it or not
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, log2, prod

from latpred.errors import UnsupportedError
from latpred.graph import AttributeValue, Spec
from latpred.kernels.kernel import Work

__all__ = ["ABSENT", "COUNTED", "FLOPS_PER_ELEMENT", "FREE", "traffic_of", "work_of"]

Attributes = Mapping[str, AttributeValue]
Count = Callable[[Sequence[Spec], Sequence[Spec], Attributes], Work]

MICROSOFT = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"  # domain of the kernels that work on channel blocks
NHWC = "com.ms.internal.nhwc"

ABSENT = Spec((0,), constant=True)  # holds the place of an optional input that is not given

# Ops that no runtime launches, and why.
FREE: Mapping[str, str] = {"Constant": "a constant: stored, never executed"}

# FLOPs an element of the output; transcendental functions by the size of the usual polynomial.
FLOPS_PER_ELEMENT: Mapping[str, int] = {
    "Abs": 1, "Add": 1, "And": 1, "BitShift": 1, "BitwiseAnd": 1, "BitwiseNot": 1, "BitwiseOr": 1, "BitwiseXor": 1,
    "Ceil": 1, "Clip": 2, "Div": 1, "Equal": 1, "Floor": 1, "Greater": 1, "GreaterOrEqual": 1, "HardSigmoid": 4,
    "HardSwish": 5, "IsInf": 1, "IsNaN": 1, "LeakyRelu": 2, "Less": 1, "LessOrEqual": 1, "Max": 1, "Mean": 1,
    "Min": 1, "Mod": 3, "Mul": 1, "Neg": 1, "Not": 1, "Or": 1, "PRelu": 2, "Reciprocal": 1, "Relu": 1, "Round": 1,
    "Shrink": 2, "Sign": 1, "Sqrt": 1, "Sub": 1, "Sum": 1, "ThresholdedRelu": 1, "Where": 1, "Xor": 1,
    "Celu": 20, "Cos": 20, "Elu": 20, "Erf": 24, "Exp": 18, "Gelu": 27, "Log": 20, "Mish": 40, "Pow": 40,
    "Selu": 20, "Sigmoid": 20, "Sin": 20, "Softplus": 38, "Softsign": 3, "Swish": 21, "Tan": 40, "Tanh": 22,
    "Acos": 20, "Acosh": 40, "Asin": 20, "Asinh": 40, "Atan": 20, "Atanh": 40, "Cosh": 20, "Sinh": 20,
    "BiasGelu": 28, "FastGelu": 29, "QuickGelu": 22,
    "Softmax": 22, "LogSoftmax": 24, "Hardmax": 2, "BiasSoftmax": 23,
    "BatchNormalization": 2, "InstanceNormalization": 7, "GroupNormalization": 8, "LayerNormalization": 8,
    "LpNormalization": 4, "MeanVarianceNormalization": 7, "RMSNormalization": 5, "SimplifiedLayerNormalization": 5,
    "SkipLayerNormalization": 10, "SkipSimplifiedLayerNormalization": 7, "EmbedLayerNormalization": 10,
    "QuantizeLinear": 3, "DequantizeLinear": 2, "DynamicQuantizeLinear": 6, "Cast": 1, "CastLike": 1, "CumSum": 1,
    "QLinearAdd": 6, "QLinearMul": 5, "QLinearSigmoid": 1, "QLinearLeakyRelu": 1, "QLinearSoftmax": 22,
    "QLinearConcat": 2, "QLinearWhere": 3, "RotaryEmbedding": 3, "Bernoulli": 4, "RandomNormal": 40,
    "RandomNormalLike": 40, "RandomUniform": 4, "RandomUniformLike": 4, "Multinomial": 20,
}  # fmt: skip

# What a fused step behind a kernel adds, FLOPs an element of the output.
EPILOGUE_FLOPS: Mapping[str, int] = {
    "add": 1, "mul": 1, "bias": 1, "relu": 1, "clip": 2, "leakyrelu": 2, "hardsigmoid": 4, "hardswish": 5,
    "sigmoid": 20, "tanh": 22, "gelu": 27, "quickgelu": 22, "silu": 21, "scale": 1,
}  # fmt: skip


def traffic_of(inputs: Sequence[Spec], outputs: Sequence[Spec]) -> Work:
    """Bytes of one pass over every operand; no arithmetic.

    Examples
    --------
    >>> traffic_of([Spec((2, 3)), Spec((3,), constant=True)], [Spec((2, 3))])
    Work(macs=0, flops=0, read_bytes=24, write_bytes=24, weight_bytes=12)
    """
    return Work(
        read_bytes=sum(spec.size_bytes for spec in inputs if not spec.constant),
        write_bytes=sum(spec.size_bytes for spec in outputs),
        weight_bytes=sum(spec.size_bytes for spec in inputs if spec.constant),
    )


def _pointwise(op_type: str) -> Count:
    flops = FLOPS_PER_ELEMENT[op_type]

    def count(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
        terms = max(1, len(inputs) - 1) if op_type in ("Sum", "Max", "Min", "Mean") else 1
        return traffic_of(inputs, outputs) + Work(flops=flops * terms * outputs[0].elements)

    return count


def _view(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """A new header over the same buffer: launched, but nothing moves."""
    return Work()


def _copy(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    return traffic_of(inputs, outputs)


def _select(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """Reads what it writes, not the whole source (Slice, Gather); the other inputs are indices."""
    written = sum(spec.size_bytes for spec in outputs)
    indices = traffic_of(inputs[1:], ())
    source = inputs[0]
    taken = min(written, source.size_bytes)
    own = Work(weight_bytes=taken) if source.constant else Work(read_bytes=taken)
    return own + indices + Work(write_bytes=written)


def _scatter(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """Copies the data, then writes the updates over it."""
    return traffic_of(inputs, outputs) + Work(write_bytes=inputs[2].size_bytes)


def _sized(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """Only writes: the inputs say how much (ConstantOfShape, Range)."""
    return Work(write_bytes=sum(spec.size_bytes for spec in outputs))


def _metadata(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """Reads no data, only the shape of its input."""
    return Work(write_bytes=sum(spec.size_bytes for spec in outputs))


def _reduce(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    return traffic_of(inputs, outputs) + Work(flops=inputs[0].elements)


def _convolution(weight: int) -> Count:
    """MACs = output elements x (input channels of a group x kernel size); Sze et al. 2017, Proc. IEEE 105(12)."""

    def count(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
        macs = outputs[0].elements * prod(inputs[weight].shape[1:])
        return traffic_of(inputs, outputs) + Work(macs=macs, flops=2 * macs)

    return count


def _transposed_convolution(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """Every input element meets the whole kernel of its group."""
    macs = inputs[0].elements * prod(inputs[1].shape[1:])
    return traffic_of(inputs, outputs) + Work(macs=macs, flops=2 * macs)


def _deformable(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    macs = outputs[0].elements * prod(inputs[1].shape[1:])
    samples = inputs[0].shape[1] * outputs[0].elements // max(1, outputs[0].shape[1]) * prod(inputs[1].shape[2:])
    return traffic_of(inputs, outputs) + Work(macs=macs, flops=2 * macs + 8 * samples)


def _matmul(left: int = 0, right: int = 1, transposed: str = "transA") -> Count:
    """MACs = output elements x inner dim; the inner dim stands last in the left factor, or last but one."""

    def count(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
        shape = inputs[left].shape
        inner = shape[-2] if attributes.get(transposed) and len(shape) > 1 else shape[-1]
        macs = outputs[0].elements * inner
        return traffic_of(inputs, outputs) + Work(macs=macs, flops=2 * macs)

    return count


def _gemm(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    bias = outputs[0].elements if len(inputs) > 2 and inputs[2].elements else 0
    return _matmul()(inputs, outputs, attributes) + Work(flops=bias)


def _packed_matmul(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    macs = outputs[0].elements * inputs[0].shape[-1]
    return traffic_of(inputs, outputs) + Work(macs=macs, flops=2 * macs)


def _einsum(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """One MAC for each point of the space that all labels span (pairwise contraction of two operands)."""
    equation = str(attributes.get("equation", "")).replace(" ", "")
    terms = equation.split("->")[0].split(",")
    sizes: dict[str, int] = {}
    dots = 1
    for term, spec in zip(terms, inputs, strict=False):
        head, _, tail = term.partition("...")
        if "..." in term:
            dots = max(dots, prod(spec.shape[len(head) : len(spec.shape) - len(tail)]))
        sizes.update(zip(head, spec.shape, strict=False))
        if tail:
            sizes.update(zip(tail, spec.shape[-len(tail) :], strict=True))
    points = prod(sizes.values()) * dots
    macs = points if len(terms) > 1 else 0
    return traffic_of(inputs, outputs) + Work(macs=macs, flops=2 * macs or points)


def _pool(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    window = attributes.get("kernel_shape", ())
    points = prod(int(size) for size in window) if isinstance(window, tuple) else 1
    return traffic_of(inputs, outputs) + Work(flops=outputs[0].elements * points)


def _resize(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """Nearest copies; linear blends 2 points a scaled axis; cubic blends 4."""
    grown = sum(a != b for a, b in zip(inputs[0].shape, outputs[0].shape, strict=False))
    taps = {"linear": 2, "bilinear": 2, "cubic": 4}.get(str(attributes.get("mode", "nearest")), 0)
    flops = 2 * taps**grown * outputs[0].elements if taps else 0
    return traffic_of(inputs[:1], outputs) + Work(flops=flops)


def _grid_sample(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    return traffic_of(inputs, outputs) + Work(flops=8 * outputs[0].elements)


def _roi_align(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    ratio = max(1, int(attributes.get("sampling_ratio", 0) or 2))  # type: ignore[arg-type]
    return traffic_of(inputs, outputs) + Work(flops=8 * ratio * ratio * outputs[0].elements)


def _recurrent(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """Each step multiplies the input by W and the state by R, for every direction that W and R stack."""
    steps, batch = inputs[0].shape[:2] if not attributes.get("layout") else (inputs[0].shape[1], inputs[0].shape[0])
    macs = steps * batch * (inputs[1].elements + inputs[2].elements)
    gates = steps * batch * inputs[1].shape[0] * inputs[1].shape[1] * FLOPS_PER_ELEMENT["Sigmoid"]
    return traffic_of(inputs, outputs) + Work(macs=macs, flops=2 * macs + gates)


def _attention(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """Projection by the packed weight (where there is one), then scores and their product with the values."""
    query = inputs[0]
    batch, length = query.shape[0], query.shape[-2] if len(query.shape) == 4 else query.shape[1]
    width = outputs[0].elements // max(1, batch * length)
    keys = next((spec for spec in inputs[1:2] if spec.elements and not spec.constant), query)
    key_length = keys.shape[-2] if len(keys.shape) == 4 else keys.shape[1]
    projection = query.elements * inputs[1].shape[-1] if len(inputs) > 1 and inputs[1].constant else 0
    scores = batch * length * key_length * width
    heads = int(attributes.get("num_heads", 1))  # type: ignore[arg-type]
    macs = projection + 2 * scores
    softmax = batch * heads * length * key_length * FLOPS_PER_ELEMENT["Softmax"]
    return traffic_of(inputs, outputs) + Work(macs=macs, flops=2 * macs + softmax)


def _sort(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    elements = inputs[0].elements
    return traffic_of(inputs, outputs) + Work(flops=elements * ceil(log2(max(2, elements))))


def _fourier(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """5 N log2 N, the split-radix count that benchmarks of FFTs use."""
    elements = max(inputs[0].elements, outputs[0].elements)
    return traffic_of(inputs, outputs) + Work(flops=5 * elements * ceil(log2(max(2, elements))))


def _control(inputs: Sequence[Spec], outputs: Sequence[Spec], attributes: Attributes) -> Work:
    """The launch itself; what its bodies do stands in kernels of their own."""
    return Work()


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
    "QLinearGlobalAveragePool", "QLinearReduceMean",
)  # fmt: skip
_COPIES = (
    "Concat", "Split", "Transpose", "Pad", "Tile", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Col2Im",
    "Trilu", "Compress", "OneHot", "EyeLike", "NonZero", "Unique", "ReorderInput", "ReorderOutput", "Expand",
    "Im2Col", "Reverse", "CenterCropPad", "SequenceAt", "SequenceConstruct", "SplitToSequence", "ConcatFromSequence",
    "SequenceInsert", "SequenceEmpty", "SequenceLength", "StringNormalizer", "TfIdfVectorizer", "Optional",
)  # fmt: skip
_POINTWISE_DOMAINS: Mapping[str, str] = dict.fromkeys(
    ("BiasGelu", "FastGelu", "QuickGelu", "BiasSoftmax", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
     "EmbedLayerNormalization", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax",
     "QLinearConcat", "QLinearWhere"),
    MICROSOFT,
)  # fmt: skip

COUNTED: Mapping[str, Count] = {
    **{op_type: _pointwise(op_type) for op_type in FLOPS_PER_ELEMENT},
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_COPIES, _copy),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"), _view),
    **dict.fromkeys(("Slice", "Gather", "GatherElements", "GatherND"), _select),
    **dict.fromkeys(("ScatterND", "ScatterElements", "Scatter", "TensorScatter"), _scatter),
    **dict.fromkeys(("ConstantOfShape", "Range"), _sized),
    **dict.fromkeys(("Shape", "Size"), _metadata),
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger", "NhwcFusedConv"), _convolution(1)),
    "QLinearConv": _convolution(3),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _transposed_convolution),
    "DeformConv": _deformable,
    **dict.fromkeys(("Gemm", "FusedGemm"), _gemm),
    **dict.fromkeys(
        ("MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"), _matmul()
    ),
    **dict.fromkeys(("QLinearMatMul",), _matmul()),
    "MatMulNBits": _packed_matmul,
    "Einsum": _einsum,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "QLinearAveragePool", "MaxUnpool", "NhwcMaxPool"), _pool),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "GridSample": _grid_sample,
    "AffineGrid": _grid_sample,
    **dict.fromkeys(("RoiAlign", "MaxRoiPool"), _roi_align),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"), _attention),
    "LRN": _grid_sample,
    **dict.fromkeys(("TopK", "NonMaxSuppression"), _sort),
    **dict.fromkeys(("DFT", "STFT", "Rfft", "Irfft"), _fourier),
    **dict.fromkeys(("If", "Loop", "Scan"), _control),
}


def work_of(
    op_type: str,
    domain: str,
    inputs: Sequence[Spec],
    outputs: Sequence[Spec],
    attributes: Attributes,
    epilogue: Sequence[str] = (),
) -> Work:
    """Work of one launch.

    Parameters
    ----------
    op_type, domain
        What the runtime executes; the standard domain is ``""``.
    inputs, outputs
        Operands in the op's own order; `ABSENT` holds the place of an optional one.
    attributes
        The op's attributes.
    epilogue
        Fused steps behind the op, as in ``("add", "relu")``; each counts its FLOPs an output element.

    Raises
    ------
    UnsupportedError
        Where the op is not in the table, or its operands are not those of such an op.

    Examples
    --------
    A 1x1 convolution from 16 to 32 channels on 8 x 8 pixels: 32 * 8 * 8 * 16 MACs.

    >>> x, w, y = Spec((1, 16, 8, 8)), Spec((32, 16, 1, 1), constant=True), Spec((1, 32, 8, 8))
    >>> work = work_of("Conv", "", [x, w], [y], {}, ("relu",))
    >>> work.macs, work.flops, work.traffic_bytes
    (32768, 67584, 14336)
    """
    try:
        count = COUNTED[op_type]
    except KeyError:
        raise UnsupportedError(
            f"work of an op in the table is needed, came {domain + ':' if domain else ''}{op_type}; "
            "add a row to latpred.kernels.work.COUNTED"
        ) from None
    per_element = sum(EPILOGUE_FLOPS.get(step, 1) for step in epilogue)
    try:
        work = count(inputs, outputs, attributes)
        return work + Work(flops=per_element * outputs[0].elements) if epilogue else work
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        shapes = [list(spec.shape) for spec in inputs], [list(spec.shape) for spec in outputs]
        raise UnsupportedError(
            f"the operands of {op_type} are needed to count its work, came inputs {shapes[0]}, outputs {shapes[1]}, "
            f"attributes {dict(attributes)}; check the model with onnx.checker.check_model"
        ) from error
