"""scope profile: what a run will take, what it took, and what a budget should be."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_cli.commands import options as o
from scope_cli.commands.early import check_model
from scope_cli.commands.io import read_text, tell
from scope_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from scope_cli.measure.profiling.report import Planned
    from scope_cli.measure.profiling.result import Result
    from scope_cli.measure.profiling.source import Source
    from scope_cli.models.shapes import ModelShape
    from scope_cli.models.target import Target
    from scope_cli.settings.load import LoadedProfile

    Cases = list[tuple[str, LoadedProfile]]  # label, profile

RUN, PLAN, SHOW = "What is run", "Planning", "Output"
DOES_NOT_FIT = 4
LONGEST_DEFAULT = 1024  # output tokens that are measured where no length was typed
SMALLEST_MEMORY = 2**20  # fewer bytes are a number whose unit was forgotten

app = typer.Typer(help="Plan and measure memory and speed of one or several profiles.")


def typed_memory(text: str | None) -> int | None:
    from scope_cli.units import parse_bytes

    if text is None:
        return None
    found = parse_bytes(text)
    if not found:
        raise UsageError(f"--memory {text}: no size", "for example --memory 24GiB")
    if found < SMALLEST_MEMORY:
        plain = text.strip().isdecimal()
        unit = f"did you mean --memory {text.strip()}GiB?" if plain else "for example --memory 24GiB"
        raise UsageError(f"--memory {text}: that is {found:,} bytes, which no model fits", unit)
    return found


@app.callback(invoke_without_command=True)
@o.with_settings(*o.MEASURED, "scorer", "recent", "interval", "seed", "prefill", "prefill_budget")
def profile_command(
    context: typer.Context,
    prompt: Annotated[str | None, o.option("--prompt", panel=RUN, help="The prompt, a text.")] = None,
    prompt_file: Annotated[
        str | None, o.option("--prompt-file", "-f", panel=RUN, help="Read the prompt from a file.")
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        o.option("--prompt-tokens", panel=RUN, help="A synthetic prompt of that many tokens (1000).", min=1),
    ] = None,
    profiles: Annotated[
        list[str],
        typer.Option(
            "--profile", "-p", rich_help_panel=RUN, help="A profile's name or file. Repeatable: side by side."
        ),
    ] = [],  # noqa: B006  typer copies it
    budgets: Annotated[
        str | None, o.option("--budget", panel=RUN, help="One or several: 256,512,1024. Side by side.")
    ] = None,
    strategies: Annotated[
        str | None, o.option("--strategy", panel=RUN, help="One or several: slide,adaptive,full.")
    ] = None,
    offline: o.Offline = False,
    max_new_tokens: Annotated[
        int | None,
        o.option(
            "--max-new-tokens",
            panel=RUN,
            help="Output tokens, all of which are written (the profile's; measured: at most 1024).",
        ),
    ] = None,
    plan: Annotated[
        bool, o.option("--plan", panel=PLAN, help="From the model's config alone: nothing is loaded or run.")
    ] = False,
    fit: Annotated[
        bool,
        o.option("--fit", panel=PLAN, help="Print the profile with the largest budget that fits."),
    ] = False,
    config: Annotated[
        Path | None,
        o.option("--config", panel=PLAN, help="Plan for this config.json, or its folder; not --model."),
    ] = None,
    memory: Annotated[
        str | None, o.option("--memory", panel=PLAN, help="What is free, e.g. 24GiB (default: what is).")
    ] = None,
    lanes: Annotated[
        int, typer.Option("--lanes", rich_help_panel=PLAN, min=1, help="Sequences at once, for --plan.")
    ] = 1,
    json: Annotated[bool, o.option("--json", panel=SHOW, help="Everything as JSON on stdout.")] = False,
    csv: Annotated[bool, o.option("--csv", panel=SHOW, help="One row a profile on stdout.")] = False,
    plot: Annotated[
        list[str],
        typer.Option(
            "--plot",
            metavar="FILE",
            rich_help_panel=SHOW,
            show_default=False,
            help="A picture: FILE.png, .svg or .html; - draws in the terminal. Repeatable. Also of a plan.",
        ),
    ] = [],  # noqa: B006
    quiet: Annotated[bool, o.option("--quiet", "-q", panel=SHOW, help="No table, no progress.")] = False,
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
        raise UsageError(f"{' and '.join(both)} exclude each other", "one of them goes to stdout")
    free = typed_memory(memory)
    planning = plan or fit or config is not None
    text = prompt_text(prompt, prompt_file, prompt_tokens)
    if config is not None and given["model"] is not None:
        raise UsageError("--config and --model exclude each other", "both say which model is planned")
    if not planning and (free is not None or lanes > 1):
        raise UsageError(f"{'--memory' if free else '--lanes'} is for planning", "add --plan")
    from scope_cli.measure.profiling.pages import check_plot

    for one in plot:
        check_plot(one)
    overrides = o.overrides(**given, max_new_tokens=max_new_tokens)
    cases = side_by_side(profiles or ["default"], numbers(budgets), names(strategies), overrides)

    from rich.console import Console

    console = Console(stderr=json or csv or fit)
    if planning:
        code = show_plan(
            cases, text, prompt_tokens, config, free, lanes, fit, json, csv, plot, quiet, console
        )
    else:
        code = show_measured(cases, text, prompt_tokens, offline, json, csv, plot, quiet, console)
    raise typer.Exit(code)


def prompt_text(prompt: str | None, file: str | None, tokens: int | None) -> str | None:
    """The prompt's text, None for a synthetic one."""
    options = {"--prompt": prompt, "--prompt-file": file, "--prompt-tokens": tokens}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other")
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
        raise UsageError(f"--budget {text}: not numbers", "for example --budget 256,512,1024") from error
    return list(dict.fromkeys(found))


def names(text: str | None) -> list[str | None]:
    return [None] if text is None else list(dict.fromkeys(part.strip() for part in text.split(",")))


def side_by_side(
    profiles: list[str], budgets: list[int | None], strategies: list[str | None], overrides: dict[str, Any]
) -> "Cases":
    """Every profile with every budget and strategy, each under a label of its own."""
    from scope_cli.settings.load import load_profile

    cases: dict[str, LoadedProfile] = {}
    for name in profiles:
        for strategy in strategies:
            for budget in budgets:
                typed = dict(overrides)
                typed |= {} if budget is None else {"decode.budget": budget}
                typed |= {} if strategy is None else {"decode.strategy": strategy}
                settings = load_profile(name, typed)
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


def show_plan(
    cases: "Cases", text: str | None, prompt_tokens: int | None, config: Path | None,
    given: int | None, lanes: int, fit: bool, json: bool, csv: bool, plot: list[str], quiet: bool,
    console: "Console",
) -> int:  # fmt: skip
    from scope_cli.measure.profiling.report import as_csv, plan_table
    from scope_cli.measure.profiling.source import free_bytes, source_of, target_of
    from scope_cli.settings.schedules import nothing_to_choose

    settings = cases[0][1].profile.model
    source = source_of(settings.name, config)
    target = target_of(source, settings, given is not None, lanes)
    free = given if given is not None else free_bytes(settings, target)
    tokens = count_tokens(text, source.config) if text is not None else prompt_tokens or 1000
    if fit:
        planned, profile = fitted(cases, source, target, tokens, lanes, free)
    else:
        planned, profile = [plan_one(label, one, target, tokens, lanes, free) for label, one in cases], None
    if json:
        print(as_json_lines([one.as_dict(target) for one in planned]))
    elif csv:
        print(as_csv([flat(one.as_dict(target)) for one in planned]), end="")
    elif profile is not None:
        print(profile, end="")
    if not quiet:
        print(plan_table(planned, target, width_of(console)), file=console.file)
    for label, one in cases:
        told = nothing_to_choose(one.profile.decode, one.profile.sampling.max_new_tokens)
        if told is not None and not quiet:
            print(f"note: {label}: {told}", file=sys.stderr)
    draw_plan(planned, target, plot, quiet, console)
    if all(one.fits for one in planned):
        return 0
    if fit:
        print("no budget fits: not even the smallest", file=sys.stderr)
    if not quiet and (smaller := smaller_weights(cases[0][1], target, tokens, lanes)):
        print(f"hint: {smaller}", file=sys.stderr)
    return DOES_NOT_FIT


def width_of(console: "Console") -> int | None:
    return console.width if console.is_terminal else None


def draw_plan(
    planned: "list[Planned]", target: "Target", plot: list[str], quiet: bool, console: "Console"
) -> None:
    from scope_cli.measure.profiling.pages import Page

    page = Page.of_plans(planned, target, sys.argv[1:])
    for file in plot:
        if file == "-":
            from scope_cli.measure.profiling.terminal import draw_plans

            for part in draw_plans(planned, console.width):
                console.print(part)
        else:
            page.write(Path(file))
            if not quiet:
                print(f"wrote {file}", file=sys.stderr)


def smaller_weights(settings: "LoadedProfile", target: "Target", tokens: int, lanes: int) -> str:
    """What the same run takes with weights of another form, smallest first; '' where there is none."""
    from dataclasses import replace

    from scope_cli.measure.profiling.footprint import total_bytes
    from scope_cli.units import as_bytes

    if target.load_in is not None:
        return ""
    small = "int4" if target.device == "cpu" else "4bit" if target.device == "cuda" else None
    other = {f"--load-in {small}": replace(target, load_in=small)} if small else {}
    if target.dtype in ("float32", "float64"):
        other["--dtype bfloat16"] = replace(target, dtype="bfloat16")
    takes = {option: total_bytes(settings, one, tokens, lanes) for option, one in other.items()}
    return ", ".join(f"{option} takes {as_bytes(count)} in all" for option, count in takes.items())


def plan_one(
    label: str, settings: "LoadedProfile", target: "Target", tokens: int, lanes: int, free: int
) -> "Planned":
    from scope_cli.measure.profiling import footprint as f
    from scope_cli.measure.profiling.report import Planned

    made = f.footprint(settings, target, tokens, lanes)
    output = f.changed(settings, made.output_tokens)
    return Planned(
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
    cases: "Cases", source: "Source", target: "Target", tokens: int, lanes: int, free: int
) -> "tuple[list[Planned], str | None]":
    """The plan with the largest budget that fits, and its profile as YAML; None where none fits."""
    import yaml

    from scope_cli.measure.profiling import footprint as f
    from scope_cli.units import as_bytes

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


def model_to_name(source: "Source", typed: str) -> tuple[str, str]:
    """What `model.name` of a profile for that model is, and a remark where that is a guess."""
    import json

    from scope_cli.models.registry import HUB_NAME
    from scope_cli.models.shapes import stored_shapes

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
    from scope_cli.console import safe

    return safe.as_json({"format": 1, "plans": planned}, indent=2)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in tree.items():
        row |= flat(value, f"{prefix}{key}_") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return row


def show_measured(
    cases: "Cases", text: str | None, prompt_tokens: int | None, offline: bool,
    json: bool, csv: bool, plot: list[str], quiet: bool, console: "Console",
) -> int:  # fmt: skip
    from scope_cli.measure.profiling.pages import Page
    from scope_cli.measure.profiling.report import as_csv, result_rows, result_table
    from scope_cli.measure.profiling.result import as_json

    results = measure(cases, text, prompt_tokens or 1000, offline, quiet)
    if json:
        print(as_json(results))
    elif csv:
        print(as_csv(result_rows(results)), end="")
    if not quiet:
        print(result_table(results, width_of(console)), file=console.file)
        for note in dict.fromkeys(note for one in results for note in one.notes):
            tell(f"note: {note}")
    for target in plot:
        if target == "-":
            from scope_cli.measure.profiling.terminal import draw

            for part in draw(results, console.width):
                console.print(part)
        else:
            Page.of_results(results).write(Path(target))
            if not quiet:
                print(f"wrote {target}", file=sys.stderr)
    return 5 if any(one.audit for one in results) else 0


def measure(
    cases: "Cases", text: str | None, prompt_tokens: int, offline: bool, quiet: bool
) -> "list[Result]":
    from contextlib import nullcontext

    from rich.console import Console

    from scope_cli.console.progress import Progress
    from scope_cli.measure.profiling.footprint import changed
    from scope_cli.measure.profiling.runner import run_job
    from scope_cli.measure.profiling.worker import Job

    for _, settings in cases:
        check_model(settings.profile.model)
        check_lengths(settings, text, prompt_tokens)
    jobs = []
    for label, settings in cases:
        asked = settings.profile.sampling.max_new_tokens
        typed = "sampling.max_new_tokens" in settings.typed
        settings = changed(settings, None if typed else min(asked or LONGEST_DEFAULT, LONGEST_DEFAULT))
        written = settings.profile.sampling.model_copy(update={"ignore_eos": True})
        profile = settings.profile.model_copy(update={"sampling": written})
        jobs.append(
            Job(
                label, profile.as_dict(), settings.source, sorted(settings.typed), text, prompt_tokens,
                offline, tuple(sys.argv[1:]),
            )
        )  # fmt: skip
    stderr = Console(stderr=True)
    watched = stderr.is_terminal and not quiet
    progress = Progress(len(jobs))
    results = []
    with stderr.status("starting") if watched else nullcontext() as status:
        for number, job in enumerate(jobs, 1):
            if not quiet and not watched:
                tell(f"measuring {number} of {len(jobs)}: {job.label}{progress.left(', {} left')}")

            def say(line: str, part: float, number: int = number) -> None:
                progress.at(number - 1 + part)
                if status is not None:
                    status.update(f"{number} of {len(jobs)}: {line}{progress.left(', {} left in all')}")

            results.append(run_job(job, say))
            progress.at(number)
    return results


def check_lengths(settings: "LoadedProfile", text: str | None, prompt_tokens: int) -> None:
    """What cannot be run is said before a process is started, where the model can be planned."""
    from scope_cli.measure.profiling.footprint import plan_of
    from scope_cli.measure.profiling.source import source_of

    try:
        shape: ModelShape | None = source_of(settings.profile.model.name).shape(
            settings.profile.model.context
        )
    except ModelError:
        return
    if text is None and shape is not None:
        plan_of(settings, shape, prompt_tokens)


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="What `scope profile --json` wrote earlier.")],
    after: Annotated[Path, typer.Argument(help="What it wrote now.")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, help="Percent by which memory and bytes may grow.")
    ] = 1.0,
    speed_threshold: Annotated[
        float, typer.Option("--speed-threshold", min=0, help="Percent by which tokens/s may fall.")
    ] = 10.0,
    everything: Annotated[bool, typer.Option("--all", help="Show also what did not change.")] = False,
) -> None:
    """Compare two results; exit code 1 where something became worse than the thresholds allow, or lacks."""
    from rich.console import Console

    from scope_cli.measure.profiling.compare import compare
    from scope_cli.measure.profiling.report import change_table
    from scope_cli.measure.profiling.result import read_results

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
