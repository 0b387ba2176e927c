"""Kind of a kernel: the family that one regressor serves.

Ops whose time follows the same law share a kind; a convolution is split by what its loop looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from latpred.graph import AttributeValue, Spec

__all__ = ["KIN", "KINDS", "kind_of", "runtime_attributes"]

BLOCKED = "com.microsoft.nchwc"

# Op types a kind; convolutions are told apart by `kind_of`.
KINDS: Mapping[str, tuple[str, ...]] = {
    "conv-transpose": ("ConvTranspose", "ConvTransposeWithDynamicPads"),
    "conv-deformable": ("DeformConv",),
    "conv-quantized": ("QLinearConv",),
    "conv-integer": ("ConvInteger",),
    "gemm": ("Gemm", "FusedGemm"),
    "matmul": ("MatMul", "FusedMatMul"),
    "matmul-quantized": (
        "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "MatMulNBits",
    ),
    "einsum": ("Einsum",),
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"),
    "recurrent": ("LSTM", "GRU", "RNN"),
    "softmax": ("Softmax", "LogSoftmax", "BiasSoftmax", "Hardmax", "QLinearSoftmax"),
    "layer-norm": (
        "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization",
    ),
    "batch-norm": ("BatchNormalization",),
    "instance-norm": (
        "InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization", "LpNormalization", "LRN",
    ),
    "binary": (
        "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Sum", "Max", "Min", "Mean", "And", "Or", "Xor", "BitShift",
        "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    ),
    "prelu": ("PRelu",),
    "binary-quantized": ("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearWhere"),
    "unary": (
        "Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "Abs", "Sqrt", "Reciprocal", "Ceil", "Floor",
        "Round", "Sign", "Not", "BitwiseNot", "IsNaN", "IsInf", "ThresholdedRelu", "Shrink", "Softsign",
        "Bernoulli", "RandomUniform", "RandomUniformLike",
    ),
    "cumulative": ("CumSum",),
    "transcendental": (
        "Sigmoid", "Tanh", "Exp", "Log", "Erf", "Softplus", "Elu", "Selu", "Celu", "Mish", "Swish", "Sin", "Cos",
        "Tan", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "RandomNormal", "RandomNormalLike",
        "Multinomial", "QLinearSigmoid", "QLinearLeakyRelu",
    ),
    "gelu": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu"),
    "rotary": ("RotaryEmbedding",),
    "reduce": (
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin", "QLinearReduceMean",
    ),
    "global-pool": ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "QLinearGlobalAveragePool"),
    "pool": ("MaxPool", "AveragePool"),
    "pool-general": ("QLinearAveragePool", "MaxUnpool"),
    "pool-norm": ("LpPool",),
    "pool-channels-last": ("NhwcMaxPool",),
    "resize": ("Resize", "Upsample"),
    "sample": ("GridSample", "AffineGrid", "RoiAlign", "MaxRoiPool"),
    "reorder": ("ReorderInput", "ReorderOutput"),
    "transpose": ("Transpose",),
    "shuffle": ("DepthToSpace", "SpaceToDepth", "Col2Im", "Im2Col", "ReverseSequence", "Reverse"),
    "concat": ("Concat",),
    "split": ("Split",),
    "slice": ("Slice", "CenterCropPad"),
    "pad": ("Pad",),
    "expand": ("Expand", "Tile"),
    "gather": ("Gather", "GatherElements", "GatherND", "Compress"),
    "scatter": ("ScatterND", "ScatterElements", "Scatter", "TensorScatter"),
    "where": ("Where",),
    "cast": ("Cast", "CastLike"),
    "quantize": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    "fill": ("ConstantOfShape", "Range", "EyeLike", "OneHot", "Trilu"),
    "sort": ("TopK", "NonMaxSuppression", "NonZero", "Unique"),
    "fourier": ("DFT", "STFT", "Rfft", "Irfft"),
    "view": ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Shape", "Size"),
    "control": ("If", "Loop", "Scan"),
    "sequence": (
        "SequenceAt", "SequenceConstruct", "SplitToSequence", "ConcatFromSequence", "SequenceInsert", "SequenceEmpty",
        "SequenceLength", "StringNormalizer", "TfIdfVectorizer", "Optional",
    ),
}  # fmt: skip

# Where a kind has no regressor: whose behaviour is nearest.
KIN: Mapping[str, str] = {
    "conv-grouped": "conv",
    "conv-stem": "conv",
    "conv-pointwise": "conv",
    "conv-unblocked": "gemm",
    "conv-unblocked-grouped": "conv-unblocked",
    "conv-depthwise": "conv-grouped",
    "conv-transpose": "conv-unblocked",
    "conv-deformable": "conv-unblocked",
    "conv-quantized": "conv-unblocked",
    "conv-quantized-grouped": "conv-quantized",
    "conv-quantized-by-group": "conv-quantized-grouped",
    "conv-integer": "conv-quantized",
    "conv": "gemm",
    "matmul": "gemm",
    "gemm": "matmul",
    "matmul-quantized": "gemm",
    "einsum": "matmul",
    "attention": "matmul",
    "recurrent": "gemm",
    "softmax": "transcendental",
    "layer-norm": "reduce",
    "batch-norm": "binary",
    "instance-norm": "layer-norm",
    "binary": "unary",
    "power": "transcendental",
    "prelu": "binary",
    "binary-quantized": "binary",
    "unary": "binary",
    "cumulative": "unary",
    "transcendental": "unary",
    "gelu": "transcendental",
    "rotary": "binary",
    "reduce": "unary",
    "global-pool": "reduce",
    "pool": "reduce",
    "pool-general": "pool",
    "pool-norm": "pool-general",
    "pool-channels-last": "pool",
    "resize": "pool",
    "sample": "resize",
    "reorder": "transpose",
    "transpose": "reorder",
    "shuffle": "transpose",
    "concat": "slice",
    "split": "slice",
    "slice": "concat",
    "pad": "concat",
    "expand": "concat",
    "gather": "slice",
    "scatter": "gather",
    "where": "binary",
    "cast": "unary",
    "quantize": "unary",
    "fill": "expand",
    "sort": "reduce",
    "fourier": "matmul",
    "view": "unary",
    "control": "view",
    "sequence": "view",
    "other": "unary",
}

# From this opset on, the runtime averages by a general loop, outside the blocked layout: ten times as long.
GENERAL_AVERAGE_POOL = 19
MULTIPLIED_OUT = (2.0, 3.0)  # exponents that need no logarithm
# The operand on whose values an op's loop depends.
_VALUED = {"Pow": 1, "QLinearConv": 5}

_KIND_OF_OP = {op_type: kind for kind, op_types in KINDS.items() for op_type in op_types}
_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")


def kind_of(op_type: str, domain: str, inputs: Sequence[Spec], attributes: Mapping[str, AttributeValue]) -> str:
    """The kind of a kernel; ``"other"`` where no table row names its op.

    Examples
    --------
    >>> weights = Spec((32, 1, 3, 3), constant=True)
    >>> kind_of("Conv", "com.microsoft.nchwc", [Spec((1, 32, 8, 8)), weights], {"group": 32})
    'conv-depthwise'
    >>> kind_of("Conv", "", [Spec((1, 30, 8, 8)), Spec((12, 30, 3, 3), constant=True)], {})
    'conv-unblocked'
    """
    if op_type in _TOLD_APART:
        return _TOLD_APART[op_type](domain, inputs, attributes)
    return _KIND_OF_OP.get(op_type, "other")


def runtime_attributes(
    op_type: str, domain: str, opset: int, values: Callable[[int], Sequence[float] | None]
) -> dict[str, AttributeValue]:
    """What an op's loop depends on beyond its own attributes and shapes, as further attributes of its kernel.

    Parameters
    ----------
    op_type, domain : str
        What the runtime executes.
    opset : int
        Of the standard domain, which the model was written for.
    values : callable
        Index of an input -> its values where they are known, else None.

    Examples
    --------
    >>> runtime_attributes("AveragePool", "", 20, lambda index: None)
    {'since_version': 19}
    >>> runtime_attributes("Pow", "", 17, lambda index: (2.0,))
    {'exponent': 2.0}
    """
    known = values(_VALUED[op_type]) if op_type in _VALUED else None
    if op_type == "AveragePool" and not domain and opset >= GENERAL_AVERAGE_POOL:
        return {"since_version": GENERAL_AVERAGE_POOL}
    if op_type == "Pow" and known is not None and len(known) == 1:
        return {"exponent": float(known[0])}
    if op_type == "QLinearConv" and known is not None and len(set(known)) > 1:
        return {"zero_points": "unequal"}
    return {}


def _average_pool(domain: str, _: Sequence[Spec], attributes: Mapping[str, AttributeValue]) -> str:
    return "pool-general" if not domain and "since_version" in attributes else "pool"


def _max_pool(_: str, inputs: Sequence[Spec], __: Mapping[str, AttributeValue]) -> str:
    return "pool-general" if inputs and inputs[0].dtype in ("int8", "uint8") else "pool"


def _pow(_: str, __: Sequence[Spec], attributes: Mapping[str, AttributeValue]) -> str:
    return "binary" if attributes.get("exponent") in MULTIPLIED_OUT else "power"


def _integer_convolution(_: str, inputs: Sequence[Spec], attributes: Mapping[str, AttributeValue]) -> str:
    if attributes.get("group", 1) == 1:
        return "conv-quantized"
    depthwise = len(inputs) > 3 and inputs[3].shape[:2] == (attributes.get("group", 1), 1)
    unequal = attributes.get("zero_points") == "unequal"
    return "conv-quantized-by-group" if depthwise and unequal else "conv-quantized-grouped"


def _convolution_kind(domain: str, inputs: Sequence[Spec], attributes: Mapping[str, AttributeValue]) -> str:
    if domain != BLOCKED:
        return "conv-unblocked" if attributes.get("group", 1) == 1 else "conv-unblocked-grouped"
    weights = inputs[1].shape
    if attributes.get("group", 1) != 1:
        return "conv-depthwise" if weights[1] == 1 else "conv-grouped"
    if attributes.get("plain_input"):
        return "conv-stem"
    return "conv-pointwise" if prod(weights[2:]) == 1 else "conv"


_TOLD_APART = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution_kind),
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "Pow": _pow,
    # Grouped and depthwise integer convolutions run loops of their own. The depthwise one knows a single zero point of
    # the weights: where they differ between channels, each channel is lowered to a product of its own.
    "QLinearConv": _integer_convolution,
}
