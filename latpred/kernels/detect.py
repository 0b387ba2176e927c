"""Graph -> kernels: rewrites the graph as the runtime's optimiser would, then names what is left."""

from __future__ import annotations

from latpred.graph import Graph
from latpred.kernels.fusion import RuleBook
from latpred.kernels.kernel import Kernel

__all__ = ["detect"]


def detect(graph: Graph, rules: RuleBook) -> tuple[Kernel, ...]:
    """Kernels in launch order. (To be written.)"""
    raise NotImplementedError
