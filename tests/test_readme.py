"""What README.md says to type and to paste works as it stands there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

import latpred
from latpred.arguments import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
POLICY_LINES = 15


def commands() -> list[str]:
    """Every `latpred` command of a block, without its prompt."""
    lines = [line.removeprefix("$ ") for _, text in BLOCKS for line in text.splitlines()]
    figure = r"latpred \w+ {2,}"  # the pipeline is drawn in the same words
    return [line for line in lines if line.startswith("latpred ") and not re.match(figure, line)]


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line: str) -> None:
    build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_commands_are_found() -> None:
    assert {line.split()[1] for line in commands()} >= {"predict", "collect", "gates", "decide", "validate", "device"}


def test_the_policy_runs_as_it_is_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (text,) = [text for language, text in BLOCKS if language == "python" and "def policy(" in text]
    assert len(text.splitlines()) <= POLICY_LINES
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path))
    exec(compile(text, "README.md", "exec"), names := {"__name__": "readme"})
    plan: latpred.Plan = names["plan"]
    assert plan.costs is not None
    printed = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line[-1].strip() for line in printed] == list(plan.mounted)
    options = {point.name: {option.name for option in point.options} for point in plan.costs.points}
    taken = {point: next(part.strip() for part in parts if part.strip() in options[point]) for *parts, point in printed}
    assert len(set(taken.values())) > 1  # it decides


def test_the_engine_s_block_uses_what_there_is() -> None:
    """Attributes that the longer block names; its model is the reader's own."""
    (text,) = [text for language, text in BLOCKS if language == "python" and "gate.observe(" in text]
    assert set(re.findall(r"latpred\.(\w+)", text)) <= set(latpred.__all__)
    assert set(re.findall(r"gate\.(\w+)\(", text)) <= set(dir(latpred.Gate)) | {"gate"}
    assert set(re.findall(r"table\.(\w+)\(", text)) <= set(dir(latpred.Table))
    compile(text, "README.md", "exec")


def test_hooks_are_attached_as_it_is_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (text,) = [text for language, text in BLOCKS if language == "python" and "hooks.attach(" in text]
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path / "home"))
    exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out.splitlines()
    assert sum("replaced" in line for line in printed) > 0
    answers = [line for line in printed if " promised: " in line]
    assert len(answers) == 3
    assert {"digits.hooks", "digits.gated.onnx"} <= {path.name for path in tmp_path.iterdir()}
