"""A model that was just loaded in; out, why its step cannot be the native one.

Some tokens are read, by native_prompt.py where that takes the model, and some more written one by one,
through the native step; and the same by transformers' own layers over a second cache. The logits have to
agree. What is found is remembered, as the self-test's result.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import CacheShape
from scope_cli.console.safe import as_json
from scope_cli.files import cache_folder
from scope_cli.geometry import Geometry
from scope_cli.models import decoders, native_prompt, native_step, native_tables
from scope_cli.models.attention import attention_of
from scope_cli.models.decoders import NotInTable
from scope_cli.models.folder import stored_shapes
from scope_cli.models.lean import PreTrainedModel
from scope_cli.models.native_step import NativeStep
from scope_cli.models.selftest import TOLERANCE, short_windows
from scope_cli.native.library import Library, library
from scope_cli.policies import plugins
from scope_cli.policies.policy import Policy
from scope_cli.settings.policy import DecodeSettings
from scope_cli.settings.schedules import schedule_of

READ, WRITTEN = 13, 20  # tokens
OURS = decoders, native_tables, native_step, native_prompt  # what the result depends on
PACKED_TOLERANCE = 0.02  # activations are rounded, and a hair decides to which side
READ_TOLERANCE = (
    0.1  # most activations of a prompt are rounded to 8 bits; a layer put together otherwise is 1 apart
)


def why_not_native(
    model: PreTrainedModel, geometry: Geometry, dtype: torch.dtype, folder: Path, load_in: str | None
) -> str | None:
    """Half a sentence; None where the native step may be taken, or there is no library (see `why_not`)."""
    known = library()
    if known is None or geometry.context < READ + WRITTEN:
        return None
    note = _note_of(known, folder, dtype, load_in)
    if note.is_file():
        told: dict[str, str | None] = json.loads(note.read_bytes())
        return told["why_not"]
    try:
        with short_windows(model, geometry) as windowed:
            read, written = _distances(model, windowed, dtype, known)
        within = written <= (PACKED_TOLERANCE if load_in else TOLERANCE[dtype]) and read <= READ_TOLERANCE
        apart = f"{written:.2g} apart, those of a prompt {read:.2g}"
        why = None if within else f"it gives other numbers for this model, {apart}"
    except NotInTable as error:
        why = str(error)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(as_json({"model_type": model.config.model_type, "why_not": why}))
    except OSError:  # a cache folder that cannot be written: the next start tests again
        pass
    return why


@torch.no_grad()
def _distances(
    model: PreTrainedModel, geometry: Geometry, dtype: torch.dtype, known: Library
) -> tuple[float, float]:
    """How far apart logits are: of the prompt that was read, and of the worst token that was written."""
    ours, theirs = (_cache(model, geometry, dtype) for _ in range(2))
    expected = _read(model, theirs)
    read = _apart(_read(model, _cache(model, geometry, dtype), known), expected)
    _read(model, ours)
    step = NativeStep(model, ours, known)
    worst = 0.0
    for token in range(WRITTEN):
        ids = torch.tensor([[(31 * (READ + token) + 7) % geometry.vocab]])
        worst = max(worst, _apart(step(ids), _step(model, theirs, ids)))
        ours.end_step()
        theirs.end_step()
    return read, worst


def _apart(logits: Tensor, expected: Tensor) -> float:
    """As a share of their size."""
    apart = logits.double() - expected.double()
    share = float(apart.pow(2).mean().sqrt() / expected.double().pow(2).mean().sqrt().clamp(min=1e-30))
    return share if share == share else float("inf")


def _cache(model: PreTrainedModel, geometry: Geometry, dtype: torch.dtype) -> ScopeCache:
    """Of one lane, with room for a short prompt."""
    shape = CacheShape(
        lanes=1, prompt_slots=(READ,) * len(geometry.layers), evictable=WRITTEN, context=geometry.context
    )
    told = attention_of(model, geometry, weighs=False)
    policy = Policy(plugins.build("scorers", "recency", {}))
    return ScopeCache(geometry, shape, policy, attention=told, dtype=dtype)


def _read(model: PreTrainedModel, held: ScopeCache, known: Library | None = None) -> Tensor:
    """The logits of a short prompt's last token."""
    held.start_prompt(0, schedule_of(DecodeSettings(strategy="full"), WRITTEN, kept_prompt=READ))
    positions = held.start_chunk(0, READ)
    ids = (torch.arange(READ).unsqueeze(0) * 31 + 7) % held.geometry.vocab
    logits = native_prompt.reader_of(model, held, known)(ids, positions, held)
    held.end_chunk()
    held.start_decode(0)
    return logits


def _step(model: PreTrainedModel, held: ScopeCache, ids: Tensor) -> Tensor:
    positions = held.next_position.unsqueeze(1)
    out: Any = model(input_ids=ids, position_ids=positions, use_cache=False, scope_cache=held)
    logits: Tensor = out.logits[:, -1]
    return logits


def _note_of(known: Library, folder: Path, dtype: torch.dtype, load_in: str | None) -> Path:
    """Where the result is remembered: by all that it could depend on but the weights' values."""
    seen = sha256(known.file.name.encode())  # which names the sources
    ours = [Path(module.__file__ or "") for module in OURS] + [Path(__file__)]
    for file in [*ours, folder / "config.json"]:
        seen.update(file.read_bytes() if file.is_file() else b"")
    facts = [str(torch.__version__), transformers.__version__, str(dtype), load_in]
    seen.update(as_json([facts, list(stored_shapes(folder))]).encode())
    return cache_folder() / "self-tests" / f"native-{seen.hexdigest()[:32]}.json"
