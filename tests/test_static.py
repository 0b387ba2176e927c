"""Lint and types, by the tools themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


COMMANDS = [("ruff", "check", "--quiet", "latpred", "tests", "benchmarks"), ("mypy", "--no-error-summary")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_clean(command: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
