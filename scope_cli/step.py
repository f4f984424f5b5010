"""The newest ids in, the next logits out: one forward of the model over a cache's fixed slots."""

from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from scope_cli.cache import ScopeCache


class Step(Protocol):
    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [lanes, 1]; returns logits, [lanes, vocab]"""


class EagerStep:
    """The model as it is."""

    def __init__(self, model: PreTrainedModel, cache: ScopeCache) -> None:
        self.model, self.cache = model, cache

    def __call__(self, ids: Tensor) -> Tensor:
        return self.model(
            input_ids=ids,
            position_ids=self.cache.next_position.unsqueeze(1),
            use_cache=False,
            scope_cache=self.cache,
        ).logits[:, -1]
