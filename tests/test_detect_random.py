"""The detector against onnxruntime on random networks: whole rows of rules in each other's way."""

import pytest
from random_graphs import network
from runtime_oracle import detected, executed

from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import default_rules


@pytest.mark.parametrize("seed", range(60))
def test_detects_what_the_runtime_executes(seed, tmp_path):
    model = network(seed)
    assert detected(model) == executed(model, tmp_path)


@pytest.mark.parametrize("seed", range(60, 70))
def test_each_op_is_in_one_kernel_or_free(seed):
    graph = read(network(seed))
    found = detect(graph, default_rules())
    carried = [op for kernel in found.kernels for op in kernel.ops]
    assert sorted([*carried, *found.free]) == sorted(op.name for op in graph.ops)
