"""What commands take: texts that become values, options that several commands share, and the whole parser."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

__all__ = ["build_parser", "parse_budget"]

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


def parse_numbers(text: str) -> tuple[float, ...]:
    """``0.485,0.456,0.406`` -> a tuple."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None


def add_model_options(parser: argparse.ArgumentParser, json_help: str) -> None:
    """Options of every command that reads models."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="an .onnx file, or a folder that holds some")
    add_shape_options(parser)
    parser.add_argument("--json", action="store_true", help=json_help)


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """Options that bind open dims."""
    parser.add_argument(
        "--dim", type=parse_dim, action="append", default=[], metavar="NAME=N", help="bind a symbolic dimension"
    )
    parser.add_argument(
        "--shape", type=parse_shape, action="append", default=[], metavar="INPUT=1,3,224,224", help="shape of an input"
    )


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


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="latpred", description="How long a neural network takes on a device.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    predict = commands.add_parser("predict", help="predict the latency of ONNX models")
    add_model_options(predict, "print an array of objects, one a model")
    add_place_options(predict, "local (default), a preset of `latpred device`, or a .toml file")
    predict.add_argument("--top", type=int, default=15, metavar="N", help="slowest kernels to print (default 15)")
    predict.add_argument("--interval", type=parse_interval, default=0.9, metavar="SHARE", help="default 0.9")
    predict.add_argument("--strict", action="store_true", help="an error where a kernel has no regressor")
    predict.add_argument("--csv", action="store_true", help="print one row a kernel")

    validate = commands.add_parser("validate", help="measure models on this machine and compare with the prediction")
    add_model_options(validate, "print an object instead of tables")
    add_place_options(validate, "whose prediction to compare (default: local); measuring is always on this machine")
    validate.add_argument("--repeat", type=parse_positive, default=3, metavar="N", help="rounds (default 3)")
    validate.add_argument(
        "--run-budget", type=parse_budget, default=0.3, metavar="0.3s", help="runs of a network a round (default 0.3s)"
    )
    validate.add_argument("--families", type=Path, metavar="FILE", help="JSON object: network -> family")
    kept = validate.add_mutually_exclusive_group()  # together, a choice of the networks would replace all of them
    kept.add_argument("--save", type=Path, metavar="FILE", help="where to keep what was measured")
    kept.add_argument("--measured", type=Path, metavar="FILE", help="compare what --save kept; measure nothing")

    kernels = commands.add_parser("kernels", help="print the kernels that the runtime would execute")
    add_model_options(kernels, "print an array of objects, one a model")
    add_place_options(kernels, "whose fusion rules to apply (default: local)")
    kernels.add_argument("--explain", metavar="NODE", help="what became of one node, and what each rule said of it")

    gates = commands.add_parser("gates", help="list what can be decided inside a model, and what it saves")
    add_point_options(gates)

    decide = commands.add_parser("decide", help="what to do at each decision point so that a deadline holds")
    add_point_options(decide)
    decide.add_argument("--deadline", type=parse_deadline, required=True, metavar="8ms", help="of one inference")
    decide.add_argument("--confidence", type=parse_interval, default=0.99, metavar="SHARE", help="default 0.99")
    decide.add_argument("--utilities", type=Path, metavar="FILE", help="JSON: point -> option -> what it is worth")

    saliency = commands.add_parser("saliency", help="where in an image the evidence for a class lies (Grad-CAM)")
    saliency.add_argument("model", metavar="MODEL", help="an .onnx file with its weights")
    saliency.add_argument("image", metavar="IMAGE", help="an image file; it is resized to the input as a whole")
    saliency.add_argument("-o", "--out", required=True, metavar="FILE", help="where to write the image with its map")
    saliency.add_argument("--class", type=int, dest="class_index", metavar="K", help="default: of the largest score")
    saliency.add_argument("--layer", metavar="TENSOR", help="default: the last feature map with spatial resolution")
    saliency.add_argument("--score", metavar="TENSOR", help="class scores, where there are several outputs")
    for name in ("mean", "std"):
        saliency.add_argument(
            f"--{name}", type=parse_numbers, metavar="R,G,B", help="of pixels from 0 to 1 (default: ImageNet's)"
        )
    add_shape_options(saliency)
    saliency.add_argument("--json", action="store_true", help="print an object")

    device = commands.add_parser("device", help="print the roofline of a device, or the names of those known")
    device.add_argument("name", nargs="?", help="local, a preset, or a .toml file")
    device.add_argument("--threads", type=parse_positive, help="threads of the runtime")
    device.add_argument("--home", type=Path, help="folder of your own datasets/ and models/ (or LATPRED_HOME)")
    device.add_argument("--measure", action="store_true", help="measure again")
    device.add_argument("--json", action="store_true", help="print an object")

    probe = commands.add_parser("probe", help="find out what the installed runtime fuses")
    add_place_options(probe, "local")
    probe.add_argument("--provider", default="CPUExecutionProvider", help="execution provider of the runtime")
    probe.add_argument("--out", metavar="FILE", help="write the rules here")

    collect = commands.add_parser("collect", help="measure this machine, then fit a predictor of it")
    add_place_options(collect, "local")
    collect.add_argument("--budget", type=parse_budget, default=900.0, metavar="15m", help="default 15m")
    collect.add_argument("--kinds", nargs="+", metavar="KIND", help="only kernels of these kinds")
    collect.add_argument("--provider", default="CPUExecutionProvider", help="execution provider of the runtime")
    collect.add_argument("--dry-run", action="store_true", help="print what would be measured first; run nothing")
    collect.add_argument("--count", type=parse_positive, default=10, help="graphs that --dry-run prints (default 10)")
    collect.add_argument("--resume", action="store_true", help="go on with the dataset that is there (the default)")
    collect.add_argument("--fresh", action="store_true", help="start a new dataset (default: go on with the old one)")
    collect.add_argument("--seed", type=int, default=0, help="of the sampled configurations")

    fit = commands.add_parser("fit", help="fit the regressors again")
    add_place_options(fit, "local")
    fit.add_argument("--jobs", type=int, default=-1, help="processes (default: one a core)")
    return parser
