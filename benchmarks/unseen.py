"""Networks of families that latpred was not developed on, as weightless ONNX files for `benchmarks/accuracy.py`.

    python benchmarks/unseen.py OUT [--half A|B] [--only SUBSTRING ...]

Builds 186 networks of timm, transformers and plain PyTorch with random weights (nothing is downloaded), exports each
with one of PyTorch's two exporters and writes OUT/A/NAME.onnx or OUT/B/NAME.onnx; the halves share no family. Weights
of more than 256 elements are left out of the files: their dims and types stay. OUT/families.json says which networks
are of one family, for ``--families``. Each network is built by a process of its own; those that fail are named at the
end. What there is to export is listed in `unseen_models.py`.

Other versions write other graphs, so install these, apart from latpred, which is not needed:

    pip install torch==2.13.0 timm==1.0.31 transformers==5.23.0 torchvision onnx onnxscript

Without torchvision a stand-in is enough: timm imports it, but none of these networks runs anything of it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import onnx
from unseen_models import NETWORKS, Input, Network, SubConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

NEEDED = ("torch", "timm", "transformers", "onnxscript")
INSTALL = "pip install torch==2.13.0 timm==1.0.31 transformers==5.23.0 torchvision onnx onnxscript"
TIMEOUT_S = 600.0
KEPT_ELEMENTS = 256  # larger weights are left out
TABLE_BYTES = 2048  # larger tables are written once
WRITES_TABLES_ONCE = {"beit", "data2vec-vision", "gpt_neo"}  # tens of MB otherwise, the same in every layer
DROPPABLE = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
TORCHVISION = ("", ".datasets", ".ops", ".ops.misc", ".models", ".models.feature_extraction", ".transforms",
               ".transforms.functional")  # fmt: skip


def halves() -> dict[str, str]:
    """The half, ``A`` or ``B``, of each family: drawn once, whatever is exported."""
    families = sorted({network.family for network in NETWORKS})
    random.Random(7).shuffle(families)
    middle = (len(families) + 1) // 2
    return {family: "A" if index < middle else "B" for index, family in enumerate(families)}


def path_of(network: Network, out: Path) -> Path:
    return out / halves()[network.family] / f"{network.name}.onnx"


# -- building --------------------------------------------------------------------------------------------------------


def tensor(of: Input) -> Tensor:
    """A tensor with random values, from PyTorch's own generator."""
    import torch

    make: dict[str, Callable[[], Tensor]] = {
        "tokens": lambda: torch.randint(5, 100, of.shape),
        "normal": lambda: torch.randn(of.shape),
        "uniform": lambda: torch.rand(of.shape),
        "ones": lambda: torch.ones(of.shape),
    }
    return make[of.of]()


def stand_in_for_torchvision() -> None:
    """Modules that have every name and do nothing, in this process."""
    for name in TORCHVISION:
        spec = ModuleSpec(f"torchvision{name}", None)
        sys.modules[spec.name] = MagicMock(name=spec.name, __spec__=spec, __path__=[], __version__="0")
    # Norms are compared with this class.
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})  # type: ignore[attr-defined]


def build_timm(network: Network) -> nn.Module:
    if importlib.util.find_spec("torchvision") is None:
        stand_in_for_torchvision()
    import timm

    try:
        return timm.create_model(network.model, pretrained=False, img_size=network.input.shape[-1])
    except TypeError:  # networks without a fixed grid take images of any size, and no such argument
        return timm.create_model(network.model, pretrained=False)


def patch_fnet() -> None:
    """Transforms by FFT with and without SciPy; without it, transformers 5.23 fails at its own warning."""
    modeling = importlib.import_module("transformers.models.fnet.modeling_fnet")
    modeling.FNetBasicFourierTransform._init_fourier_transform = lambda self, _: setattr(
        self, "fourier_transform", modeling.fftn
    )


def patch_nystromformer() -> None:
    """No mask: that of transformers 5.23 is as wide as the sequence, the scores as the landmarks."""
    modeling = importlib.import_module("transformers.models.nystromformer.modeling_nystromformer")
    modeling.create_bidirectional_mask = lambda **_: None


PATCHES = {"fnet": patch_fnet, "nystromformer": patch_nystromformer}


def configured(network: Network) -> nn.Module:
    """The whole network of transformers; each exporter does best with another way to write attention."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    recipe = network.recipe
    assert recipe is not None
    values = {
        key: getattr(transformers, value.cls)(**value.values) if isinstance(value, SubConfig) else value
        for key, value in recipe.config.items()
    }
    config = CONFIG_MAPPING[network.library_family](**values)
    cls = getattr(transformers, recipe.cls)
    make = cls.from_config if recipe.cls == "AutoModel" else cls._from_config
    best, other = ("sdpa", "eager") if network.dynamo else ("eager", "sdpa")
    try:
        return make(config, attn_implementation=best)
    except (ValueError, KeyError):
        return make(config, attn_implementation=other)


def build_transformer(network: Network) -> nn.Module:
    """A network of transformers as a module from one tensor to its main results."""
    import torch

    PATCHES.get(network.library_family, lambda: None)()
    recipe = network.recipe
    assert recipe is not None
    model = configured(network)
    if recipe.part:
        model = model.get_submodule(recipe.part)
    keywords = {key: tensor(value) if isinstance(value, Input) else value for key, value in recipe.keywords.items()}

    class OneInput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
            return main_results(self.model(x, **keywords))

    return OneInput()


def main_results(output: Any) -> Tensor | tuple[Tensor, ...]:
    """What a network is there for, without its hidden states and losses."""
    import torch

    if torch.is_tensor(output):
        return output
    logits, boxes = getattr(output, "logits", None), getattr(output, "pred_boxes", None)
    if isinstance(logits, tuple):
        return logits
    if torch.is_tensor(logits) and torch.is_tensor(boxes):
        return logits, boxes
    for name in ("logits", "last_hidden_state", "reconstruction", "predicted_depth"):
        if torch.is_tensor(found := getattr(output, name, None)):
            return found
    if hasattr(output, "feature_maps"):
        return tuple(output.feature_maps)
    parts = output if isinstance(output, tuple | list) else output.values()
    return next(part for part in parts if torch.is_tensor(part))


def build_plain(network: Network) -> nn.Module:
    from unseen_plain import BUILD

    return BUILD[network.library_family, network.model]()


BUILDERS = {"timm": build_timm, "hf": build_transformer, "plain": build_plain}


# -- exporting -------------------------------------------------------------------------------------------------------


def exported(network: Network) -> onnx.ModelProto:
    """The network as its exporter writes it, weights and all."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        model = BUILDERS[network.source](network).eval()
        example = (tensor(network.input),)
        model(*example)
        if network.dynamo:
            return torch.onnx.export(model, example, dynamo=True, input_names=["x"], verbose=False).model_proto
        written = io.BytesIO()
        torch.onnx.export(model, example, written, dynamo=False, opset_version=17, input_names=["input"])
        return onnx.load_model_from_string(written.getvalue())


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def strip(model: onnx.ModelProto) -> None:
    """Leave out large weights, and what exporters note about the code and the machine."""
    del model.graph.value_info[:]
    described: list[Any] = [model, *model.graph.input, *model.graph.output, *model.graph.initializer]
    for graph in graphs(model.graph):
        described += [graph, *graph.node]
    for one in described:
        one.doc_string = ""
        del one.metadata_props[:]
    for weight in model.graph.initializer:
        if weight.data_type in DROPPABLE and math.prod(weight.dims) > KEPT_ELEMENTS:
            left = onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
            left.data_location = onnx.TensorProto.EXTERNAL
            left.external_data.add(key="location", value="missing.bin")
            weight.CopyFrom(left)


def write_tables_once(model: onnx.ModelProto) -> None:
    """Let nodes share equal tables (masks, indices), which an exporter wrote for each of them."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    for stored in list(model.graph.initializer):
        if len(stored.raw_data) > TABLE_BYTES:
            name = first.setdefault((stored.data_type, tuple(stored.dims), stored.raw_data), stored.name)
            if name != stored.name:
                renamed[stored.name] = name
                model.graph.initializer.remove(stored)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def export(network: Network, out: Path) -> None:
    model = exported(network)
    if model.functions:
        raise ValueError(f"{network.name}: its graph must be of ONNX's own ops, got functions")
    strip(model)
    if network.library_family in WRITES_TABLES_ONCE and network.source == "hf":
        write_tables_once(model)
    path = path_of(network, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def export_apart(network: Network, out: Path) -> str:
    """Export in a process of its own; why it failed, or nothing."""
    command = [sys.executable, __file__, str(out), "--in-process", "--only", network.name]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=offline, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return ""
    return next(reversed(done.stderr.strip().splitlines()), f"ended with {done.returncode}")


def write_families(out: Path) -> None:
    """The families of all networks that lie in the folder, of this run or an earlier one."""
    families = {network.name: network.family for network in NETWORKS if path_of(network, out).exists()}
    (out / "families.json").write_text(json.dumps(families, indent=1, sort_keys=True) + "\n")


def chosen(half: str | None, only: Iterable[str]) -> list[Network]:
    of, parts = halves(), list(only)
    return [
        network
        for network in NETWORKS
        if half in (None, of[network.family]) and (not parts or any(part in network.name for part in parts))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--half", choices=["A", "B"], help="one half only")
    parser.add_argument("--only", nargs="+", default=[], metavar="SUBSTRING", help="networks with such a name")
    parser.add_argument("--in-process", action="store_true", help="in this process, up to the first failure")
    options = parser.parse_args(arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    networks = chosen(options.half, options.only)
    if missing or not networks:
        reason = f"{', '.join(missing)} must be installed: {INSTALL}" if missing else "no network has such a name"
        print(f"error: {reason}", file=sys.stderr)
        return 1
    if options.in_process:
        for network in networks:
            export(network, options.out)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for count, network in enumerate(networks, start=1):
        reason = export_apart(network, options.out)
        print(f"{count}/{len(networks)} {network.name}{': FAILED' if reason else ''}", flush=True)
        if reason:
            failed[network.name] = reason
    write_families(options.out)
    print(f"{len(networks) - len(failed)} of {len(networks)} networks lie in {options.out}")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
