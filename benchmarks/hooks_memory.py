"""Resident memory of hooked networks beside the plain session, each in a process of its own.

    python benchmarks/hooks_memory.py FOLDER_OR_MODEL... [--device local] [--home DIR]

The plain session is ONNX Runtime's own defaults on one thread. Hooks are attached with layer-wise points only (exits
and skips: wanted at most 1.3 times the plain session's), then with all that the plan mounts. What is counted is the
growth of resident memory from before the session or the hooks are made to after ten runs, freed memory handed back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import psutil
from coverage import models
from hooks_timing import plain_session
from tabulate import tabulate

import latpred
from latpred.chained import Buffers, opened
from latpred.collect.weights import fill_weights
from latpred.decide.points import Grid
from latpred.hooks import attach
from latpred.hooks.memory import give_back
from latpred.tensors import Array

PLAIN, LAYERS, ALL = "plain", "layer-wise", "all levels"
GRIDS = {LAYERS: Grid(levels=("exit", "skip")), ALL: Grid()}
RUNS, CALIBRATED = 10, 4


def inputs_of(path: Path, count: int) -> list[dict[str, Array]]:
    """Random ones."""
    declared = opened(onnx.load(path)).get_inputs()
    return [{value.name: Buffers(seed).of(value) for value in declared} for seed in range(count)]


def grown(kind: str, path: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Bytes that one kind takes in this process, and its number of points."""
    predictor = latpred.load(options.device, home=options.home)
    predictor.plan(path)
    inputs = inputs_of(path, CALIBRATED)
    give_back()
    before = psutil.Process().memory_info().rss
    if kind == PLAIN:
        session = plain_session(path, 1)
        for _ in range(RUNS):
            session.run(None, inputs[0])
        give_back()
        return psutil.Process().memory_info().rss - before, 0
    with attach(path, predictor, grid=GRIDS[kind], samples=inputs if kind == ALL else ()) as hooked:
        for _ in range(RUNS):
            hooked.run(inputs[0], keep=True)
        give_back()
        return psutil.Process().memory_info().rss - before, len(hooked.points)


def in_a_process(kind: str, path: Path, arguments: Sequence[str]) -> tuple[int, int]:
    """The same in a fresh one."""
    command = [sys.executable, __file__, str(path), *arguments, "--child", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{path.stem}, {kind}: {done.stderr.strip().splitlines()[-1]}")
    size_bytes, points = json.loads(done.stdout)
    return size_bytes, points


def row(name: str, found: Mapping[str, tuple[int, int]]) -> list[str]:
    """MiB, and ratios to the plain session."""
    plain_bytes = found[PLAIN][0]
    cells = [name, f"{plain_bytes / 2**20:.1f}"]
    for kind in (LAYERS, ALL):
        size_bytes, points = found[kind]
        cells += [str(points), f"{size_bytes / plain_bytes:.2f}"]
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--device", default="local")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--child", choices=(PLAIN, LAYERS, ALL), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(grown(options.child, options.paths[0], options)))
        return 0
    passed = ["--device", options.device, *(["--home", str(options.home)] if options.home else [])]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in models(options.paths):
            whole = Path(folder) / path.name
            onnx.save(fill_weights(onnx.load(path, load_external_data=False), path.parent), whole)
            rows.append(row(path.stem, {kind: in_a_process(kind, whole, passed) for kind in (PLAIN, LAYERS, ALL)}))
            whole.unlink()
    headers = ["", "plain MiB", "points", f"{LAYERS} over plain", "points", f"{ALL} over plain"]
    print(tabulate(rows, headers, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
