"""What a prefill method sees of a prompt that was read, and what it promises.

A method is a frozen dataclass: its fields are its options in YAML, its docstring is its line in
`scope prefills`. It ranks the prompt's tokens, layer by layer, and leaves choosing, copying and counting to
`staging.py`. It holds no state: what it sums up while the prompt is read lies in `view.memo`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from scope_cli.geometry import LayerGeometry
from scope_cli.policies import plugins

if TYPE_CHECKING:
    from torch import Tensor


class Prefill:
    """The base of every prefill method; a subclass writes `score` and says what it needs."""

    needs: ClassVar[str] = "-"  # attention, keys, values, ...: what it reads, for `scope prefills`
    cost: ClassVar[str] = "-"  # of one layer, per head, with N prompt tokens, window W and width D
    compresses: ClassVar[bool] = True  # False: the prompt is read straight into its lane and stays
    divides_layers: ClassVar[bool] = False  # layers keep different numbers of tokens
    draws: ClassVar[bool] = False  # chance decides: it asks for the view's seed

    def budgets(self, budget: int, prompt: int, window: int, layers: int) -> list[int]:
        """Tokens each KV head of each layer keeps, layers * budget in all; window <= budget < prompt."""
        return [budget] * layers

    def ring(self, window: int) -> int:
        """How many of the prompt's last queries it looks at once the prompt has been read."""
        return 0

    def memos(self, layer: LayerGeometry, prompt: int) -> dict[str, tuple[int, ...]]:
        """Sizes of what it sums up chunk by chunk, at least float32, zeros at the start."""
        return {}

    def observing(self, layer: LayerGeometry, tokens: int, prompt: int) -> int:
        """Numbers, at least float32, that `observe` needs at once for a chunk; for the plan alone."""
        return 0

    def observe(self, view: PromptView, queries: Tensor, start: int) -> None:
        """A chunk of the prompt has been read: write into `view.memo`.

        queries: [heads, tokens, head_dim], rotated, the first at position `start`
        The view ends with the chunk.
        """

    def score(self, view: PromptView) -> Tensor:
        """[kv_heads, prompt], finite, at least float32, higher is kept. Pure."""
        raise NotImplementedError


def prefill(name: str) -> Callable[[type], type]:
    """Register a prefill method under the name of its file."""
    return plugins.register("prefills", name)


@dataclass
class PromptView:
    """One layer's prompt, in the order of the text: the index of a token is its position.

    queries: [heads, remembered, head_dim], the newest, in order
    """

    layer: int
    prompt: int  # its tokens
    kv_heads: int
    read_keys: Callable[[], Tensor]
    read_values: Callable[[], Tensor]
    queries: Tensor
    window: int  # the last tokens, kept whatever their score
    scale: float  # of queries times keys, the model's own
    drawn_seed: int | None  # None: nobody said that chance decides
    inv_freq: Tensor | None = None  # [rotated / 2], the model's RoPE; None: it has none
    memo: dict[str, Tensor] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The lane's; prompts of other seeds do not share what was kept."""
        assert self.drawn_seed is not None, "who asks for the seed says `draws = True`"
        return self.drawn_seed

    @property
    def keys(self) -> Tensor:
        """[kv_heads, prompt, head_dim]; where they are packed, every look unpacks them."""
        return self.read_keys()

    @property
    def values(self) -> Tensor:
        """[kv_heads, prompt, head_dim]"""
        return self.read_values()

    def attention(self, window: int) -> Tensor:
        """Attention probabilities of the last `window` queries, causal: [kv_heads, group, window, prompt]."""
        import torch

        queries = precise(self.queries[:, -window:]).unflatten(0, (self.kv_heads, -1))
        window = queries.shape[2]
        logits = queries @ precise(self.keys).unsqueeze(1).transpose(2, 3) * self.scale
        future = torch.ones(window, self.prompt, dtype=torch.bool, device=logits.device)
        return logits.masked_fill_(future.triu(self.prompt - window + 1), -torch.inf).softmax(-1)


def precise(x: Tensor) -> Tensor:
    """At least float32."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))


def choose(scores: Tensor, budget: int, window: int) -> Tensor:
    """Which tokens stay: the last `window` and the highest scored others, `budget` in each row, as a mask.

    Among equals the newer stays. scores: [rows, prompt]
    """
    import torch

    lifted = scores.clone()
    lifted[:, max(0, scores.shape[1] - window) :] = torch.inf
    newest_first = lifted.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    kept = scores.shape[1] - 1 - newest_first[:, :budget]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, kept, True)


def share_out(weights: list[Fraction], budget: int, prompt: int, window: int) -> list[int]:
    """Divide `budget` tokens a layer between the layers: exactly as many in all, each from window to prompt.

    What goes beyond the window follows the weights; what a layer cannot take, the others share by their
    weights.
    """
    room, rest = prompt - window, (budget - window) * len(weights)
    shares = [Fraction(0)] * len(weights)
    unfilled = set(range(len(weights)))
    while unfilled:
        total = sum(weights[i] for i in unfilled)
        even = {i: rest * weights[i] / total for i in unfilled}
        full = {i for i in unfilled if even[i] >= room}
        for i in full or unfilled:
            shares[i] = Fraction(room) if full else even[i]
        rest -= room * len(full)
        unfilled = unfilled - full if full else set()
    whole = [int(share) for share in shares]
    missing = (budget - window) * len(weights) - sum(whole)
    by_remainder = sorted(range(len(weights)), key=lambda i: (whole[i] - shares[i], i))
    for i in by_remainder[:missing]:
        whole[i] += 1
    return [window + share for share in whole]
