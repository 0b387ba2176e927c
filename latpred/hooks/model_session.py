"""A rewritten model that ONNX Runtime runs on tensors given by name."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped, unused-ignore]

from latpred.errors import ModelError
from latpred.surgery.weights import require_weights
from latpred.tensors import Array

__all__ = ["ModelSession"]


class ModelSession:
    """A session of ONNX Runtime's CPU provider.

    Parameters
    ----------
    model : ModelProto
    threads : int
        0 for as many as the runtime thinks best.

    Raises
    ------
    ModelError
        Where weights are missing, or the runtime cannot run the model.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import helper
    >>> x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in "xy")
    >>> graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    >>> ModelSession(model).run({"x": np.array([1, 2], np.float32), "unread": np.zeros(3)})
    {'y': array([-1., -2.], dtype=float32)}
    """

    def __init__(self, model: onnx.ModelProto, threads: int = 0) -> None:
        import onnxruntime

        require_weights(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except (EncodeError, ValueError) as error:
            raise ModelError(f"a model below 2 GB is needed to be run in parts ({error}): use a smaller one") from error
        except Exception as error:  # the runtime's own classes share no other base
            raise ModelError(
                f"ONNX Runtime cannot run {model.graph.name!r} ({error}): export the model again"
            ) from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, from whatever tensors hold the inputs."""
        values = self._session.run(list(self.outputs), {name: tensors[name] for name in self.inputs})
        return dict(zip(self.outputs, values, strict=True))
