"""Events in, Prometheus metrics over HTTP out, on this machine alone unless another address is given."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from scope_cli.errors import UsageError
from scope_cli.events import Event
from scope_cli.sinks.meter import Meter

LOOPBACK = "127.0.0.1"
COUNTERS = {
    "prompt_tokens": "Prompt tokens read",
    "output_tokens": "Output tokens written",
    "finished": "Prompts that are through",
    "evictions": "Times that something was evicted",
    "evicted_tokens": "Tokens evicted, per KV head",
    "moved_bytes": "Copied by cache management",
    "reference_moved_bytes": "What a cache that gathers what it keeps would have copied",
    "host_bytes": "Copied between host and device",
}
GAUGES = {
    "planned_tokens": "Output tokens planned",
    "tokens_per_s": "Output tokens a second, over the last five",
    "resident_bytes": "Resident set of the process",
    "kept_prompt": "Prompt tokens held, per KV head",
    "kept_generated": "Generated tokens held, per KV head",
    "slots": "Places for tokens",
    "held_bytes": "Keys and values of live slots",
    "overhead_bytes": "Positions, bias, slot lists, query rings, memos",
    "allocated_bytes": "Every buffer of the cache",
    "full_bytes": "What an uncompressed cache would hold",
    "read_bytes": "What one step's attention reads",
    "padding_bytes": "Allocated for the prompt and of no use",
}


class Metrics(Collector):
    """http://ADDRESS:PORT/metrics, for as long as the run lasts."""

    def __init__(self, port: int, address: str = LOOPBACK) -> None:
        self._meter = Meter()
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as error:
            raise UsageError(
                f"--metrics-port: cannot listen on {address}:{port}: {error.strerror}",
                "choose a port that is free",
            ) from error
        self.port = self._server.server_port

    def receive(self, event: Event) -> None:
        self._meter.receive(event)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        now = self._meter.snapshot()
        run = InfoMetricFamily("scope_run", "What runs")
        run.add_metric([], {key: now[key] for key in ("model", "policy", "phase")})
        yield run
        for key, text in COUNTERS.items():
            if key in now:
                yield CounterMetricFamily(f"scope_{key}", text, now[key])
        for key, text in GAUGES.items():
            if key in now:
                yield GaugeMetricFamily(f"scope_{key}", text, now[key])
