"""A model in, and its prompt where there is one; out, what `cache: {keys: auto, values: auto}` comes to.

int8 where that is next to free. A text is read twice, over plain slots and over int8 ones, and what is
predicted at its end is compared. In models whose keys have a few very large channels, 8 bits may be too few;
such a model gets plain slots, and so does a step that would have to unpack int8 ones in PyTorch.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

from scope_cli.cache.shape import CacheShape
from scope_cli.engine.run import Work, new_cache
from scope_cli.engine.run_plan import RunPlan, make_plan
from scope_cli.engine.slots_known import MOST_KL, Computed
from scope_cli.formats.base import PLAIN, SHORT, SlotFormat
from scope_cli.models import attention
from scope_cli.models.model import LoadedModel, OpenedModel
from scope_cli.native.library import why_not
from scope_cli.policies.schedule import Schedule
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.policy import CacheSettings
from scope_cli.settings.schema import Profile

COMPARED = 64  # tokens, the last of those that are read
LOOKED_AT = 128  # tokens of a prompt; one that has not even those to compare says nothing
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


def settle(
    loaded: LoadedModel, settings: LoadedProfile, works: Sequence[Work], lanes: int | None = None
) -> tuple[LoadedProfile, list[Work]]:
    """A run's profile and prompts with what `auto` comes to, which the prompts' notes say where it is plain.

    One prompt is looked at as well. Of several, the slots are those of the model: no prompt's output depends
    on the others. Raises ModelError where the slots that it comes to do not fit.
    """
    if not settings.open_slots:
        return settings, list(works)
    prompts = {tuple(work.prompt_ids) for work in works}
    settings, why = slots_of(loaded, settings, *(prompts if len(prompts) == 1 else ()))
    works = [replace(work, notes=(*work.notes, why) if why else work.notes) for work in works]
    if settings.profile.cache.form != works[0].plan.shape.form:
        geometry = loaded.geometry
        works = [replace(one, plan=make_plan(settings, geometry, len(one.prompt_ids))) for one in works]
        plan = RunPlan.of(settings.profile, [one.plan for one in works], loaded.device.type, lanes)
        plan.check_fits(loaded.opened, loaded=True)
    return settings, works


def slots_of(
    loaded: LoadedModel, settings: LoadedProfile, prompt_ids: Sequence[int] = ()
) -> tuple[LoadedProfile, str | None]:
    """The profile with what `auto` comes to, and a line that says why where that is plain."""
    if not settings.open_slots:
        return settings, None
    if (why := _why_plain(loaded, prompt_ids)) is None:
        return settings.with_slots("int8"), None
    settings = settings.with_slots("plain")
    return settings, f"slots are {settings.profile.cache.form}: {why}"


def computed(opened: OpenedModel) -> Computed:
    dtype = str(opened.dtype).removeprefix("torch.")
    return Computed(opened.folder, dtype, opened.load_in, opened.device.type)


def _why_plain(loaded: LoadedModel, prompt_ids: Sequence[int]) -> str | None:
    if not reads_packed(loaded):
        return "without a kernel for int8 ones a token takes up to 1.6 times as long; --kv int8 takes them"
    kept = computed(loaded.opened)
    if (kl := kept.known_kl()) is None:
        passage = loaded.tokenizer(PASSAGE)["input_ids"][: loaded.geometry.context]
        kept.remember(kl := moved(loaded, passage))
    if kl > MOST_KL:
        return f"in int8 they move this model by a KL of {kl:.3g}, {MOST_KL:g} is the most"
    ids = prompt_ids[:LOOKED_AT]
    if len(ids) >= COMPARED and (kl := moved(loaded, ids)) > MOST_KL:
        return f"in int8 they move this model by a KL of {kl:.3g} on this prompt, {MOST_KL:g} is the most"
    return None


def reads_packed(loaded: LoadedModel) -> bool:
    """Whether a step reads int8 slots as they are: the native one, and Triton's attention."""
    if loaded.device.type == "cpu":
        return (loaded.why_not_native or why_not()) is None
    widths = {layer.head_dim for layer in loaded.geometry.layers}
    return loaded.device.type == "cuda" and all(attention.kernel_takes(loaded.dtype, wide) for wide in widths)


@torch.no_grad()
def moved(loaded: LoadedModel, ids: Sequence[int]) -> float:
    """Mean KL(plain || int8) over the last of these tokens, in nats; infinite where there are no numbers."""
    if not ids:
        return 0.0
    both = (_logits(loaded, torch.tensor([ids]), form) for form in (PLAIN, SHORT["int8"]))
    found = []
    for logits in zip(*both, strict=True):  # one by one: a vocabulary is large
        plain, packed = (one.float().log_softmax(-1) for one in logits)
        found.append(float((plain.exp() * (plain - packed)).sum()))
    kl = fmean(found)
    return kl if kl == kl else float("inf")


def _logits(loaded: LoadedModel, ids: torch.Tensor, form: SlotFormat) -> torch.Tensor:
    """ids: [1, tokens]; returns [compared, vocab]"""
    tokens, layers = ids.shape[1], len(loaded.geometry.layers)
    shape = CacheShape(lanes=1, prompt_slots=(tokens,) * layers, evictable=1, context=tokens + 1, form=form)
    cache = new_cache(loaded, Profile(cache=CacheSettings(kv="plain")), shape)
    cache.start_prompt(0, Schedule("full", 1, 1, 1, 1))
    positions = cache.start_chunk(0, tokens)
    out = loaded.model(
        input_ids=ids.to(loaded.device),
        position_ids=positions,
        use_cache=False,
        logits_to_keep=min(COMPARED, tokens),
        scope_cache=cache,
    )
    cache.end_chunk()
    return out.logits[0]
