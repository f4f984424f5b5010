"""A model in; out, how far int8 slots move it: what `cache: {keys: auto, values: auto}` goes by.

A passage is read twice, over plain slots and over int8 ones, and what is predicted at its end is compared. In
models whose keys have a few very large channels, 8 bits may be too few; such a model gets plain slots.
"""

from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import CacheShape
from scope_cli.formats.base import PLAIN, SHORT, SlotFormat
from scope_cli.models.model import LoadedModel
from scope_cli.policies.schedule import Schedule

MOST_KL = 0.005  # nats: 20 times what the embedded model shows, half of what the mildest eviction costs
COMPARED = 64  # tokens
PASSAGE = (
    "The harbour lies between two hills, and in winter the sun reaches it for three hours a day. Ships came "
    "from the north with timber and salted fish, and left with wool, candles and 240 barrels of tar. In May "
    "1871 the master of the brig Anna wrote that the pilot had asked for 12 crowns, twice the price of the "
    "year before. `for (i = 0; i < n; i++) total += price[i] * 1.25;` is how a clerk would add it up today. "
    "Nobody remembers the pilot's name; the two families who could have told it moved away after the fire, "
    "one of them to the island, the other across the sea. What remains is the list of names on the north "
    "wall of the church, a bell with a crack in it, and a song about the brig, which children still sing "
    "when they skip rope: Anna, Anna, where have you been? North of the harbour, where no one has seen."
)
_found: "WeakKeyDictionary[torch.nn.Module, float]" = WeakKeyDictionary()

NewCache = Callable[[CacheShape], ScopeCache]


def settled(
    loaded: LoadedModel, shape: CacheShape, otherwise: SlotFormat, new_cache: NewCache
) -> tuple[CacheShape, str | None]:
    """The shape as `auto` wants it, and a note where that is `otherwise`; new_cache: of exactly a shape.

    A model is looked at once.
    """
    if loaded.model not in _found:
        _found[loaded.model] = moved(loaded, new_cache)
    if (kl := _found[loaded.model]) <= MOST_KL:
        return shape, None
    note = f"slots are {otherwise}: in int8 they move this model by a KL of {kl:.3g}, {MOST_KL:g} is the most"
    return replace(shape, form=otherwise), note


@torch.no_grad()
def moved(loaded: LoadedModel, new_cache: NewCache) -> float:
    """Mean KL(plain || int8) over the passage's last tokens, in nats; infinite where there are no numbers."""
    ids = torch.tensor([loaded.tokenizer(PASSAGE)["input_ids"]], device=loaded.device)
    ids = ids[:, : loaded.geometry.context]
    plain, packed = (_logprobs(loaded, new_cache, ids, form) for form in (PLAIN, SHORT["int8"]))
    kl = float((plain.exp() * (plain - packed)).sum(-1).mean())
    return kl if kl == kl else float("inf")


def _logprobs(loaded: LoadedModel, new_cache: NewCache, ids: torch.Tensor, form: SlotFormat) -> torch.Tensor:
    """[compared, vocab]"""
    tokens, layers = ids.shape[1], len(loaded.geometry.layers)
    shape = CacheShape(lanes=1, prompt_slots=(tokens,) * layers, evictable=1, context=tokens + 1, form=form)
    cache = new_cache(shape)
    cache.start_prompt(0, Schedule("full", 1, 1, 1, 1))
    positions = cache.start_chunk(0, tokens)
    out = loaded.model(
        input_ids=ids,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=min(COMPARED, tokens),
        scope_cache=cache,
    )
    cache.end_chunk()
    return out.logits[0].float().log_softmax(-1)
