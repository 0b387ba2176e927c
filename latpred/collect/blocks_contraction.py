"""Einsum as networks spell it: relative positions, attention, linear layers and batched products, in many orders."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from latpred.collect.blocks_elementwise import draw_shape
from latpred.collect.graph_builder import GraphBuilder, Value

__all__ = ["EQUATIONS", "contractions", "draw_einsum"]

MAX_ELEMENTS = 1 << 20  # of one operand or result
MAX_MACS = 60_000_000
EQUATIONS: tuple[tuple[str, str, float], ...] = (
    # equation, sorts of its letters in the order in which they appear ("side:h": mostly as long as h), weight
    ("bhwc,hkc->bhwk", "batch side side:h head side", 2),  # relative positions along the height, along the width
    ("bhwc,wkc->bhwk", "batch side side:h head side", 2),
    ("byhwc,hkc->byhwk", "batch heads side side:h head side", 1),
    ("byhwc,wkc->byhwk", "batch heads side side:h head side", 2),
    ("bhwc,kc->bhwk", "batch side side:h head side", 0.7),
    ("bhqd,bhkd->bhqk", "batch heads tokens head tokens", 2),  # scores and contexts, heads before or behind tokens
    ("bhqk,bhkd->bhqd", "batch heads tokens tokens head", 2),
    ("bqhd,bkhd->bhqk", "batch tokens heads head tokens", 2),
    ("bhqk,bkhd->bqhd", "batch heads tokens tokens head", 1.5),
    ("bhdq,bhdk->bhqk", "batch heads head tokens tokens", 1),
    ("bhqk,bhck->bhcq", "batch heads tokens tokens head", 1),
    ("bqd,bkd->bqk", "batch tokens head tokens", 1),
    ("bhqd,qkd->bhqk", "batch heads tokens head tokens", 1.5),  # one table of positions for all heads
    ("bhqd,hkd->bhqk", "batch heads tokens head tokens", 0.7),
    ("bnd,de->bne", "batch tokens width width", 1.5),  # linear layers
    ("bnd,ed->bne", "batch tokens width width", 0.7),
    ("bnd,hde->bhne", "batch tokens width heads head", 0.7),
    ("bnhd,hde->bne", "batch tokens heads head width", 0.7),
    ("bhnd,hde->bhne", "batch heads tokens head head", 0.7),
    ("bchw,cd->bdhw", "batch width side side:h width", 1.2),
    ("bchw,dc->bdhw", "batch width side side:h width", 0.7),
    ("bhld,bhdm->bhlm", "batch heads tokens head head", 1.5),  # batched products of linear attention
    ("bhnd,bhne->bhde", "batch heads tokens head head", 1.5),
    ("bhde,bhnd->bhne", "batch heads head head tokens", 1),
    ("bkc,bcn->bkn", "batch tokens head tokens", 1.2),
    ("bck,bcn->bkn", "batch head tokens tokens", 0.7),
    ("bi,bj->bij", "batch width width", 0.5),  # outer products
    ("i,j->ij", "tokens head", 0.4),
    ("bhnd,bhn->bhd", "batch heads tokens head", 0.5),
    ("bhnd,d->bhn", "batch heads tokens head", 0.5),
)


def _sizes(b: GraphBuilder) -> Mapping[str, tuple[int, ...]]:
    """What each sort of dim can be."""
    return {
        "batch": (1, 1, 1, 2, 4),
        "heads": (1, 2, 3, 4, 6, 8, 12, 16),
        "tokens": (14, 16, 28, 49, 50, 64, 100, 128, 196, 197, 256, 400, b.between(10, 500)),
        "head": (8, 16, 24, 32, 48, 64, 80, 96, 128, b.between(8, 128)),
        "side": (7, 8, 14, 16, 20, 28, 32, 56),
        "width": (32, 64, 96, 128, 192, 256, 384, b.between(16, 512, 8)),
    }


def draw_einsum(b: GraphBuilder) -> None:
    """One contraction of a drawn equation; nothing before opset 12, which has none."""
    if b.style.opset < 12:
        return
    equation, roles, _ = b.choose(EQUATIONS, [weight for *_, weight in EQUATIONS])
    terms, result = equation.split("->")
    left, right = terms.split(",")
    letters = dict.fromkeys(left + right)
    sizes = _sizes(b)
    dims: dict[str, int] = {}
    for letter, role in zip(letters, roles.split(), strict=True):
        name, _, same = role.partition(":")
        dims[letter] = dims[same] if same and b.chance(0.9) else b.choose(sizes[name])
    if letters.keys() >= {"h", "w", "k"}:  # a table of relative positions is as long as the side it is for
        dims["k"] = dims["w"] if "w" in right else dims["h"]
    while (
        prod(dims.values()) > MAX_MACS
        or max(prod(dims[letter] for letter in term) for term in (left, right, result)) > MAX_ELEMENTS
    ):
        longest = max(dims, key=lambda letter: dims[letter])
        dims[longest] = max(1, dims[longest] // 2)
    shapes = [tuple(dims[letter] for letter in term) for term in (left, right)]
    x = b.op("Neg", b.input(shapes[0]))
    other: Value = b.op("Neg", b.input(shapes[1])) if left[0] == right[0] or b.chance(0.4) else b.weight(shapes[1], 0.1)
    b.op("Einsum", x, other, equation=equation)


def contractions(b: GraphBuilder, limit_s: float) -> None:
    """Einsum of every kind, one after another."""
    start_s = b.estimated_s
    for index in range(12):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "contractions"
        draw_einsum(b)
        if not index:
            b.op("Neg", b.input(draw_shape(b, 3)))
