"""Readings while a run goes on: the options, and the sinks that they open."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from scope_cli.commands.options import option
from scope_cli.errors import UsageError

if TYPE_CHECKING:
    from scope_cli.sinks.base import Sink

LIVE = "Live readings"
StatsFile = Annotated[
    Path | None, option(LIVE, "Write one reading per second to a file, as JSON lines.", metavar="FILE")
]
MetricsPort = Annotated[
    int | None, option(LIVE, "Serve Prometheus metrics on this port; 0: any.", min=0, max=65535)
]
MetricsAddress = Annotated[str | None, option(LIVE, "Address to listen on (127.0.0.1: this machine alone).")]


def live_sinks(
    stats_file: Path | None, metrics_port: int | None, metrics_address: str | None
) -> "list[Sink]":
    """The sinks behind `--stats-file` and `--metrics-port`; none unless asked for."""
    if metrics_address is not None and metrics_port is None:
        raise UsageError("--metrics-address needs --metrics-port", "for example --metrics-port 9464")
    sinks: list[Sink] = []
    if stats_file is not None:
        from scope_cli.sinks.statsfile import StatsFile

        sinks.append(StatsFile(stats_file.expanduser()))
    if metrics_port is not None:
        from scope_cli.sinks.metrics import LOOPBACK, Metrics

        address = metrics_address or LOOPBACK
        metrics = Metrics(metrics_port, address)
        print(f"metrics on http://{address}:{metrics.port}/metrics", file=sys.stderr)
        sinks.append(metrics)
    return sinks
