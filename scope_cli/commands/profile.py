"""scope profile: what a run will take, what it took, and what a budget should be."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scope_cli.commands import options as o
from scope_cli.commands.io import read_text, tell
from scope_cli.commands.measure import show_measured
from scope_cli.commands.overrides import overrides_of
from scope_cli.commands.plan import show_plan
from scope_cli.commands.shown import Cases, Display, width_of
from scope_cli.errors import UsageError
from scope_cli.measure.profiling.compare import compare
from scope_cli.measure.profiling.pages import check_plot
from scope_cli.measure.profiling.report import change_table
from scope_cli.measure.profiling.result import read_results
from scope_cli.settings.load import LoadedProfile, Typed, load_profile
from scope_cli.units import parse_bytes

RUN, PLAN, SHOW = "What is run", "Planning", "Output"
SEVERAL = {"decode.budget": "--budget", "decode.strategy": "--strategy"}
SMALLEST_MEMORY = 2**20  # fewer bytes are a number whose unit was forgotten

app = typer.Typer(help="Plan and measure memory and speed of one or several profiles.")


def typed_memory(text: str | None) -> int | None:
    if text is None:
        return None
    found = parse_bytes(text)
    if not found:
        raise UsageError(f"--memory {text} is not a size", "for example --memory 24GiB")
    if found < SMALLEST_MEMORY:
        plain = text.strip().isdecimal()
        unit = f"did you mean --memory {text.strip()}GiB?" if plain else "for example --memory 24GiB"
        raise UsageError(f"--memory {text}: {found:,} bytes are too little for any model", unit)
    return found


@app.callback(invoke_without_command=True)
@o.with_settings(*o.MEASURED, "scorer", "recent", "interval", "kv", "seed", "prefill", "prefill_budget")
def profile_command(
    context: typer.Context,
    prompt: Annotated[str | None, o.option(RUN, "The prompt's text.")] = None,
    prompt_file: Annotated[str | None, o.option(RUN, "Read the prompt from a file.", "-f")] = None,
    prompt_tokens: Annotated[
        int | None, o.option(RUN, "Use a synthetic prompt of this many tokens (1000).", min=1)
    ] = None,
    profiles: Annotated[
        list[str],
        typer.Option(
            "--profile", "-p", rich_help_panel=RUN, help="A profile's name or file. Repeatable: side by side."
        ),
    ] = [],  # noqa: B006  typer copies it
    budgets: Annotated[
        str | None, o.option(RUN, "One or more budgets to compare: 256,512,1024.", "--budget")
    ] = None,
    strategies: Annotated[
        str | None, o.option(RUN, "One or more strategies to compare: slide,adaptive,full.", "--strategy")
    ] = None,
    offline: o.Offline = False,
    max_new_tokens: Annotated[
        int | None,
        o.option(RUN, "Output tokens, all of which are written (the profile's; measured: at most 1024)."),
    ] = None,
    plan: Annotated[bool, o.option(PLAN, "Plan from the model's config alone; nothing is loaded.")] = False,
    fit: Annotated[bool, o.option(PLAN, "Print the profile with the largest budget that fits.")] = False,
    config: Annotated[
        Path | None, o.option(PLAN, "Plan for this config.json, or its folder, instead of --model.")
    ] = None,
    memory: Annotated[
        str | None, o.option(PLAN, "Memory to plan for, e.g. 24GiB (default: what is free).")
    ] = None,
    lanes: Annotated[
        int, typer.Option(rich_help_panel=PLAN, min=1, help="Sequences at once, for --plan.")
    ] = 1,
    json: Annotated[bool, o.option(SHOW, "Print everything as JSON.")] = False,
    csv: Annotated[bool, o.option(SHOW, "Print one CSV row per profile.")] = False,
    plot: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            rich_help_panel=SHOW,
            show_default=False,
            help="Draw to FILE.png, .svg or .html; - draws in the terminal. Also a plan. Repeatable.",
        ),
    ] = [],  # noqa: B006
    quiet: Annotated[bool, o.option(SHOW, "Print no table and no progress.", "-q")] = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Plan and measure memory and speed of one or several profiles.

    Every profile runs in a process of its own and writes every token of its output.

        scope profile --profile slide --profile full --prompt-tokens 500 --max-new-tokens 600 --plot cost.png
    """
    if context.invoked_subcommand is not None:
        return
    if [json, csv, fit].count(True) > 1:
        both = [name for name, asked in (("--json", json), ("--csv", csv), ("--fit", fit)) if asked]
        raise UsageError(f"{' and '.join(both)} cannot be combined", "one of them goes to stdout")
    free = typed_memory(memory)
    planning = plan or fit or config is not None
    text = prompt_text(prompt, prompt_file, prompt_tokens)
    if config is not None and given["model"] is not None:
        raise UsageError("--config and --model cannot be combined", "both say which model is planned")
    if not planning and (free is not None or lanes > 1):
        raise UsageError(f"{'--memory' if free else '--lanes'} is for planning", "add --plan")

    for one in plot:
        check_plot(one)
    overrides = overrides_of(**given, max_new_tokens=max_new_tokens)
    cases = side_by_side(profiles or ["default"], numbers(budgets), names(strategies), overrides)

    shown = Display(json, csv, plot, quiet, Console(stderr=json or csv or fit))
    if planning:
        code = show_plan(cases, text, prompt_tokens, config, free, lanes, fit, shown)
    else:
        code = show_measured(cases, text, prompt_tokens, offline, shown)
    raise typer.Exit(code)


def prompt_text(prompt: str | None, file: str | None, tokens: int | None) -> str | None:
    """The prompt's text, None for a synthetic one."""
    options = {"--prompt": prompt, "--prompt-file": file, "--prompt-tokens": tokens}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} cannot be combined")
    text = read_text(file, "--prompt-file") if file is not None else prompt
    if text is not None and not text.strip():
        raise UsageError("the prompt is empty", "--prompt-tokens N makes one up")
    return text


def numbers(text: str | None) -> list[int | None]:
    """'256,512' -> [256, 512]; [None] where nothing was typed."""
    if text is None:
        return [None]
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--budget {text} is not a list of numbers", "for example --budget 256,512,1024"
        ) from error
    return list(dict.fromkeys(found))


def names(text: str | None) -> list[str | None]:
    return [None] if text is None else list(dict.fromkeys(part.strip() for part in text.split(",")))


def side_by_side(
    profiles: list[str], budgets: list[int | None], strategies: list[str | None], overrides: Typed
) -> Cases:
    """Every profile with every budget and strategy, each under a label of its own."""
    cases: dict[str, LoadedProfile] = {}
    for name in profiles:
        for strategy in strategies:
            for budget in budgets:
                each = {"decode.budget": budget, "decode.strategy": strategy}
                asked = {key: value for key, value in each.items() if value is not None}
                settings = load_profile(name, overrides.over(asked, SEVERAL))
                full = settings.profile.decode.strategy == "full"
                label = " ".join(
                    part
                    for part in (
                        Path(name).stem if name.endswith(".yaml") else name,
                        strategy or "",
                        "" if full else str(settings.profile.decode.budget),
                    )
                    if part
                )
                cases.setdefault(label, settings)  # full is the same with any budget
    return list(cases.items())


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="What `scope profile --json` wrote earlier.")],
    after: Annotated[Path, typer.Argument(help="What it writes now.")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, help="Percent by which memory and bytes may grow.")
    ] = 1.0,
    speed_threshold: Annotated[
        float, typer.Option("--speed-threshold", min=0, help="Percent by which tokens/s may fall.")
    ] = 10.0,
    everything: Annotated[bool, typer.Option("--all", help="Also show what did not change.")] = False,
) -> None:
    """Compare two results; exit code 1 if something is worse than the thresholds allow, or missing."""
    found = compare(read_results(before), read_results(after), threshold, speed_threshold)
    print(change_table(found.changes, everything, width_of(Console())))
    for note in found.notes:
        tell(f"note: {note}")
    for label in found.only_after:
        tell(f"note: {label} is only in {after}: it was not compared")
    for label in found.only_before:
        tell(f"missing: {label} is only in {before}: it was not compared")
    if found.worse:
        tell(f"{found.worse} of {len(found.changes)} figures are worse than allowed")
    raise typer.Exit(1 if found.worse or found.only_before else 0)
