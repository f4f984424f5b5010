"""`-p "[NAME=]PROFILE [KEY=VALUE ...]"` and `--budget` in, named profiles out: for what compares them."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from scope_cli.commands.io import tell
from scope_cli.commands.options import SETTINGS
from scope_cli.errors import UsageError
from scope_cli.models.opening import check_model
from scope_cli.settings.load import LoadedProfile, Typed, check, load_profile, parse_set
from scope_cli.settings.schedules import nothing_to_choose

EXAMPLE = "for example -p 'slide budget=256', or -p 'small=slide budget=256'"
Profiles = Annotated[
    list[str],
    typer.Option(
        "--profile",
        "-p",
        help="A profile, by name or file, with a name of your own and changes: -p 'small=slide budget=256'. "
        "Repeatable.",
        show_default=False,
    ),
]
Budgets = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="N,N,...",
        help="Measure every profile that evicts at each of these budgets; one with a total budget gets the "
        "prompt's tokens on top, and so holds the same bytes.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Variant:
    """A profile under the name it has in the results."""

    name: str
    settings: LoadedProfile
    matched: int | None = None  # generated tokens that a profile with a total budget holds beside the prompt

    def for_prompt(self, prompt_tokens: int) -> LoadedProfile:
        """The profile for a prompt of that length: a total budget that holds what the others hold.

        Its recent tokens keep their share of it.
        """
        if self.matched is None:
            return self.settings

        decode, total = self.settings.profile.decode, prompt_tokens + self.matched
        assert decode.total_budget is not None, "only a total budget is matched"
        recent = max(1, decode.recent_tokens * total // decode.total_budget)
        tree = self.settings.profile.as_dict()
        tree["decode"] |= {"total_budget": total, "budget": total, "recent": recent}
        return replace(self.settings, profile=check(tree, self.settings.source))


def variants(
    specs: Sequence[str], budgets: str | None, common: Typed, default: Sequence[str]
) -> list[Variant]:
    """Every profile that was asked for; `common` are overrides that all of them get.

    Raises ProfileError for what a profile cannot be, UsageError where they have different models or prompts.
    """
    numbers = _numbers(budgets)
    found: dict[str, Variant] = {}
    for spec in specs or default:
        for variant in _of(spec, numbers, common):
            found.setdefault(variant.name, variant)
    models = {variant.settings.profile.model.model_dump_json() for variant in found.values()}
    prompts = {variant.settings.profile.prompt.model_dump_json() for variant in found.values()}
    if len(models) > 1 or len(prompts) > 1:
        raise UsageError(
            "these profiles have different models or prompt settings",
            "give them to all with --model, --raw or --set; compare models with `scope evaluate compare`",
        )
    for variant in found.values():
        check_model(variant.settings.profile.model)
        _note(variant)
    return list(found.values())


def _note(variant: Variant) -> None:
    profile = variant.settings.profile
    if (told := nothing_to_choose(profile.decode, profile.sampling.max_new_tokens)) is not None:
        tell(f"note: {variant.name}: {told}")


def _of(spec: str, budgets: Sequence[int], common: Typed) -> list[Variant]:
    name, profile, words = parsed(spec)
    keys = common.over(changes(words))
    settings = load_profile(profile, keys)
    if not budgets or settings.profile.decode.strategy in ("full", "rpc"):
        return [Variant(name, settings)]
    if settings.profile.decode.total_budget is not None:
        return [Variant(f"{name} budget={budget}", settings, budget) for budget in budgets]
    return [
        Variant(
            f"{name} budget={budget}",
            load_profile(profile, keys.over({"decode.budget": budget}, {"decode.budget": "--budget"})),
        )
        for budget in budgets
    ]


def parsed(text: str, option: str = "--profile") -> tuple[str, str, list[str]]:
    """'small=slide budget=256' -> ('small', 'slide', ['budget=256']); without a name the text is its own."""
    try:
        first, *rest = shlex.split(text)
    except ValueError as error:  # also where there is no word at all
        what = "it is empty" if not text.strip() else error
        raise UsageError(f"{option} {text!r}: {what}", EXAMPLE) from error
    name, equals, kind = first.partition("=")
    if equals and not (name and kind):
        raise UsageError(f"{option} {text!r}: expected NAME=PROFILE", EXAMPLE)
    return (name, kind, rest) if equals else (text.strip(), first, rest)


def changes(words: Sequence[str], option: str = "--profile") -> dict[str, Any]:
    """KEY=VALUE words as overrides; the name of a short option stands for its key."""
    dotted = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{option}: {word!r} is not KEY=VALUE", EXAMPLE)
        known = SETTINGS.get(key.replace("-", "_"))
        dotted.append(f"{known.key if known else key}={value}")
    return parse_set(dotted)


def _numbers(budgets: str | None) -> list[int]:
    parts = [part.strip() for part in budgets.split(",")] if budgets is not None else []
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UsageError(f"--budget {budgets!r} is not a list of numbers", "for example --budget 64,256,1024")
    return [int(part) for part in parts]
