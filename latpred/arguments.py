"""What commands take: texts that become values, and options that several commands share."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

__all__ = [
    "add_model_options",
    "add_place_options",
    "add_point_options",
    "parse_budget",
    "parse_deadline",
    "parse_dim",
    "parse_interval",
    "parse_positive",
    "parse_shape",
]

DEADLINE_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
BUDGET_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_dim(text: str) -> tuple[str, int]:
    """``batch=4`` -> ``("batch", 4)``."""
    name, separator, value = text.rpartition("=")
    if not separator or not name or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"expected NAME=POSITIVE_INTEGER, got {text!r}")
    return name, int(value)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``input=1,3,224,224`` -> ``("input", (1, 3, 224, 224))``."""
    name, separator, value = text.rpartition("=")
    parts = value.split(",") if value else []
    if not separator or not name or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected INPUT=1,3,224,224 with positive integers, got {text!r}")
    return name, tuple(int(part) for part in parts)


def parse_budget(text: str) -> float:
    """``15m`` -> 900.0 seconds; units s, m, h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a duration such as 90s, 15m or 1h, got {text!r}")
    return float(match[1]) * BUDGET_UNITS_S[match[2]]


def parse_deadline(text: str) -> float:
    """``8ms`` -> 0.008 seconds; units us, ms, s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a time above 0 such as 500us, 8ms or 1.5s, got {text!r}")
    return float(match[1]) * DEADLINE_UNITS_S[match[2]]


def parse_positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def parse_interval(text: str) -> float:
    """A share between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1 such as 0.9, got {text!r}")
    return value


def add_model_options(parser: argparse.ArgumentParser, json_help: str) -> None:
    """Options of every command that reads models."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="an .onnx file, or a folder that holds some")
    parser.add_argument(
        "--dim", type=parse_dim, action="append", default=[], metavar="NAME=N", help="bind a symbolic dimension"
    )
    parser.add_argument(
        "--shape", type=parse_shape, action="append", default=[], metavar="INPUT=1,3,224,224", help="shape of an input"
    )
    parser.add_argument("--json", action="store_true", help=json_help)


def add_place_options(parser: argparse.ArgumentParser, device: str) -> None:
    """Options that say whose measurements, and where they lie."""
    parser.add_argument("--device", default="local", help=device)
    parser.add_argument("--threads", type=parse_positive, help="threads of the runtime")
    parser.add_argument("--home", type=Path, help="folder of your own datasets/ and models/ (or LATPRED_HOME)")


def add_point_options(parser: argparse.ArgumentParser) -> None:
    """Options of commands about decision points."""
    add_model_options(parser, "print an object")
    add_place_options(parser, "local (default), a preset of `latpred device`, or a .toml file")
    parser.add_argument(
        "--gate", choices=("pooled", "none"), default="pooled", help="network that scores a point's options"
    )
    parser.add_argument("--interval", type=parse_interval, default=0.9, metavar="SHARE", help="default 0.9")
