"""The rule book as a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.errors import ArtefactError
from latpred.kernels.fusion import SCHEMA, Rule, RuleBook, default_rules

names = st.from_regex(r"[a-z]+(-[a-z]+)*", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40)
parameters = st.dictionaries(
    names, st.booleans() | st.integers(-9, 9) | texts | st.lists(st.integers(0, 9)).map(tuple), max_size=3
)
rules = st.builds(
    Rule,
    name=names,
    about=texts,
    holds=st.booleans(),
    observed=texts,
    pattern=texts,
    becomes=texts,
    parameters=parameters,
)
HEAD = f'schema = {SCHEMA}\nruntime = "onnxruntime"\nversion = "1.31"\nprovider = "CPUExecutionProvider"\n'


@given(st.lists(rules, max_size=4))
def test_a_book_reads_back_what_it_wrote(found):
    book = RuleBook("onnxruntime", "1.31", {rule.name: rule for rule in found}, notes="from a test")
    again = RuleBook.loads(book.dumps())
    assert (again.rules, again.runtime, again.version, again.notes) == (book.rules, "onnxruntime", "1.31", book.notes)


def test_patterns_stand_in_the_file_line_by_line(tmp_path):
    default_rules().dump(tmp_path / "rules.toml")
    lines = (tmp_path / "rules.toml").read_text(encoding="utf-8").splitlines()
    assert "[rules.gelu]" in lines
    assert "e = Erf(d)" in lines


def test_an_unknown_rule_names_the_command_that_helps():
    with pytest.raises(ArtefactError, match=r"needs a rule 'gelu' and has none; write it anew with `latpred probe`"):
        RuleBook("onnxruntime", "1.2", {}).holds("gelu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("= broken", "is needed, and this is none"),
        ("schema = 99", f"schema {SCHEMA} is needed, found 99"),
        (f"schema = {SCHEMA}", "the field 'rules' is missing"),
        (f"{HEAD}[rules.x]\nfoo = 1", "not as the schema wants"),
    ],
    ids=["no TOML", "other schema", "no rules", "unknown field"],
)
def test_refuses_another_file(tmp_path, text, message):
    path = tmp_path / "rules.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtefactError, match=message) as caught:
        RuleBook.load(path)
    assert str(path) in str(caught.value)
