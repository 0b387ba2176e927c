"""A side network on one stream's buffers."""

from __future__ import annotations

from typing import Any

import numpy as np

from latpred.chained import ORT_DTYPES, aligned, bound
from latpred.hooks.masks import MASK
from latpred.hooks.sides import HEAD, MASK_PREFIX, POOLED, Network, Side
from latpred.surgery.exits import CONFIDENCE, LOGITS, PROBABILITIES
from latpred.surgery.gates import SCORES
from latpred.tensors import Array

__all__ = ["Look", "share_of_zeros"]

LINES, LINE = 32, 64  # of a feature map, so many stretches of so many values are looked at for zeros


def share_of_zeros(values: Array) -> float:
    """Of a feature map, as rectifiers leave it; of a large one, of some stretches that lie evenly apart.

    Examples
    --------
    >>> share_of_zeros(np.array([[0.0, 1.5], [0.0, 0.0]]))
    0.75
    """
    looked_at = values.reshape(-1)
    if looked_at.size > LINES * LINE:
        lines = looked_at[: looked_at.size // LINE * LINE].reshape(-1, LINE)
        looked_at = lines[:: len(lines) // LINES]
    return 1.0 - int(np.count_nonzero(looked_at)) / looked_at.size


class Look:
    """What one side network makes of the main tensor.

    Parameters
    ----------
    side : Side
    here : pair of ndarray
        The tensor that it reads, in either slot.

    Attributes
    ----------
    scores : ndarray
        Of options, classes or patches, of shape (batch, width).
    pooled : ndarray or None
        The averages that it was computed from, of shape (batch, channels).
    """

    __slots__ = ("_arrays", "_here", "_pair", "network", "pooled", "scores", "side")

    def __init__(self, side: Side, here: tuple[Array, Array]) -> None:
        self.side = side
        self._here = here
        self._bind(side.current)

    def run(self, slot: int) -> None:
        """Look at the tensor in a slot; a network that was replaced meanwhile is bound first."""
        network = self.side.current
        if network is not self.network:
            self._bind(network)
        network.session.run_with_iobinding(self._pair[slot])

    @property
    def confidence(self) -> float:
        """Of a head: the largest probability, of the item of the batch where it is the least."""
        return float(self._arrays[CONFIDENCE].min())

    @property
    def probabilities(self) -> Array:
        """Of a head: shape (batch, classes)."""
        return self._arrays[PROBABILITIES]

    def utilities(self) -> list[float]:
        """Of a gate: what each option is worth, averaged over the batch."""
        values: list[float] = (self.scores[0] if len(self.scores) == 1 else self.scores.mean(axis=0)).tolist()
        return values

    def features(self, copied: bool) -> dict[str, Any]:
        """What was seen, for an observation."""
        found: dict[str, Any] = {"scores": self.scores} | ({} if self.pooled is None else {"pooled": self.pooled})
        if copied:
            found = {name: values.copy() for name, values in found.items()}
        if self.side.role == HEAD and self.network.trained:
            found["confidence"] = self.confidence
        return found

    def _bind(self, network: Network) -> None:
        values = network.session.get_outputs()
        self._arrays = {value.name: aligned(tuple(value.shape), np.dtype(ORT_DTYPES[value.type])) for value in values}
        name = network.session.get_inputs()[0].name
        first, second = (bound(network.session, self._arrays | {name: here}) for here in self._here)
        self._pair: tuple[Any, Any] = first, second
        role = self.side.role
        output = LOGITS if role == HEAD else MASK if role.startswith(MASK_PREFIX) else SCORES
        self.scores = self._arrays[output].reshape(self.side.cut.shape[0], self.side.width)
        self.pooled = self._arrays.get(f"{output}{POOLED}")
        self.network = network
