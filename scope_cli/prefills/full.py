"""The whole prompt stays, read straight into its lane."""

from dataclasses import dataclass

from scope_cli.prefills.base import prefill


@prefill("full")
@dataclass(frozen=True)
class Full:
    """Keep every prompt token (SCOPE, Table 2: what compressing the prompt costs in quality is why)."""

    def kept(self, prompt_tokens: int) -> int:
        return prompt_tokens
