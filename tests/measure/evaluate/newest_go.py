"""A policy that is broken on purpose: what was written last goes first. No user can choose it."""

from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from scope_cli.engine import replay as replay_module
from scope_cli.policies.policy import Policy
from scope_cli.policies.scorers.base import Scorer
from scope_cli.policies.view import SlotView


@dataclass(frozen=True)
class NewestGo(Scorer):
    """Minus the position."""

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots]"""
        return -view.positions.float()


@contextmanager
def broken(monkeypatch):
    """While it is entered, every replayed profile evicts the newest."""
    from scope_cli.engine import run as generate

    with monkeypatch.context() as patch:
        policy = Policy(scorer=NewestGo())
        patch.setattr(generate, "policy_of", lambda decode: policy)
        patch.setattr(replay_module, "policy_of", lambda decode: policy)
        yield
