"""Kind of a kernel: the family that one regressor serves.

Ops whose time follows the same law share a kind; a convolution is split by what its loop looks like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from latpred.graph import AttributeValue, Spec

__all__ = ["KIN", "KINDS", "kind_of"]

BLOCKED = "com.microsoft.nchwc"

# Op types a kind; convolutions are told apart by `kind_of`.
KINDS: Mapping[str, tuple[str, ...]] = {
    "conv-transpose": ("ConvTranspose", "ConvTransposeWithDynamicPads"),
    "conv-deformable": ("DeformConv",),
    "conv-quantized": ("QLinearConv", "ConvInteger"),
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
        "Add", "Sub", "Mul", "Div", "Pow", "Mod", "PRelu", "Sum", "Max", "Min", "Mean", "And", "Or", "Xor", "BitShift",
        "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    ),
    "binary-quantized": ("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearWhere"),
    "unary": (
        "Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "Abs", "Sqrt", "Reciprocal", "Ceil", "Floor",
        "Round", "Sign", "Not", "BitwiseNot", "IsNaN", "IsInf", "ThresholdedRelu", "Shrink", "Softsign", "CumSum",
        "Bernoulli", "RandomUniform", "RandomUniformLike",
    ),
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
    "pool": ("MaxPool", "AveragePool", "LpPool", "MaxUnpool", "QLinearAveragePool", "NhwcMaxPool"),
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
    "binary-quantized": "binary",
    "unary": "binary",
    "transcendental": "unary",
    "gelu": "transcendental",
    "rotary": "binary",
    "reduce": "unary",
    "global-pool": "reduce",
    "pool": "reduce",
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
    if op_type in _CONVOLUTIONS:
        return _convolution_kind(domain, inputs, attributes)
    kind = _KIND_OF_OP.get(op_type, "other")
    if kind != "conv-quantized" or attributes.get("group", 1) == 1:
        return kind
    # Grouped and depthwise integer convolutions run loops of their own. The depthwise one knows a single zero point of
    # the weights: where they differ between channels, each channel is lowered to a product of its own.
    depthwise = len(inputs) > 3 and inputs[3].shape[1:2] == (1,)
    return f"{kind}-by-group" if depthwise and attributes.get("zero_points") == "unequal" else f"{kind}-grouped"


def _convolution_kind(domain: str, inputs: Sequence[Spec], attributes: Mapping[str, AttributeValue]) -> str:
    if domain != BLOCKED:
        return "conv-unblocked" if attributes.get("group", 1) == 1 else "conv-unblocked-grouped"
    weights = inputs[1].shape
    if attributes.get("group", 1) != 1:
        return "conv-depthwise" if weights[1] == 1 else "conv-grouped"
    if attributes.get("plain_input"):
        return "conv-stem"
    return "conv-pointwise" if prod(weights[2:]) == 1 else "conv"
