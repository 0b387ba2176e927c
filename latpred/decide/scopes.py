"""What a person calls a part of a network: the path of the module that its nodes came from."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

__all__ = ["common_path", "module_path"]

PARAMETERS = frozenset({
    "beta", "bias", "gamma", "in_proj_bias", "in_proj_weight", "kernel", "scale", "weight",
})  # fmt: skip


def module_path(node: onnx.NodeProto, stored: Collection[str] = ()) -> tuple[str, ...]:
    """Modules around a node, the outermost first: from its name's scopes, else from the name of a weight it reads.

    Parameters
    ----------
    node : NodeProto
    stored : collection of str
        Names of the model's initializers.

    Examples
    --------
    >>> from onnx import helper
    >>> module_path(helper.make_node("Conv", ["x", "w"], ["y"], "/features/features.2/conv/conv.1/conv.1.0/Conv"))
    ('features', '2', 'conv', '1', '0')
    >>> module_path(helper.make_node("Conv", ["x", "layer1.0.conv1.weight"], ["y"], "node_7"), {"layer1.0.conv1.weight"})
    ('layer1', '0', 'conv1')
    """  # noqa: E501
    scopes = [scope for scope in node.name.split("/") if scope]
    if len(scopes) > 1:
        # PyTorch writes a module of a list with the list's name in front: /layer1/layer1.0
        outer = [""] + [f"{scope}." for scope in scopes]
        inner = [scope.removeprefix(before) for before, scope in zip(outer, scopes[:-1], strict=False)]
        return tuple(part for scope in inner for part in scope.split("."))
    for name in node.input:
        parts = name.split(".")
        if name in stored and len(parts) > 1 and parts[-1] in PARAMETERS:
            return tuple(parts[:-1])
    return ()


def common_path(paths: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The modules that all paths begin with.

    Examples
    --------
    >>> common_path([("blocks", "0", "attn", "qkv"), ("blocks", "0", "attn", "proj")])
    ('blocks', '0', 'attn')
    """
    found = list(paths)
    common: list[str] = []
    for level in zip(*found, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return tuple(common)
