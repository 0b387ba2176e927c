"""A small language for plain fusions, and its matcher.

A pattern is one line an op, the last line being the one that is replaced::

    d = Div(x, 1.4142)          a number: a one-element constant of that value, within 1e-5 relative
    e = Erf(d)
    a = Add(e, 1)               Add and Mul match in either order of their inputs
    m = Mul(x, a)               the same name twice: the same tensor
    y = Mul(m, 0.5)

Further forms of an argument: ``$alpha`` is a one-element constant of any value, ``Bias`` (a capital letter) any
constant, ``*`` stands for whatever inputs follow. Attributes come behind a semicolon: ``Softmax(x; axis=-1)``.
What replaces the ops reads the same: ``com.microsoft.QuickGelu(x; alpha=$alpha)``; attributes may name captured
values (1 where the spelling has none), a domain stands before the op. Values between the ops must be used
nowhere else. A rule with several spellings has them separated by a line ``or``; its parameters may limit the element
types (``dtypes``) or say that the result must not be an output of the graph (``graph_output = false``). A line
``x is not Mul`` refuses what is computed by a Mul.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import isclose

from latpred.errors import ArtefactError
from latpred.graph import AttributeValue
from latpred.kernels.fusion import RuleBook
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["Call", "Match", "Pattern", "apply_patterns", "matches", "parse_call", "parse_pattern"]

COMMUTATIVE = frozenset({"Add", "Mul"})
RELATIVE_TOLERANCE = 1e-5

_CALL = re.compile(r"^(?:(?P<domain>[\w.]+)\.)?(?P<op>\w+)\((?P<body>.*)\)$")
_CONDITION = re.compile(r"^(?P<name>\w+) is not (?P<op>\w+)$")
_NAME = re.compile(r"^\$?[A-Za-z_]\w*$")

Argument = str | float


@dataclass(frozen=True, slots=True)
class Call:
    """One op of a pattern: its arguments are names, numbers, ``$captures`` or ``*``."""

    op_type: str
    domain: str
    arguments: tuple[Argument, ...]
    attributes: tuple[tuple[str, Argument], ...] = ()
    open_ended: bool = False  # a `*` allows further inputs


@dataclass(frozen=True, slots=True)
class Pattern:
    """Ops by the name of their output; `root` is the last one."""

    calls: dict[str, Call]
    root: str
    op_types: frozenset[str]
    uses: dict[str, int]  # inner value -> how often the pattern reads it
    unlike: tuple[tuple[str, str], ...] = ()  # (variable, op type that must not compute it)


@dataclass(slots=True)
class Match:
    """Where a pattern was found: tensors by variable name, nodes by output name, captured numbers."""

    tensors: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def copy(self) -> Match:
        """An independent copy, to try one order of inputs on."""
        return Match(dict(self.tensors), dict(self.nodes), dict(self.numbers))


@lru_cache(maxsize=256)
def parse_call(text: str) -> Call:
    """One call, such as ``com.microsoft.Gelu(x)``.

    Raises
    ------
    ArtefactError
        Where the text is no call.

    Examples
    --------
    >>> parse_call("Add(x, 1)").arguments
    ('x', 1.0)
    """
    found = _CALL.match(text.strip())
    if found is None:
        raise ArtefactError(f"a fusion pattern needs calls like `Add(x, 1)`, found `{text.strip()}`")
    inputs, _, attributes = found["body"].partition(";")
    arguments = [_argument(part) for part in inputs.split(",") if part.strip()]
    pairs = []
    for part in attributes.split(",") if attributes.strip() else ():
        key, _, value = part.partition("=")
        pairs.append((key.strip(), _argument(value)))
    open_ended = bool(arguments) and arguments[-1] == "*"
    return Call(found["op"], found["domain"] or "", tuple(a for a in arguments if a != "*"), tuple(pairs), open_ended)


def _argument(text: str) -> Argument:
    text = text.strip()
    if text == "*" or _NAME.match(text):
        return text
    try:
        return float(text)
    except ValueError:
        raise ArtefactError(f"a fusion pattern takes names and numbers as arguments, found `{text}`") from None


@lru_cache(maxsize=256)
def parse_pattern(text: str) -> Pattern:
    """A pattern from its text, one ``name = Call(...)`` a line.

    Raises
    ------
    ArtefactError
        Where a line is no such assignment, or a name is given twice.
    """
    calls: dict[str, Call] = {}
    unlike: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        condition = _CONDITION.match(line)
        if condition:
            unlike.append((condition["name"], condition["op"]))
            continue
        name, equals, call = line.partition("=")
        name = name.strip()
        if not equals or not _NAME.match(name) or name in calls:
            raise ArtefactError(f"a fusion pattern needs lines like `y = Add(x, 1)` with fresh names, found `{line}`")
        calls[name] = parse_call(call)
    if not calls:
        raise ArtefactError("a fusion pattern needs at least one line, found none")
    root = list(calls)[-1]
    uses = {name: sum(call.arguments.count(name) for call in calls.values()) for name in calls if name != root}
    return Pattern(calls, root, frozenset(call.op_type for call in calls.values()), uses, tuple(unlike))


def matches(graph: WorkingGraph, pattern: Pattern, roots: Iterable[Node], rule: str = "") -> Iterator[Match]:
    """Every match whose last op is one of `roots`; near misses leave a remark where `rule` is given."""
    root = pattern.calls[pattern.root]
    for node in roots:
        if id(node) not in graph.nodes or node.op_type != root.op_type or node.domain != root.domain:
            continue
        near: list[str] = []
        found = _solve(graph, pattern, [(pattern.root, node.outputs[0])], Match(), near)
        if found is not None:
            yield found
        elif near and rule:
            graph.remark(node.ops, rule, False, near[-1])


def _solve(
    graph: WorkingGraph, pattern: Pattern, goals: list[tuple[Argument, str]], match: Match, near: list[str]
) -> Match | None:
    """Bind goals (pattern argument, tensor) one by one; branch where an op is commutative."""
    while goals:
        argument, tensor = goals.pop()
        if isinstance(argument, float):
            value = graph.scalar(tensor)
            if value is None:
                return None
            if not isclose(value, argument, rel_tol=RELATIVE_TOLERANCE):
                near.append(f"the constant is {value:g} where {argument:g} is needed")
                return None
            continue
        bound = match.tensors.get(argument)
        if bound is not None:
            if bound != tensor:
                return None
            continue
        call = pattern.calls.get(argument)
        if call is None:
            if not _bind_leaf(graph, argument, tensor, match):
                return None
            continue
        node = graph.producers.get(tensor)
        if node is None or node.op_type != call.op_type or node.domain != call.domain:
            return None
        count = len(call.arguments)
        if len(node.inputs) != count and not (call.open_ended and len(node.inputs) > count):
            return None
        match.tensors[argument] = tensor
        match.nodes[argument] = node
        if call.op_type in COMMUTATIVE and call.arguments[0] != call.arguments[1]:
            for inputs in (node.inputs, node.inputs[::-1]):
                branch = [*goals, *zip(call.arguments, inputs, strict=True)]
                found = _solve(graph, pattern, branch, match.copy(), near)
                if found is not None:
                    return found
            return None
        goals.extend(zip(call.arguments, node.inputs, strict=False))
    return match if _isolated(graph, pattern, match, near) else None


def _bind_leaf(graph: WorkingGraph, argument: str, tensor: str, match: Match) -> bool:
    if argument.startswith("$"):
        value = graph.scalar(tensor)
        if value is None:
            return False
        match.numbers[argument] = value
    elif argument[0].isupper() and not graph.is_constant(tensor):
        return False
    match.tensors[argument] = tensor
    return True


def _isolated(graph: WorkingGraph, pattern: Pattern, match: Match, near: list[str]) -> bool:
    for name, call in pattern.calls.items():
        node = match.nodes[name]
        for key, wanted in call.attributes:
            given = node.attributes.get(key)
            if isinstance(wanted, str):
                if given != wanted:
                    near.append(f"{key} of {node.name} is {given} where {wanted} is needed")
                    return False
            elif not isinstance(given, int | float) or not isclose(given, wanted, rel_tol=RELATIVE_TOLERANCE):
                near.append(f"{key} of {node.name} is {given} where {wanted:g} is needed")
                return False
    for name, op_type in pattern.unlike:
        producer = graph.producers.get(match.tensors[name])
        if producer is not None and producer.op_type == op_type:
            near.append(f"{match.tensors[name]} comes from a {op_type}, which the runtime takes for one of the pattern")
            return False
    for name, count in pattern.uses.items():
        tensor = match.tensors[name]
        if len(graph.uses.get(tensor, ())) != count:
            near.append(f"the inner value {tensor} is used elsewhere too")
            return False
        if tensor in graph.outputs:
            near.append(f"the inner value {tensor} is an output of the graph")
            return False
    return True


def rewrite(graph: WorkingGraph, pattern: Pattern, match: Match, becomes: Call) -> Node:
    """Put what the rule names in the place of the matched ops."""
    root = match.nodes[pattern.root]
    attributes: dict[str, AttributeValue] = {
        key: match.numbers.get(value, 1.0) if isinstance(value, str) and value.startswith("$") else value
        for key, value in becomes.attributes
    }
    inputs = [match.tensors[str(argument)] for argument in becomes.arguments]
    new = Node(becomes.op_type, becomes.domain, root.name, inputs, list(root.outputs), attributes, ())
    return graph.replace([match.nodes[name] for name in pattern.calls], new)


def apply_patterns(graph: WorkingGraph, rules: RuleBook, names: Sequence[str]) -> None:
    """Apply pattern rules in turn, each to the whole graph; rules that do not hold are passed over."""
    for name in names:
        rule = rules.rule(name)
        if not rule.holds:
            continue
        becomes = parse_call(rule.becomes)
        dtypes = rule.parameters.get("dtypes", ())
        for text in spellings(rule.pattern):
            pattern = parse_pattern(text)
            if not all(map(graph.by_type.get, pattern.op_types)):
                continue
            for match in matches(graph, pattern, graph.of_type(pattern.calls[pattern.root].op_type), name):
                root = match.nodes[pattern.root]
                dtype = graph.tensors[root.outputs[0]].dtype
                if isinstance(dtypes, tuple) and dtypes and dtype not in dtypes:
                    graph.remark(root.ops, name, False, f"the runtime does not do it for {dtype}")
                    continue
                if rule.parameters.get("graph_output") is False and root.outputs[0] in graph.outputs:
                    graph.remark(root.ops, name, False, "the result is an output of the graph")
                    continue
                new = rewrite(graph, pattern, match, becomes)
                graph.remark(new.ops, name, True, f"becomes {new.op_type}")


@lru_cache(maxsize=256)
def spellings(text: str) -> tuple[str, ...]:
    """The alternatives of a rule's pattern, which lines that say ``or`` separate."""
    return tuple(part for part in re.split(r"(?m)^\s*or\s*$", text) if part.strip())
