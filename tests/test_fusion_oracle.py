"""The detector against onnxruntime itself: for every probe graph, the kernels and shapes that really run."""

import pytest
from runtime_oracle import detected, executed

from latpred.collect.probe_graphs import PROBES, probe_model
from latpred.kernels.fusion import default_rules


@pytest.mark.parametrize("rule", PROBES)
def test_detects_what_the_runtime_executes(rule, tmp_path):
    model = probe_model(PROBES[rule])
    assert detected(model) == executed(model, tmp_path)


def test_every_rule_of_the_default_book_says_what_it_is():
    for rule in default_rules().rules.values():
        assert rule.about.endswith("."), rule.name


def test_rules_and_probes_are_the_same_list():
    assert PROBES.keys() == default_rules().rules.keys()
