"""Taps that fall on the input, against counting them one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.graph import Spec
from latpred.kernels.kernel import Kernel
from latpred.kernels.kinds import BLOCKED
from latpred.kernels.taps import executed_share, hits


@given(
    size_in=st.integers(1, 20),
    size_out=st.integers(1, 20),
    taps=st.integers(1, 7),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 12),
    pad=st.integers(0, 12),
)
def test_hits_are_those_counted_one_by_one(
    size_in: int, size_out: int, taps: int, stride: int, dilation: int, pad: int
) -> None:
    counted = sum(0 <= out * stride + tap * dilation - pad < size_in for out in range(size_out) for tap in range(taps))
    assert hits(size_in, size_out, taps, stride, dilation, pad) == counted


def convolution(domain: str) -> Kernel:
    image, weights = Spec((1, 16, 7, 7)), Spec((16, 16, 3, 3), constant=True)
    return Kernel("conv", "Conv", domain, "c", ("c",), (image, weights), (image,), {"pads": (1, 1, 1, 1)})


def test_only_blocked_convolutions_skip_padding() -> None:
    # along each axis 7 outputs x 3 taps, of which one is missing at either end
    assert executed_share(convolution(BLOCKED)) == pytest.approx((19 / 21) ** 2)
    assert executed_share(convolution("")) == 1.0
