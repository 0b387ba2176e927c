"""The pattern language: what parses, what matches, and why something does not."""

import itertools

import pytest
from runtime_oracle import graph

from latpred.errors import ArtefactError
from latpred.graph import read
from latpred.kernels.fusion import Rule, RuleBook
from latpred.kernels.patterns import apply_patterns, matches, parse_call, parse_pattern, spellings
from latpred.kernels.working import WorkingGraph

GELU = """
d = Div(x, 1.414213)
e = Erf(d)
a = Add(e, 1)
m = Mul(x, a)
y = Mul(m, 0.5)
"""
CONSTANTS = "float root = {1.41421356}, float one = {1.0}, float half = {0.5}"


def working(text: str) -> WorkingGraph:
    return WorkingGraph.of(read(graph(text)))


def book(**fields: object) -> RuleBook:
    rule = Rule("gelu", pattern=GELU, becomes="com.microsoft.Gelu(x)", **fields)
    return RuleBook("onnxruntime", "1.31", {"gelu": rule})


def op_types(found: WorkingGraph) -> list[str]:
    return sorted(node.op_type for node in found.in_order())


@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=3)))
def test_add_and_mul_match_in_either_order(flips):
    add, first, last = (
        f"({b}, {a})" if flip else f"({a}, {b})"
        for flip, (a, b) in zip(flips, (("e", "one"), ("x", "a"), ("m", "half")), strict=True)
    )
    found = working(
        f"""g (float[2,8] x) => (float[2,8] y) <{CONSTANTS}>
        {{ d = Div (x, root)  e = Erf (d)  a = Add {add}  m = Mul {first}  y = Mul {last} }}"""
    )
    apply_patterns(found, book(), ("gelu",))
    assert op_types(found) == ["Gelu"]
    (node,) = found.in_order()
    assert (node.domain, node.inputs, node.outputs, len(node.ops)) == ("com.microsoft", ["x"], ["y"], 5)


def test_div_does_not_match_the_other_way_round():
    found = working(
        f"""g (float[2,8] x) => (float[2,8] y) <{CONSTANTS}>
        {{ d = Div (root, x)  e = Erf (d)  a = Add (e, one)  m = Mul (x, a)  y = Mul (m, half) }}"""
    )
    apply_patterns(found, book(), ("gelu",))
    assert "Gelu" not in op_types(found)


def refusal(text: str, **fields: object) -> str:
    found = working(text)
    before = op_types(found)
    apply_patterns(found, book(**fields), ("gelu",))
    assert op_types(found) == before
    (reason,) = {remark.reason for said in found.remarks.values() for remark in said}
    return reason


def test_says_that_a_constant_is_another_one():
    text = """g (float[2,8] x) => (float[2,8] y) <float root = {1.41421356}, float one = {1.0}, float half = {0.7}>
    { d = Div (x, root)  e = Erf (d)  a = Add (e, one)  m = Mul (x, a)  y = Mul (m, half) }"""
    assert refusal(text) == "the constant is 0.7 where 0.5 is needed"


def test_says_that_an_inner_value_is_used_elsewhere():
    text = f"""g (float[2,8] x) => (float[2,8] y, float[2,8] z) <{CONSTANTS}>
    {{ d = Div (x, root)  e = Erf (d)  a = Add (e, one)  m = Mul (x, a)  y = Mul (m, half)  z = Exp (e) }}"""
    assert refusal(text) == "the inner value e is used elsewhere too"


def test_says_that_an_inner_value_is_an_output():
    text = f"""g (float[2,8] x) => (float[2,8] y, float[2,8] e) <{CONSTANTS}>
    {{ d = Div (x, root)  e = Erf (d)  a = Add (e, one)  m = Mul (x, a)  y = Mul (m, half) }}"""
    assert refusal(text) == "the inner value e is an output of the graph"


PLAIN = f"""g (float[2,8] x) => (float[2,8] y) <{CONSTANTS}>
{{ d = Div (x, root)  e = Erf (d)  a = Add (e, one)  m = Mul (x, a)  y = Mul (m, half) }}"""


def test_parameters_limit_element_types_and_outputs():
    assert refusal(PLAIN, parameters={"dtypes": ("float16",)}) == "the runtime does not do it for float32"
    assert refusal(PLAIN, parameters={"graph_output": False}) == "the result is an output of the graph"


def test_a_rule_that_does_not_hold_is_passed_over():
    found = working(PLAIN)
    apply_patterns(found, book(holds=False), ("gelu",))
    assert "Erf" in op_types(found)


def test_attributes_and_open_ends_are_checked():
    found = working("g (float[2,8] x) => (float[2,8] y) { e = Exp (x)  y = Softmax <axis=-1> (e) }")
    wanted = parse_pattern("e = Exp(x)\ny = Softmax(e; axis=-1)")
    other = parse_pattern("e = Exp(x)\ny = Softmax(e; axis=1)")
    roots = found.of_type("Softmax")
    assert [match.tensors["x"] for match in matches(found, wanted, roots)] == ["x"]
    assert list(matches(found, other, roots)) == []
    sliced = working(
        """g (float[2,8] x) => (float[2,4] y) <int64[1] start = {0}, int64[1] end = {4}, int64[1] axes = {1}>
        { y = Slice (x, start, end, axes) }"""
    )
    assert len(list(matches(sliced, parse_pattern("y = Slice(x, *)"), sliced.of_type("Slice")))) == 1
    assert list(matches(sliced, parse_pattern("y = Slice(x)"), sliced.of_type("Slice"))) == []


def test_captures_numbers_and_tells_constants_from_activations():
    found = working(
        "g (float[2,8] x) => (float[2,8] y) <float[8] w, float k = {0.25}> { m = Mul (x, w)  y = Mul (k, m) }"
    )
    pattern = parse_pattern("m = Mul(x, W)\ny = Mul(m, $k)")
    (match,) = matches(found, pattern, found.of_type("Mul"))
    assert match.numbers == {"$k": 0.25}
    assert match.tensors["W"] == "w"


def test_a_condition_refuses_a_producer():
    found = working("g (float[2,8] x) => (float[2,8] y) { e = Exp (x)  y = Neg (e) }")
    assert list(matches(found, parse_pattern("y = Neg(x)\nx is not Exp"), found.of_type("Neg"))) == []
    assert len(list(matches(found, parse_pattern("y = Neg(x)\nx is not Sin"), found.of_type("Neg")))) == 1


@pytest.mark.parametrize(
    "text", ["Add x, 1", "Add(x; axis)", "Add(x, 1", "Add(x, +)"], ids=["no call", "no value", "no end", "no argument"]
)
def test_refuses_what_is_no_call(text):
    with pytest.raises(ArtefactError, match="fusion pattern"):
        parse_call(text)


@pytest.mark.parametrize("text", ["", "Add(x, 1)", "a = Exp(x)\na = Exp(a)"], ids=["empty", "no name", "twice"])
def test_refuses_what_is_no_pattern(text):
    with pytest.raises(ArtefactError, match="fusion pattern"):
        parse_pattern(text)


def test_spellings_are_separated_by_or():
    assert spellings("y = Exp(x)\nor\ny = Neg(x)\n") == ("y = Exp(x)\n", "\ny = Neg(x)\n")
