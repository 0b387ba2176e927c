"""Imports go one way: a module uses only what stands in its own row or in rows above; read off the source by ast."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import latpred

PACKAGE = Path(latpred.__file__).parent

# Row by row: what a module may import stands in an earlier row, or in its own. The longest prefix decides.
ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "device", "tensors"),
    ("reading", "graph", "fingerprint"),
    ("kernels",),
    ("packing", "store", "metrics", "home", "forest", "analytical", "calibration", "law"),
    ("collect", "regressor"),
    ("bundle", "prediction", "estimators", "predictor", "fit"),
    ("surgery", "chained"),
    ("decide",),
    ("hooks",),
    ("cutting", "pipeline", "comparison", "validation"),
    ("report",),
    ("arguments", "cli", "__main__"),
)
SEPARATE = ("collect", "regressor")  # one row, but neither may import the other
DOORS = {("predictor", "decide.plan")}  # `Predictor.plan`: where users look for it; imported when it is called
LAZY_ROOT = "__init__"  # imports nothing when it is imported

# What `latpred predict` imports before it has read a model: none of these at the top of a module.
HEAVY = {"PIL", "pandas", "lightgbm", "sklearn", "scipy", "onnxruntime", "rich", "joblib", "psutil", "platformdirs"}
PREDICT_PATH = ("predictor", "cli")


def modules() -> dict[str, ast.Module]:
    """Dotted name below the package -> syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def row_of(name: str) -> int:
    rows = [
        (len(entry), index)
        for index, row in enumerate(ROWS)
        for entry in row
        if name == entry or name.startswith(f"{entry}.")
    ]
    assert rows, f"latpred.{name} stands in no row: add it to ROWS"
    return max(rows)[1]


def inner_imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a module imports, at any depth, ``TYPE_CHECKING`` blocks aside."""
    names: set[str] = set()
    for node in _walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            root, _, rest = node.module.partition(".")
            if root != "latpred":
                continue
            submodules = {f"{rest}.{alias.name}".lstrip(".") for alias in node.names}
            modules = submodules & set(MODULES)
            names |= modules
            if rest and (not modules or submodules - modules):
                names.add(rest)
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("latpred.") for alias in node.names if alias.name.startswith("latpred.")}
    return names


def _walk(tree: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        nodes.append(node)
        waiting += list(ast.iter_child_nodes(node))
    return nodes


def top_imports(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run when the module is imported."""
    found = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        waiting += list(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("name", sorted(set(MODULES) - {LAZY_ROOT}))
def test_imports_go_one_way(name: str) -> None:
    for other in sorted(inner_imports(MODULES[name])):
        if (name, other) in DOORS:
            continue
        assert row_of(other) <= row_of(name), f"latpred.{name} imports latpred.{other}, which stands below it"
        mine, its = name.split(".")[0], other.split(".")[0]
        assert mine == its or {mine, its} != set(SEPARATE), f"{mine} and {its} must not know each other"


def test_the_import_reader_sees_what_it_should() -> None:
    tree = ast.parse(
        "from latpred import home\nfrom latpred.kernels import detect\nfrom latpred.errors import InputError\n"
        "import latpred.store\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from latpred import cli\n"
        "def f():\n    from latpred.fit import fit\n    import pandas\n"
    )
    assert inner_imports(tree) == {"home", "kernels.detect", "errors", "store", "fit"}
    assert len(top_imports(tree)) == 5


def reachable_at_import(start: str) -> set[str]:
    """Modules that are imported when `start` is."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        top = ast.Module(list(top_imports(MODULES[name])), [])
        waiting += inner_imports(top)
    return seen


@pytest.mark.parametrize("start", PREDICT_PATH)
def test_predicting_imports_nothing_heavy(start: str) -> None:
    for name in reachable_at_import(start):
        for node in top_imports(MODULES[name]):
            roots = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            heavy = {root.split(".")[0] for root in roots} & HEAVY
            assert not heavy, f"latpred.{name} imports {heavy} at its top, and `latpred predict` pays for it"


def test_the_predict_path_is_followed() -> None:
    assert {"predictor", "bundle", "forest", "graph", "kernels.detect", "kernels.features"} <= reachable_at_import(
        "predictor"
    )


def test_kernels_never_know_how_anything_was_measured() -> None:
    for name, tree in MODULES.items():
        if name.startswith("kernels."):
            assert not {other for other in inner_imports(tree) if other.split(".")[0] in ("collect", "store")}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_command_line_prints_and_exits(name: str) -> None:
    if name in ("cli", "__main__"):
        return
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "quit"), f"latpred.{name} calls {called}"
            assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "joblib.dump")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_bare_except(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"latpred.{name}: bare except"
            swallowed = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not (swallowed and ast.unparse(node.type) in ("Exception", "BaseException"))


def test_public_names_are_these() -> None:
    assert latpred.__all__ == [
        "ArtefactError", "Declared", "Device", "DeviceError", "DimensionError", "Gate", "Grid", "InputError",
        "KernelPrediction", "LatpredError", "MeasurementError", "ModelError", "Observation", "Plan", "Prediction",
        "Predictor", "ShapeError", "SurgeryError", "Table", "UnsupportedError", "identity_of", "load", "predict",
    ]  # fmt: skip
    for name in latpred.__all__:
        assert getattr(latpred, name).__name__ == name
    assert set(latpred.__all__) <= set(dir(latpred))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = latpred.no_such_name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_a_module_offers_exists(name: str) -> None:
    offered = [
        ast.literal_eval(node.value)
        for node in MODULES[name].body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    ]
    if name == LAZY_ROOT or not offered:
        return
    defined = {
        target.id
        for node in ast.walk(MODULES[name])
        for target in ast.walk(node)
        if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
    }
    defined |= {n.name for n in MODULES[name].body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    for node in MODULES[name].body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            defined |= {alias.asname or alias.name for alias in node.names}
    assert set(offered[0]) <= defined
    assert len(offered[0]) == len(set(offered[0]))
