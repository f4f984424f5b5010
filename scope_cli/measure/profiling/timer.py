"""A run's seconds, shared out: inside attention, inside the end of a step, and the rest."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scope_cli.engine.run import Run
    from scope_cli.models.model import LoadedModel


class Timer:
    """Seconds inside attention and inside the end of a step, where evictions happen.

    On a CPU a clock around both functions, at every step; the native step has one of its own. A GPU works on
    its own time: there every 16th step waits for it before and after, and the shares of these steps are taken
    for all.
    """

    EVERY = 16

    def __init__(self, loaded: LoadedModel) -> None:
        from scope_cli.models.attention import ATTENTION, attend
        from scope_cli.models.lean import AttentionInterface

        self.waits = loaded.device.type != "cpu"
        self.device = loaded.device
        self.spent = {"attention": 0.0, "eviction": 0.0, "step": 0.0}
        self.steps = 0
        self.decoding = False
        self.started_at = 0.0
        self.own: float | None = None
        AttentionInterface.register(ATTENTION, self._timed("attention", attend))

    def watch(self, run: Run) -> None:
        self.run = run
        run.cache.watched = self._timed("eviction", lambda end_step: end_step())

    def start_decode(self) -> None:
        self.decoding = True
        self.native_began = self._native_s()
        self.step_began = perf_counter()

    def own_at_start(self, own_s: float) -> float:
        """What had been spent on watching when decoding began."""
        if self.own is None:
            self.own = own_s
        return self.own

    def _timed(self, what: str, function: Any) -> Any:
        def timed(*args: Any, **options: Any) -> Any:
            if not self.decoding or (self.waits and self.steps % self.EVERY):
                if what == "eviction" and self.decoding:
                    self.steps += 1
                    if self.waits and self.steps % self.EVERY == 0:
                        self._wait()
                        self.step_began = perf_counter()
                return function(*args, **options)
            if self.waits:
                self._wait()
            since = perf_counter()
            try:
                return function(*args, **options)
            finally:
                if self.waits:
                    self._wait()
                now = perf_counter()
                self.spent[what] += now - since
                if what == "eviction":
                    self.steps += 1
                    self.spent["step"] += now - self.step_began
                    self.step_began = now

        return timed

    def _native_s(self) -> float:
        """Seconds in the native step's attention so far."""
        from scope_cli.models.native_step import NativeStep

        return self.run.step.attention_s if isinstance(self.run.step, NativeStep) else 0.0

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def shares(self, prefill_s: float, decode_s: float) -> Any:
        from scope_cli.measure.profiling.result import Time

        scale = decode_s / self.spent["step"] if self.waits and self.spent["step"] else 1.0
        attention, eviction = self.spent["attention"] * scale, self.spent["eviction"] * scale
        attention += self._native_s() - self.native_began
        how = f"every {self.EVERY}th step, device synchronised" if self.waits else "a clock at every step"
        return Time(prefill_s, decode_s, attention, eviction, max(0.0, decode_s - attention - eviction), how)
