"""scope profile --plan and --fit: what runs would take, and the largest budget that fits."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from scope_cli.commands.io import tell
from scope_cli.commands.shown import Cases, Display
from scope_cli.console import safe
from scope_cli.engine.slots_known import Computed
from scope_cli.errors import ModelError, UsageError
from scope_cli.measure.profiling import footprint as f
from scope_cli.measure.profiling.footprint import total_bytes
from scope_cli.measure.profiling.pages import Page
from scope_cli.measure.profiling.report import PlannedProfile, as_csv, plan_table
from scope_cli.measure.profiling.source import ModelSource, free_bytes, source_of, target_of
from scope_cli.measure.profiling.terminal import draw_plans
from scope_cli.models.folder import stored_shapes
from scope_cli.models.hub import HUB_NAME
from scope_cli.models.target import Target
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schedules import nothing_to_choose
from scope_cli.units import as_bytes

DOES_NOT_FIT = 4


def show_plan(
    cases: Cases, text: str | None, prompt_tokens: int | None, config: Path | None,
    given: int | None, lanes: int, fit: bool, shown: Display,
) -> int:  # fmt: skip
    settings = cases[0][1].profile.model
    source = source_of(settings.name, config)
    target = target_of(source, settings, given is not None, lanes)
    if source.folder is not None:
        known = Computed(source.folder, target.dtype, target.load_in, target.device)
        cases = [(label, known.foreseen(one)) for label, one in cases]
    free = given if given is not None else free_bytes(settings, target)
    tokens = count_tokens(text, source.config) if text is not None else prompt_tokens or 1000
    if fit:
        planned, profile = fitted(cases, source, target, tokens, lanes, free)
    else:
        planned, profile = [plan_one(label, one, target, tokens, lanes, free) for label, one in cases], None
    if shown.json:
        print(as_json_lines([one.as_dict(target) for one in planned]))
    elif shown.csv:
        print(as_csv([flat(one.as_dict(target)) for one in planned]), end="")
    elif profile is not None:
        print(profile, end="")
    if not shown.quiet:
        shown.table(plan_table(planned, target, shown.width))
    for label, one in cases:
        told = nothing_to_choose(one.profile.decode, one.profile.sampling.max_new_tokens)
        if told is not None and not shown.quiet:
            print(f"note: {label}: {told}", file=sys.stderr)
    shown.draw(Page.of_plans(planned, target, sys.argv[1:]), partial(draw_plans, planned))
    if all(one.fits for one in planned):
        return 0
    if fit:
        print("no budget fits: not even the smallest", file=sys.stderr)
    if not shown.quiet and (smaller := smaller_weights(cases[0][1], target, tokens, lanes)):
        print(f"hint: {smaller}", file=sys.stderr)
    return DOES_NOT_FIT


def smaller_weights(settings: LoadedProfile, target: Target, tokens: int, lanes: int) -> str:
    """What the same run takes with weights of another form, smallest first; '' where there is none."""
    if target.load_in is not None:
        return ""
    small = "int4" if target.device == "cpu" else "4bit" if target.device == "cuda" else None
    other = {f"--load-in {small}": replace(target, load_in=small)} if small else {}
    if target.dtype in ("float32", "float64"):
        other["--dtype bfloat16"] = replace(target, dtype="bfloat16")
    takes = {option: total_bytes(settings, one, tokens, lanes) for option, one in other.items()}
    return ", ".join(f"{option} takes {as_bytes(count)} in all" for option, count in takes.items())


def plan_one(
    label: str, settings: LoadedProfile, target: Target, tokens: int, lanes: int, free: int
) -> PlannedProfile:
    made = f.footprint(settings, target, tokens, lanes)
    output = f.changed(settings, made.output_tokens)
    return PlannedProfile(
        label=label,
        footprint=made,
        full=f.footprint(f.full_cache(output), target, tokens, lanes),
        held=f.held_by_token(settings, target, tokens, lanes),
        full_held=f.held_by_token(f.full_cache(output), target, tokens, lanes),
        limits=f.limits(settings, target, tokens, lanes, free),
        free=free,
        runs_out_at=f.runs_out_at(settings, target, tokens, lanes, free),
        context=target.shape.geometry.context,
    )


def fitted(
    cases: Cases, source: ModelSource, target: Target, tokens: int, lanes: int, free: int
) -> tuple[list[PlannedProfile], str | None]:
    """The plan with the largest budget that fits, and its profile as YAML; None where none fits."""
    if len(cases) > 1:
        raise UsageError(
            "--fit chooses the budget of one profile", "name one --profile, --strategy, --budget"
        )
    ((label, settings),) = cases
    output = f.footprint(settings, target, tokens, lanes).output_tokens  # or what is wrong with the lengths
    decode = settings.profile.decode
    budget = f.largest_budget(settings, target, tokens, lanes, free, f.worth(output))
    if budget is None:
        what = "total_budget" if decode.total_budget is not None else f"strategy {decode.strategy}"
        raise UsageError(f"--fit: {label} has no budget to choose ({what})", "try --strategy slide")
    if not budget:
        return [plan_one(label, settings, target, tokens, lanes, free)], None
    if budget == f.worth(output):
        tell(
            f"note: {budget:,} is half of the output, and no limit of the memory: from {output:,} on nothing "
            "would be evicted"
        )
    chosen = f.changed(settings, output, budget=budget)
    name, where = model_to_name(source, settings.profile.model.name)
    if where:
        tell(f"note: {where}")
    profile = chosen.profile.model_copy(
        update={
            "description": f"{decode.strategy}, budget {budget:,}: {tokens:,} + {output:,} tokens of "
            f"{source.name} in {as_bytes(free)}",
            "model": chosen.profile.model.model_copy(update={"name": name}),
        }
    )
    lines = [f"Written by scope profile --fit for {target.shape.name}, {target.dtype} on {target.device}."]
    head = "".join(f"# {line}\n" for line in (*lines, *([where] if where else [])))
    planned = plan_one(f"{label.rsplit(' ', 1)[0]} {budget}", chosen, target, tokens, lanes, free)
    return [planned], head + yaml.safe_dump(profile.as_dict(), sort_keys=False, allow_unicode=True)


def model_to_name(source: ModelSource, typed: str) -> tuple[str, str]:
    """What `model.name` of a profile for that model is, and a remark where that is a guess."""
    import json

    if not source.from_config:
        path = Path(typed).expanduser()
        return (str(path.absolute()) if path.exists() else typed), ""
    folder = source.config.absolute().parent
    if dict(stored_shapes(folder)):
        return str(folder), ""
    said = json.loads(source.config.read_text(encoding="utf-8")).get("_name_or_path")
    if isinstance(said, str) and HUB_NAME.fullmatch(said):
        return said, f"model.name is what {source.config} says of itself: check it"
    return str(folder), (
        f"model.name is the folder of {source.config}, which holds no weights: "
        "put the model's folder, file or hub name there"
    )


def count_tokens(text: str, config: Path) -> int:
    """Of a prompt, by the model's tokenizer alone: a chat template adds a few."""
    from tokenizers import Tokenizer

    file = config.with_name("tokenizer.json")
    if not file.is_file():
        raise ModelError(f"there is no tokenizer.json beside {config}",
                         "give the length: --prompt-tokens N")  # fmt: skip
    return len(Tokenizer.from_file(str(file)).encode(text).ids)


def as_json_lines(planned: list[dict[str, Any]]) -> str:
    return safe.as_json({"format": 1, "plans": planned}, indent=2)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in tree.items():
        row |= flat(value, f"{prefix}{key}_") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return row
