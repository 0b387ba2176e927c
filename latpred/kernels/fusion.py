"""Fusion rules as data: what one version of a runtime was seen to do with small graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Rule", "RuleBook"]

Parameter = int | float | str | tuple[int, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and what the probe saw of it."""

    name: str
    holds: bool = True  # False: the probe saw the runtime leave the ops alone
    observed: str = ""  # what the probe saw, for a person
    pattern: str = ""  # ops that are matched, for rules that are plain patterns
    becomes: str = ""  # what replaces them
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All rules of a runtime, by name."""

    runtime: str
    version: str
    rules: Mapping[str, Rule]
