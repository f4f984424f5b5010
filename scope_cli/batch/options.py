"""What one command asks of a job."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scope_cli.batch.groups import Order
from scope_cli.batch.inputs import PromptFrame
from scope_cli.console.safe import printable
from scope_cli.settings.load import LoadedProfile


@dataclass(frozen=True)
class Options:
    prompts: str
    out: Path
    settings: LoadedProfile
    frame: PromptFrame
    globs: tuple[str, ...] = ()
    lanes: int | None = None
    order: Order = "longest"
    limit: int | None = None
    row_timeout: float | None = None
    fail_fast: bool = False
    retry_failed: bool = False
    restart: bool = False
    accept_changed: bool = False
    join: bool = False
    dry_run: bool = False
    report: bool = False
    checkpoint_every: float | None = None
    no_checkpoint: bool = False
    log_every: float = 30.0
    quiet: bool = False
    offline: bool = False
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    workers: int | None = None
    from_model: dict[str, Any] = field(default_factory=dict)  # sampling in `settings` that nobody chose

    @property
    def as_lines(self) -> bool:
        return not Path(self.prompts).expanduser().is_dir()

    def say(self, line: str) -> None:
        if not self.quiet:
            self.complain(line)

    def complain(self, line: str) -> None:
        """Also where nothing but errors is wanted."""
        print(printable(line), file=sys.stderr)
