"""Fusion rules as data: what one version of a runtime was seen to do with small graphs.

A book is a TOML file that a person can read and mend: one table a rule, with what was observed. The book that
ships with the package (`default_rules`) says what ONNX Runtime's CPU provider does; `latpred probe` writes one
for the runtime that is installed.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from latpred.errors import ArtefactError

__all__ = ["SCHEMA", "Parameter", "Rule", "RuleBook", "default_rules"]

# 1: first format.
SCHEMA = 1

Parameter = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and what was seen of it."""

    name: str
    about: str = ""  # what the rule is, in one sentence
    holds: bool = True  # False: the probe saw the runtime leave the ops alone
    observed: str = ""  # what the probe saw, for a person
    pattern: str = ""  # ops that are matched, for rules that are plain patterns
    becomes: str = ""  # what replaces them
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RuleBook:
    """All rules of a runtime, by name.

    Examples
    --------
    >>> book = RuleBook("onnxruntime", "1.31", {"gelu": Rule("gelu", holds=False)})
    >>> book.holds("gelu")
    False
    >>> RuleBook.loads(book.dumps()).rules == book.rules
    True
    """

    runtime: str
    version: str
    rules: Mapping[str, Rule]
    provider: str = "CPUExecutionProvider"
    notes: str = ""

    def rule(self, name: str) -> Rule:
        """The rule of that name.

        Raises
        ------
        ArtefactError
            Where the book does not have it: it was written by another version of latpred.
        """
        try:
            return self.rules[name]
        except KeyError:
            raise ArtefactError(
                f"the rule book of {self.runtime} {self.version} needs a rule '{name}' and has none; "
                "write it anew with `latpred probe`"
            ) from None

    def holds(self, name: str) -> bool:
        """Whether the runtime was seen to apply the rule."""
        return self.rule(name).holds

    def parameters(self, name: str) -> Mapping[str, Parameter]:
        """What the rule depends on, such as a block size in elements."""
        return self.rule(name).parameters

    def revised(self, rules: Mapping[str, Rule]) -> RuleBook:
        """The same book with some rules replaced or added."""
        return replace(self, rules={**self.rules, **rules})

    def dumps(self) -> str:
        """The book as TOML text."""
        import tomli_w

        tables: dict[str, dict[str, Any]] = {}
        for name, rule in self.rules.items():
            table: dict[str, Any] = {"holds": rule.holds}
            table |= {key: text for key in ("about", "observed", "pattern", "becomes") if (text := getattr(rule, key))}
            if rule.parameters:
                table["parameters"] = {
                    key: list(value) if isinstance(value, tuple) else value for key, value in rule.parameters.items()
                }
            tables[name] = table
        head = {"schema": SCHEMA, "runtime": self.runtime, "version": self.version, "provider": self.provider}
        if self.notes:
            head["notes"] = self.notes
        return tomli_w.dumps({**head, "rules": tables}, multiline_strings=True)

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write the book to a file."""
        Path(path).write_text(self.dumps(), encoding="utf-8")

    @classmethod
    def loads(cls, text: str, source: str = "rule book") -> RuleBook:
        """A book from TOML text.

        Raises
        ------
        ArtefactError
            Where the text is no TOML, has another schema, or a field is missing or unknown.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ArtefactError(f"{source}: a TOML rule book is needed, and this is none: {error}") from error
        if data.get("schema") != SCHEMA:
            raise ArtefactError(
                f"{source}: rule book schema {SCHEMA} is needed, found {data.get('schema')!r}; "
                "write it anew with `latpred probe`"
            )
        try:
            rules = {name: _rule(name, table) for name, table in data["rules"].items()}
            return cls(data["runtime"], data["version"], rules, data["provider"], data.get("notes", ""))
        except KeyError as error:
            raise ArtefactError(f"{source}: the field {error} is missing from the rule book") from error
        except (TypeError, AttributeError) as error:
            raise ArtefactError(f"{source}: a rule is not as the schema wants it: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RuleBook:
        """A book from a file; raises as `loads` does."""
        return cls.loads(Path(path).read_text(encoding="utf-8"), source=os.fspath(path))


def _rule(name: str, table: Mapping[str, Any]) -> Rule:
    fields = dict(table)
    parameters = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.pop("parameters", {}).items()
    }
    return Rule(name=name, parameters=parameters, **fields)


@cache
def default_rules() -> RuleBook:
    """The book that ships with the package: ONNX Runtime's CPU provider with AVX-512."""
    text = resources.files("latpred.kernels").joinpath("rules/onnxruntime-cpu.toml").read_text(encoding="utf-8")
    return RuleBook.loads(text, source="onnxruntime-cpu.toml")
