"""Kernels of one op that run different loops: told apart by what the loop depends on."""

import pytest
from runtime_oracle import graph

from latpred.estimators import kernel_key
from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import default_rules


@pytest.mark.parametrize(("opset", "kind"), [(18, "pool"), (20, "pool-general")])
def test_averages_of_newer_opsets_are_another_kernel_outside_the_blocked_layout(opset, kind):
    """42 channels of 32 x 32, 3x3, on one core: 1.7 ns an element up to opset 18, 18 ns from opset 19 on."""
    alone = graph("g (float[1,42,8,8] x) => (float[1,42,6,6] y) { y = AveragePool <kernel_shape=[3,3]> (x) }", opset)
    assert [k.kind for k in detect(read(alone), default_rules()).kernels] == [kind]
    blocked = graph(
        """g (float[1,16,8,8] x) => (float[1,16,6,6] y) <float[16,16,1,1] w>
        { c = Conv (x, w)  y = AveragePool <kernel_shape=[3,3]> (c) }""",
        opset,
    )
    assert [k.kind for k in detect(read(blocked), default_rules()).kernels if k.op_type == "AveragePool"] == ["pool"]


@pytest.mark.parametrize(("exponent", "kind"), [("2.0", "binary"), ("3.0", "binary"), ("0.5", "power")])
def test_powers_that_are_multiplied_out_are_another_kernel(exponent, kind):
    model = graph(f"g (float[1,64] x) => (float[1,64] y) <float e = {{{exponent}}}> {{ y = Pow (x, e) }}")
    assert [k.kind for k in detect(read(model), default_rules()).kernels] == [kind]


def test_what_tells_loops_apart_tells_estimates_apart() -> None:
    """A predictor remembers estimates by this key."""
    model = "g (float[1,64] x) => (float[1,64] y) <float e = {%s}> { y = Pow (x, e) }"
    keys = {kernel_key(detect(read(graph(model % e)), default_rules()).kernels[0]) for e in ("2.0", "3.0", "0.5")}
    assert len(keys) == 3
