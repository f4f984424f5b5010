"""Events in, how the run stands right now out: what `--stats-file` and `--metrics-port` show."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import asdict
from threading import Lock
from time import monotonic
from typing import Any

import psutil

from scope_cli.events import Busy, Event, Failed, Finished, PromptProgress, PromptRead, Started, Token

RATE_WINDOW_S = 5.0


class Meter:
    """Counts over all lanes and prompts of a run; asked from other threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._began = monotonic()
        self._times: deque[float] = deque()  # of the tokens of the last seconds
        self._reading: dict[str, Any] = {}
        self._policy = self._model = ""
        self._planned = self._read = self._written = self._finished = 0
        self._phase = "loading"
        self._process = psutil.Process(os.getpid())

    def receive(self, event: Event) -> None:
        with self._lock:
            match event:
                case Started():
                    self._phase, self._policy, self._model = "prompt", event.policy, event.model["name"]
                    self._planned = event.max_new_tokens * len(event.prompt_tokens)
                case Busy():
                    self._phase = event.what
                case PromptProgress():
                    self._phase = "prompt"
                case PromptRead():
                    self._phase = "output"
                    self._read += event.prompt_tokens
                    self._reading = asdict(event.reading)
                case Token():
                    self._phase = "output"
                    self._written += 1
                    self._reading = asdict(event.reading)
                    self._times.append(monotonic())
                case Finished():
                    self._finished += 1
                    self._phase = "finished"
                    self._reading = asdict(event.reading)
                case Failed():
                    self._phase = "failed"

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            now = monotonic()
            while self._times and now - self._times[0] > RATE_WINDOW_S:
                self._times.popleft()
            window = min(RATE_WINDOW_S, now - self._began)
            return {
                "elapsed_s": round(now - self._began, 3),
                "phase": self._phase,
                "model": self._model,
                "policy": self._policy,
                "prompt_tokens": self._read,
                "output_tokens": self._written,
                "planned_tokens": self._planned,
                "finished": self._finished,
                "tokens_per_s": round(len(self._times) / window, 3) if window else 0.0,
                "resident_bytes": self._process.memory_info().rss,
                **self._reading,
            }
