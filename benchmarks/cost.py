"""What a prediction itself costs: cold start, warm, repeated, large graphs, memory.

    python benchmarks/cost.py MODEL.onnx [LARGE.onnx] [--repeat 7]

Cold starts are whole processes, interleaved with ``python -c "import onnx, onnxruntime, pandas"``; what is compared is
the ratio within a pair. The noise floor is the same baseline against itself.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tabulate import tabulate

BASELINE = "import onnx, onnxruntime, pandas"
# Not ru_maxrss: that one is inherited from the process which starts this one.
PEAK = "\nprint(next(1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def peak_bytes(code: str) -> int:
    run = subprocess.run([sys.executable, "-c", code + PEAK], check=True, capture_output=True, text=True)
    return int(run.stdout.splitlines()[-1])


def heavy_model(folder: Path, megabytes: int = 100) -> Path:
    """A model of square fully connected layers with `megabytes` of weights inside the file."""
    width, layers = 1024, megabytes // 4
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((width, width), dtype=np.float32), f"w{i}") for i in range(layers)
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"layer{i}") for i in range(layers)]
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, (1, width))],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, (1, width))],
        weights,
    )
    path = folder / "heavy.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def cold_start(model: str, repeat: int) -> list[list[object]]:
    baseline = [sys.executable, "-c", BASELINE]
    predict = [sys.executable, "-m", "latpred", "predict", model]
    seconds(baseline), seconds(predict)
    base, cold, again = [], [], []
    for _ in range(repeat):
        base.append(seconds(baseline))
        cold.append(seconds(predict))
        again.append(seconds(baseline))
    ratio = statistics.median(c / b for c, b in zip(cold, base, strict=True))
    floor = statistics.median(max(a / b, b / a) for a, b in zip(again, base, strict=True))
    return [
        [f"python -c '{BASELINE}'", f"{statistics.median(base):.3f} s", "1.00"],
        ["latpred predict, whole process", f"{statistics.median(cold):.3f} s", f"{ratio:.2f} (at most 1.5)"],
        ["noise floor of the ratio", "", f"{floor:.2f}"],
    ]


def warm(model: str, repeat: int) -> list[list[object]]:
    import latpred

    loaded = onnx.load(model, load_external_data=False)
    latpred.load("local").predict(loaded)
    fresh, seen = [], []
    for _ in range(repeat * 5):
        predictor = latpred.load("local")  # a new one has seen no kernel yet
        start = time.perf_counter()
        predictor.predict(loaded)
        middle = time.perf_counter()
        predictor.predict(loaded)
        fresh.append(middle - start)
        seen.append(time.perf_counter() - middle)
    return [
        ["warm, nothing seen before", f"{statistics.median(fresh) * 1e3:.2f} ms", "at most 15 ms for MobileNetV2"],
        ["warm, seen before", f"{statistics.median(seen) * 1e3:.3f} ms", "at most 1 ms"],
    ]


def large(model: str) -> list[list[object]]:
    import latpred

    predictor = latpred.load("local")
    loaded = onnx.load(model, load_external_data=False)
    start = time.perf_counter()
    predictor.predict(loaded)
    elapsed = time.perf_counter() - start
    nodes = len(loaded.graph.node)
    return [[f"{Path(model).name}: {nodes} nodes", f"{elapsed:.2f} s", f"{elapsed / nodes * 1e6:.0f} us a node"]]


def memory() -> list[list[object]]:
    with tempfile.TemporaryDirectory() as folder:
        path = heavy_model(Path(folder))
        size = path.stat().st_size
        imports = peak_bytes("import onnx, onnxruntime, pandas")
        bare = peak_bytes("import latpred.predictor, latpred.forest, onnx")
        used = peak_bytes(f"import latpred; latpred.load('local').predict({str(path)!r})")
    return [
        [
            f"peak memory on a file of {size / 1e6:.0f} MB",
            f"{used / 1e6:.0f} MB",
            f"{(used - bare) / size:.2f} x the file beyond latpred's imports, "
            f"{(used - imports) / size:.2f} x beyond the baseline's (at most 2.5)",
        ]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("large", nargs="?")
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    rows = cold_start(args.model, args.repeat) + warm(args.model, args.repeat)
    if args.large:
        rows += large(args.large)
    rows += memory()
    print(tabulate(rows, headers=("what", "cost", "beside"), tablefmt="plain", disable_numparse=True))


if __name__ == "__main__":
    main()
