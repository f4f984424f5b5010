"""The whole prompt stays, read straight into its lane."""

from dataclasses import dataclass
from typing import ClassVar

from scope_cli.policies.prefills.base import Prefill, prefill


@prefill("full")
@dataclass(frozen=True)
class Full(Prefill):
    """Keep every prompt token (SCOPE, Table 2: what compressing the prompt costs in quality is why)."""

    compresses: ClassVar[bool] = False
