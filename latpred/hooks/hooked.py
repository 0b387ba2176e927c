"""A model with its hooks on: runs, decides as it goes, tells a listener, and is let go of."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Self

from latpred.decide.table import Table
from latpred.errors import HookError, InputError
from latpred.hooks.answer import NO_DEADLINE_S, Answer, Ask, Listener
from latpred.hooks.masks import checked_map
from latpred.hooks.memory import give_back
from latpred.hooks.origin import Origin
from latpred.hooks.program import Program
from latpred.hooks.several import Inputs, Several, SeveralStream
from latpred.hooks.sides import Side, SideSource
from latpred.hooks.stream import Stream
from latpred.hooks.terms import Deciding
from latpred.predictor import Model
from latpred.tensors import Array

if TYPE_CHECKING:
    from latpred.hooks.pupils import Verdict
    from latpred.hooks.sampler import Sampling
    from latpred.hooks.trainer import Trainer, Training

__all__ = ["Hooked"]


class Hooked:
    """A hooked model; made by `attach` or `load`.

    Several threads may run it at once: sessions are shared, and each run takes buffers and a gate of its own from a
    pool. It is a context manager that releases itself.

    Parameters
    ----------
    program : Program or Several
    sides : mapping of (str, str) to Side
    origin : Origin
    deciding : Deciding
    sensors : callable, optional
        Read as a run begins; what it returns stands in observations.

    Attributes
    ----------
    options : mapping of str to tuple of str
        Point -> its options, keeping it first.
    terms : Terms
        What the table says of them.
    listener : Listener or None
        Told of every run; may be set and taken away at any time.
    sides : mapping of (str, str) to Side
        Point and role -> side network.
    """

    def __init__(
        self,
        program: Program | Several,
        sides: Mapping[tuple[str, str], Side],
        origin: Origin,
        deciding: Deciding,
        sensors: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.listener: Listener | None = None
        self.sides = dict(sides)
        self.origin = origin
        self.deciding = deciding
        self.sensors = sensors
        self.terms = deciding.terms()
        self._live: tuple[Program | Several, Mapping[tuple[str, str], Side]] | None = program, self.sides
        self.options = program.points
        self._numbers = {name: number for number, name in enumerate(program.points)}
        self._kept = dict.fromkeys(self._numbers.values(), 0)
        self._free: deque[Stream | SeveralStream] = deque([self.stream()])

    @property
    def points(self) -> tuple[str, ...]:
        """Mounted points, as an inference meets them."""
        return tuple(self.options)

    @property
    def program(self) -> Program | Several:
        """The graphs; raises HookError where they were released."""
        return self._parts()[0]

    @property
    def table(self) -> Table | None:
        """The table of decisions; None where no point is mounted."""
        return self.deciding.table

    @property
    def latency_s(self) -> float:
        """Predicted of the model as it is, in s."""
        return self.deciding.latency_s

    @property
    def tolerance(self) -> float:
        """Utility that leaving at an exit may lose in expectation."""
        return self.deciding.tolerance

    @property
    def wrong(self) -> float | None:
        """Utility that a wrong answer loses, where the caller said."""
        return self.deciding.wrong

    @property
    def utilities(self) -> dict[str, dict[str, float]]:
        """What each option is worth where no gate says: point -> option -> utility."""
        worth = self.deciding.utilities
        if worth is None:
            return {} if self.table is None else self.table.utilities()
        return {point: {option: worth[point][option] for option in own} for point, own in self.options.items()}

    @property
    def foresees(self) -> bool:
        """Whether the policy counts what may follow a point."""
        return self.deciding.policy != "safe-greedy"

    def stream(self) -> Stream | SeveralStream:
        """Buffers and a gate for runs that nobody listens to, in one thread."""
        program, sides = self._parts()
        if isinstance(program, Several):
            return SeveralStream(program, sides, self.deciding)
        return Stream(program, sides, self.deciding)

    def run(
        self,
        inputs: Inputs,
        deadline_s: float | None = None,
        *,
        keep: bool = False,
        forced: Mapping[str, str] | None = None,
        saliency: Array | None = None,
        quiet: bool = False,
    ) -> Answer:
        """One inference.

        Parameters
        ----------
        inputs : mapping of str to ndarray
            By name, of the shapes and dtypes that the model was bound to. Where models or resolutions are chosen among,
            a function that is called with the name of what was chosen may stand for it.
        deadline_s : float, optional
            From the call on; without it there is none.
        keep : bool
            Take no decision: all is kept, nothing is learned of the machine's speed.
        forced : mapping of str to str, optional
            Point -> option that is taken whatever the gate would say; nothing is learned either.
        saliency : ndarray, shape (H, W), optional
            Where in the input it matters, for points that compute on patches; without it, their mask heads say.
            Numbers that are finite.
        quiet : bool
            Do not tell the listener: for runs that a listener itself asks for.

        Raises
        ------
        HookError
            Where the hooks were released, an input is missing or another than declared, a forced point or option is
            unknown, or the map is none.
        InputError
            Where the deadline is not positive.
        """
        begun_s = time.perf_counter()
        self._parts()
        if deadline_s is not None and not deadline_s > 0.0:
            raise InputError(f"a deadline must be positive, got {deadline_s} s: give it in seconds")
        if saliency is not None:
            saliency = checked_map(saliency)
        listener = None if quiet else self.listener
        wanted = None if listener is None else listener.wants()
        ask = Ask(
            inputs,
            NO_DEADLINE_S if deadline_s is None else deadline_s,
            self._forced(forced or {}) if not keep else self._kept,
            saliency,
            self.sensors() if self.sensors is not None else {},
            wanted is not None,
            wanted or (),
            begun_s,
        )
        try:
            stream = self._free.pop()  # the last one used: its buffers are the warmest
        except IndexError:
            stream = self.stream()
        try:
            heard = stream.run(ask)
        finally:
            self._put_back(stream)
        if listener is not None and ask.recorded:
            listener.heard(heard)
        return heard.answer

    def replace(self, point: str, role: str, source: SideSource) -> None:
        """Put a trained side network in the place of one, at once for all looks that follow, in runs under way too.

        Parameters
        ----------
        point, role : str
            As `sides` has them.
        source : pair of arrays, or path, bytes or ModelProto
            Matrix (channels, width) and bias (width,); for a gate also a graph.

        Raises
        ------
        HookError
            Where there is no such side network.
        InputError
            Where it does not fit.
        """
        side = self.sides.get((point, role))
        if side is None:
            known = ", ".join(f"{role} of {point!r}" for point, role in self.sides)
            raise HookError(f"the side networks {known or 'of no point'} can be replaced, got {role} of {point!r}")
        side.replace(source)

    def train(self, samples: Iterable[Mapping[str, Array]], passes: int = 20) -> tuple[Verdict, ...]:
        """Train heads and gates on inputs of the model now, as `Trainer.train` does, whatever trains meanwhile.

        Raises
        ------
        HookError
            Where there is nothing to train, an input is another than declared, or there are too few.
        """
        from latpred.hooks.trainer import Trainer

        trainer = self.listener if isinstance(self.listener, Trainer) else Trainer(self)
        verdicts = trainer.train(samples, passes)
        self.renew()  # now, and not in the next run
        return verdicts

    def train_while_running(self, sampling: Sampling | None = None, training: Training | None = None) -> Trainer:
        """Record some runs from now on, and train heads and gates on them in a thread that `release` ends.

        Raises
        ------
        HookError
            Where there is nothing to train, or somebody listens already.
        """
        from latpred.hooks.trainer import Trainer

        if self.listener is not None:
            raise HookError("a hooked model that nobody listens to is needed, but somebody does: close and take away "
                            "its listener first")  # fmt: skip
        trainer = Trainer(self, sampling, training)
        self.listener = trainer
        trainer.start()
        return trainer

    def renew(self) -> None:
        """Plan anew with what options were learned to take on this machine; some ms, for a pause between runs.

        Streams that run meanwhile go on with what they have.
        """
        for _ in range(len(self._free)):
            try:
                stream = self._free.popleft()
            except IndexError:  # taken by a run
                return
            stream.renew()
            self._put_back(stream)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write side networks and tables to a file; `latpred.hooks.load` puts them on the model again.

        Raises
        ------
        HookError
            Where the hooks were released, nothing is mounted, or the choice is among several models.
        """
        from latpred.hooks.saved import save

        save(self, path)

    def export(self, path: str | os.PathLike[str], model: Model | None = None) -> None:
        """Write the model with its gates and heads as one portable ONNX file; `latpred.hooks.export` says what it does.

        Parameters
        ----------
        path
        model : path, bytes or ModelProto, optional
            What the hooks were attached to; without it, the file that they were attached to is read again.

        Raises
        ------
        HookError
            Where the hooks were released, are of several models, or no model is at hand.
        ArtefactError
            Where the model is another one.
        """
        from latpred.hooks.export import export

        export(self, path, model)

    def release(self) -> None:
        """Let go of sessions, buffers and the listener; runs that are under way end as usual."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.close()
        self._live = None
        self.sides = {}
        self._free.clear()
        give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _parts(self) -> tuple[Program | Several, Mapping[tuple[str, str], Side]]:
        """The graphs and their side networks; a run that has them may end after a release."""
        live = self._live
        if live is None:
            raise HookError("a hooked model that was not released is needed, but this one was: attach or load it again")
        return live

    def _put_back(self, stream: Stream | SeveralStream) -> None:
        self._free.append(stream)
        if self._live is None:  # released meanwhile
            self._free.clear()

    def _forced(self, forced: Mapping[str, str]) -> dict[int, int]:
        found = {}
        for point, option in forced.items():
            if option not in self.options.get(point, ()):
                known = "; ".join(f"{name}: {', '.join(options)}" for name, options in self.options.items())
                raise HookError(f"points and options that are mounted can be forced ({known or 'none is'}), got "
                                f"{point!r}: {option!r}")  # fmt: skip
            found[self._numbers[point]] = self.options[point].index(option)
        return found
