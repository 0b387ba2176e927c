"""Grad-CAM's weights by torch's autograd in double precision: what tests compare with.

Run it where torch is installed beside latpred, from the repository's root, whenever `grad_cam_networks` changes::

    PYTHONPATH=.:tests python tests/recorded/grad_cam_torch.py tests/recorded/grad_cam.npz
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from grad_cam_networks import CASES, image
from onnx import numpy_helper
from torch.nn import functional as f

from latpred.surgery.tidy import tidied


def attributes(node):
    """Numbers by name; of texts, these networks only have the paddings that are none."""
    assert all(a.s == b"NOTSET" for a in node.attribute if a.type == a.STRING)
    return {a.name: (list(a.ints) or (a.i if a.type == a.INT else a.f)) for a in node.attribute if a.type != a.STRING}


def listed(tensor):
    return [int(value) for value in tensor.reshape(-1)]


def conv(x, w, b=None, *, pads=(0, 0, 0, 0), strides=(1, 1), group=1, dilations=(1, 1), kernel_shape=None):
    assert pads[0] == pads[2]
    assert pads[1] == pads[3]
    return f.conv2d(x, w, b, strides, pads[:2], dilations, group)


def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):  # noqa: N803
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def mean(x, axes_input=None, *, axes=None, keepdims=1, noop_with_empty_axes=0):
    return x.mean(axes if axes_input is None else listed(axes_input), keepdim=bool(keepdims))


def split(x, sizes=None, *, axis=0, num_outputs=None):
    return x.split(listed(sizes) if sizes is not None else x.shape[axis] // num_outputs, axis)


def layer_norm(x, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    return f.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


OPS = {
    "Add": lambda a, b: a + b,
    "BatchNormalization": lambda x, s, b, m, v, epsilon=1e-5, **_: f.batch_norm(x, m, v, s, b, eps=epsilon),
    "Clip": lambda x, low, high: f.hardtanh(x, float(low), float(high)),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": conv,
    "Div": lambda a, b: a / b,
    "Erf": torch.erf,
    "Flatten": lambda x, axis=1: x.flatten(axis),
    "Gather": lambda x, places, axis=0: x.index_select(axis, places.long().reshape(-1)).squeeze(axis),
    "Gemm": gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "HardSwish": f.hardswish,
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: f.leaky_relu(x, alpha),
    "MatMul": torch.matmul,
    "MaxPool": lambda x, kernel_shape, strides, pads=(0, 0, 0, 0): f.max_pool2d(x, kernel_shape, strides, pads[:2]),
    "Mul": lambda a, b: a * b,
    "ReduceMean": mean,
    "Relu": f.relu,
    "Reshape": lambda x, shape, allowzero=0: x.reshape(listed(shape)),
    "Sigmoid": torch.sigmoid,
    "Softmax": lambda x, axis=-1: f.softmax(x, axis),
    "Split": split,
    "Squeeze": lambda x, axes: x.squeeze(listed(axes)),
    "Sub": lambda a, b: a - b,
    "Transpose": lambda x, perm: x.permute(perm),
}


def scores_and_gradient(model, layer):
    """Score before softmax, and its gradient with respect to a tensor, all others that go past it held fixed."""
    graph = model.graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    values = {name: value.double() if value.is_floating_point() else value for name, value in values.items()}
    (x,) = graph.input
    shape = tuple(dim.dim_value for dim in x.type.tensor_type.shape.dim)
    values[x.name] = torch.from_numpy(image(shape)).double()
    score = graph.output[0].name
    for node in graph.node:
        if node.op_type == "Softmax" and node.output[0] == score:
            score = node.input[0]
            break
        made = OPS[node.op_type](*[values[name] if name else None for name in node.input], **attributes(node))
        made = made if isinstance(made, tuple | list) else (made,)
        values.update(zip(node.output, made, strict=True))
        if layer in node.output:
            values[layer] = values[layer].detach().requires_grad_()
    best = values[score].argmax(1)
    picked = values[score].gather(1, best[:, None])
    (gradient,) = torch.autograd.grad(picked.sum(), values[layer])
    return values[layer].detach(), picked.detach()[:, 0], best, gradient


def main(target):
    kept = {}
    for name, case in CASES.items():
        activation, picked, best, gradient = scores_and_gradient(tidied(case.network()), case.layer)
        if activation.ndim == 3:
            activation, gradient = (t[:, case.extra_tokens :].transpose(1, 2) for t in (activation, gradient))
            side = round(activation.shape[2] ** 0.5)
            activation, gradient = (t.reshape(*t.shape[:2], side, side) for t in (activation, gradient))
        alpha = gradient.mean((2, 3))
        evidence = f.relu((alpha[:, :, None, None] * activation).sum(1))
        large = f.interpolate(evidence[:, None], (16, 16), mode="bilinear", align_corners=False)[:, 0]
        for what, value in (
            ("alpha", alpha),
            ("score", picked),
            ("class", best),
            ("evidence", evidence),
            ("16", large),
        ):
            kept[f"{name}/{what}"] = value.numpy()
    np.savez_compressed(target, **kept)


if __name__ == "__main__":
    main(sys.argv[1])
