"""A model and a prompt in, text out piece by piece: scope from Python.

docs/reference/api.md has all that is public.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from scope_cli.engine import fit
from scope_cli.engine.run import generate as events_of
from scope_cli.engine.run import new_work
from scope_cli.engine.run_plan import RunPlan
from scope_cli.engine.slots_check import settle
from scope_cli.errors import AuditError
from scope_cli.events import Finished, Started, Token
from scope_cli.machine.memory import free_bytes
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import DEFAULT_PROFILE, LoadedProfile, load_profile, overlaid
from scope_cli.settings.schema import ModelSettings, Profile

EMBEDDED = ModelSettings().name


def load(name: str = EMBEDDED, *, offline: bool = False, **settings: Any) -> LoadedModel:
    """A model with its weights: a name, a folder, a GGUF file or a hub name.

    settings: other keys of a profile's section `model`, such as device="cpu" or load_in="int8"
    Raises ProfileError for settings that are wrong, ModelError where the model is not found or does not fit.
    """
    tree = {"model": {"name": name, **settings}}
    opened = open_model(overlaid(tree, "the arguments of load").profile.model, offline)
    target = opened.target
    fit.check(target, fit.of_weights(target), 1, free_bytes(opened.device), str(opened.device))
    return opened.load()


def generate(
    model: LoadedModel,
    prompt: str,
    profile: str | Profile = DEFAULT_PROFILE,
    changes: Mapping[str, Any] | None = None,
) -> "Writing":
    """Write one text after a prompt.

    profile: a shipped one's name, a file, or a Profile; of its section `model` only `compile` is read
    changes: other settings, by dotted key: {"decode.budget": 256, "sampling.seed": 7}
    Raises ProfileError for settings that are wrong, UsageError for a prompt that does not fit the context,
    ModelError where the cache does not fit in memory.
    """
    if isinstance(profile, str):
        settings = load_profile(profile, changes)
    else:
        settings = overlaid(profile.as_dict(), "the Profile that was given", changes)
    return Writing(model, prompt, settings)


class Writing(Iterator[str]):
    """The text of one prompt, piece by piece; the pieces together are the output.

    started: the settings in force and what was planned, from the first piece on
    end: why it ended, its readings and its audit, once the text is complete
    """

    def __init__(self, loaded: LoadedModel, prompt: str, settings: LoadedProfile) -> None:
        opened = loaded.opened
        settings, self._from_model = settings.with_model_sampling(opened.sampling)
        profile = settings.profile
        opened.stops(profile.sampling)  # raises where a stop token is none of the model's
        asked = opened.chat.prompt(prompt, profile.prompt)
        work = new_work(settings, opened.geometry, asked.ids, notes=asked.notes)
        RunPlan.of(profile, [work.plan], opened.device.type).check_fits(opened, loaded=True)
        settings, (work,) = settle(loaded, settings, [work])
        self.started: Started | None = None
        self.end: Finished | None = None
        self._pieces = self._texts(events_of(loaded, settings.profile, [work]))

    def __next__(self) -> str:
        return next(self._pieces)

    def _texts(self, events: Iterator[Any]) -> Iterator[str]:
        for event in events:
            if isinstance(event, Started):
                self.started = replace(event, from_model=self._from_model)
            elif isinstance(event, Token | Finished):
                if event.text:
                    yield event.text
                if isinstance(event, Finished):
                    self.end = event
                    if not event.audit.passed:
                        raise AuditError("the audit failed: " + "; ".join(event.audit.problems))
