"""scope bench: profiles and peers on the same text, in turn; a table, JSON, CSV and a plot out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_cli.commands import options as o
from scope_cli.commands.io import check_writable, no_word, prompts_of, read_text, tell
from scope_cli.commands.overrides import overrides_of
from scope_cli.commands.variants import changes, parsed
from scope_cli.console import tables
from scope_cli.console.phases import Phases
from scope_cli.console.safe import as_json
from scope_cli.console.signals import broken_off
from scope_cli.engine.fit import needs
from scope_cli.engine.run_plan import make_plan
from scope_cli.errors import UsageError
from scope_cli.machine.memory import free_bytes
from scope_cli.measure.bench.contest import Course, Spec, Standing, contest
from scope_cli.measure.bench.plot import draw
from scope_cli.measure.bench.protocol import Job
from scope_cli.measure.bench.report import lines_of, remarks, report, tables_of, verdict, write_csv
from scope_cli.measure.evaluate.results import write_result
from scope_cli.models.opening import opened_model
from scope_cli.names import did_you_mean
from scope_cli.settings.load import Typed, load_profile
from scope_cli.settings.schedules import nothing_to_choose
from scope_cli.units import as_bytes

if TYPE_CHECKING:
    from scope_cli.models.model import OpenedModel

WHO, WHERE, RESULT = "Contenders", "Course", "Results"
SPARE = 2  # tokens after the last position: one is picked and not fed, and a lane must not end with it
PEERS = ("dynamic", "static", "quantized", "generate")


@o.with_settings(*o.MEASURED, "budget", "raw")
def bench_command(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads standard input.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        str | None, o.option(WHERE, "Read the prompt from a file; - is standard input.", "-f")
    ] = None,
    prompt_tokens: Annotated[
        int | None, o.option(WHERE, "Cut or repeat the prompt to this many tokens.")
    ] = None,
    text: Annotated[
        str | None, o.option(WHERE, "A file with what follows the prompt (default: the prompt again).")
    ] = None,
    profile: Annotated[
        list[str],
        o.option(WHO, 'A profile of scope, as "[NAME=]PROFILE [KEY=VALUE ...] [lanes=N]". Repeatable.', "-p"),
    ] = [],  # noqa: B006  typer copies it
    peer: Annotated[
        list[str],
        o.option(
            WHO,
            'dynamic, static, quantized or generate (transformers), as "[NAME=]PEER [KEY=VALUE ...]"; '
            'or "NAME=COMMAND", a program that speaks the protocol of docs/how-to/bench.md. Repeatable.',
        ),
    ] = [],  # noqa: B006
    baseline: Annotated[
        str | None, o.option(WHO, "The contender to compare with (default: the first).")
    ] = None,
    lanes: Annotated[int, typer.Option(min=1, rich_help_panel=WHO, help="Texts at once.")] = 1,
    threads: Annotated[int | None, o.option(WHO, "Threads of each contender.", min=1)] = None,
    positions: Annotated[
        str | None,
        o.option(
            WHERE, "Where to measure, in tokens of prompt and output: 1500,5000 (default: three places)."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, rich_help_panel=WHERE, help="The output's length.")
    ] = 2048,
    burst: Annotated[
        int, typer.Option(min=1, rich_help_panel=WHERE, help="Steps of a contender in a row.")
    ] = 64,
    rounds: Annotated[
        int, typer.Option(min=1, rich_help_panel=WHERE, help="Bursts of each at each position.")
    ] = 5,
    write: Annotated[bool, o.option(WHERE, "Reach each position by writing, not by feeding.")] = False,
    apart: Annotated[
        bool, o.option(WHERE, "A process for each position: positions take turns, too.")
    ] = False,
    sequential: Annotated[
        bool, o.option(WHERE, "One contender after the other: one model in memory.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1, rich_help_panel=WHERE, help="Most seconds for one answer.")
    ] = 900,
    bandwidth: Annotated[
        float | None, o.option(RESULT, "The memory's bandwidth, GB/s (default: it is measured).", min=0)
    ] = None,
    output: Annotated[
        Path | None, o.option(RESULT, "Save everything as JSON, every burst included.", "-o")
    ] = None,
    force: Annotated[bool, o.option(RESULT, "Overwrite the output file.")] = False,
    json: Annotated[bool, o.option(RESULT, "Print everything as JSON.")] = False,
    csv: Annotated[bool, o.option(RESULT, "Print a row per contender and position.")] = False,
    plot: Annotated[Path | None, o.option(RESULT, "Draw ms/step against position (.png, .svg).")] = None,
    quiet: Annotated[bool, o.option(RESULT, "Print the table, but no progress.", "-q")] = False,
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Measure the speed of profiles and other programs in turn, each in a process of its own.

    Without contenders: the profiles default (slide) and full, and transformers' DynamicCache.

        scope bench --prompt-file report.txt --prompt-tokens 1000 --positions 5000,8000 --budget 512
    """
    (asked,) = prompts_of(prompt, [prompt_file] if prompt_file else [])
    following = read_text(text, "--text") if text else asked.text
    if not profile and not peer:
        profile, peer = ["slide=default", "full"], ["dynamic"]
    common = overrides_of(**given)
    specs = contenders(profile, peer, common)
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two contenders are called {twice[0]!r}", f'name one of them: "NAME={twice[0]}"')
    first = baseline or names[0]
    if first not in names:
        raise UsageError(f"--baseline: there is no contender {first!r}{did_you_mean(first, names)}")
    if json and csv:
        raise UsageError("--json and --csv cannot be combined", "one of them goes to stdout")
    if apart and sequential:
        raise UsageError("--apart and --sequential cannot be combined")
    check_writable(output, plot, force)
    wanted = typed_positions(positions)
    if prompt_tokens is not None and prompt_tokens < 1:
        raise UsageError(f"--prompt-tokens {prompt_tokens}: at least 1")

    say = no_word if quiet else tell

    settings = load_profile("full", common).profile
    with opened_model(settings.model, offline, Phases(quiet, log=False), lanes) as opened:
        import torch

        from scope_cli.engine import roofline
    ids = opened.encode(asked.text, settings.prompt)
    ids = exactly(ids, prompt_tokens) if prompt_tokens is not None else ids
    at = positions_of(wanted, len(ids), max_new_tokens, burst * (rounds + 1), opened.geometry.context)
    known = exactly(list(opened.tokenizer(following)["input_ids"]), at[-1] - len(ids))
    course = Course(
        job=Job(
            model=opened.name,
            folder=str(opened.folder.path),
            prompt_tokens=len(ids),
            most_tokens=at[-1] + SPARE,
            lanes=lanes,
            threads=threads,
            device=str(opened.device),
            dtype=str(opened.dtype).removeprefix("torch."),
            load_in=opened.load_in,
        ),
        prompt=tuple(ids),
        known=tuple(known),
        positions=at,
        burst=burst,
        rounds=rounds,
        write=write,
        apart=apart,
        sequential=sequential,
        timeout_s=timeout,
    )
    check_room(opened, course, specs)
    if threads:
        torch.set_num_threads(threads)  # as the contenders do, none of whom is there yet
    limit = bandwidth * 1e9 if bandwidth else roofline.bandwidth(opened.device)
    say(f"the memory gives {limit / 1e9:.1f} GB/s")
    rows = [Standing(spec.name) for spec in specs]
    interrupted = False
    try:
        contest(specs, rows, course, say)
    except KeyboardInterrupt:
        tell("interrupted; what was measured until then:")
        interrupted = True

    lines = lines_of(rows, course, first, limit)
    for table in tables_of(lines, course):
        tables.show(table, sys.stderr)
        tell("")
    tell(f"x: tokens/s over those of {first} in the same round, the median (least to most)")
    for remark in remarks(rows):
        tell(remark)
    if said := verdict(lines, first):
        tell(f"verdict: {said}")
    result = report(lines, rows, course, first, sys.argv[1:])
    if json:
        print(as_json(result, indent=1))
    if csv:
        write_csv(sys.stdout, lines, rows)
    if output is not None:
        write_result(result, output)
    if plot is not None and lines:
        draw(lines, plot, f"{opened.name}, {course.job.dtype}, prompt {len(ids):,} tokens")
    raise typer.Exit(broken_off.exit_code if interrupted else 1 if any(row.failed for row in rows) else 0)


def contenders(profiles: list[str], peers: list[str], common: Typed) -> list[Spec]:
    """Every contender's command, checked as far as it can be without starting it."""
    specs = []
    for text in profiles:
        name, profile, words = parsed(text, "--profile")
        overrides, lanes = settings_of(words, "--profile")
        overrides = common.over(overrides)
        decode = load_profile(profile, overrides).profile.decode  # a problem is told now
        if (told := nothing_to_choose(decode, None)) is not None:
            tell(f"note: {name}: {told}")
        specs.append(Spec(name, worker("scope", profile, overrides), lanes))
    for text in peers:
        name, kind, words = parsed(text, "--peer")
        if kind in PEERS:
            overrides, lanes = settings_of(words, "--peer")
            overrides = {
                key: value for key, value in (common | overrides).items() if key.startswith("model.")
            }
            load_profile("full", overrides)
            specs.append(Spec(name, worker(kind, "full", overrides), lanes))
        elif name == " ".join([kind, *words]):
            hint = 'a command has the form "NAME=COMMAND"'
            raise UsageError(f"--peer: there is no {kind!r}{did_you_mean(kind, PEERS)}", hint)
        else:
            specs.append(Spec(name, (kind, *words)))
    return specs


def settings_of(words: list[str], option: str) -> tuple[dict[str, Any], int | None]:
    """KEY=VALUE words as overrides of a profile, and the lanes where they are among them."""
    lanes = None
    for word in words:
        if word.startswith("lanes="):
            value = word.removeprefix("lanes=")
            if not value.isdecimal() or int(value) < 1:
                raise UsageError(f"{option}: lanes is a number of at least 1, not {value!r}")
            lanes = int(value)
    return changes([word for word in words if not word.startswith("lanes=")], option), lanes


def worker(kind: str, profile: str, overrides: dict[str, Any]) -> tuple[str, ...]:
    import json

    spec = {"kind": kind, "profile": profile, "overrides": overrides}
    return (sys.executable, "-m", "scope_cli.measure.bench.worker", json.dumps(spec, allow_nan=False))


def exactly(ids: list[int], tokens: int) -> list[int]:
    """So many ids, cut or repeated from the start."""
    if tokens < 1 or not ids:
        raise UsageError(f"a text of {tokens} tokens cannot be made from one of {len(ids)}")
    return (ids * -(-tokens // len(ids)))[:tokens]


def typed_positions(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(one.replace("_", "")) for one in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--positions {text!r}: numbers such as 1500,5000") from error


def positions_of(
    asked: list[int] | None, prompt: int, new_tokens: int, room: int, context: int
) -> tuple[int, ...]:
    """Where the bursts end; each needs `room` tokens after the prompt."""
    if asked is None:
        asked = [prompt + max(room, new_tokens * part // 4) for part in (1, 2, 4)]
    at = sorted(set(asked))
    if at[0] < prompt + room:
        raise UsageError(
            f"position {at[0]:,} comes too early: the prompt has {prompt:,} tokens, the bursts take {room:,}",
            f"the first possible one is {prompt + room:,}; --prompt-tokens, --burst and --rounds change it",
        )
    if at[-1] > context - SPARE:
        raise UsageError(
            f"position {at[-1]:,} does not fit the model's context of {context:,} tokens",
            f"the last possible one is {context - SPARE:,}; --positions and --max-new-tokens change it",
        )
    return tuple(at)


def check_room(opened: "OpenedModel", course: Course, specs: list[Spec]) -> None:
    """Raises UsageError where the processes that live at the same time would not fit.

    One after the other, who does not fit says so itself, and the others are measured.
    """
    if course.sequential:
        return

    job, each = course.job, len(course.positions) if course.apart else 1
    output = {"sampling.max_new_tokens": job.most_tokens - job.prompt_tokens}
    whole = load_profile("full", {**output, "cache.kv": "plain"})  # the most that any of them holds
    plan = make_plan(whole, opened.geometry, job.prompt_tokens)
    chunk = whole.profile.prefill.chunk
    needed = each * sum(needs(opened.target, [plan], spec.lanes or job.lanes, chunk).total for spec in specs)
    free = free_bytes(opened.device)
    if needed > free:
        raise UsageError(
            f"the contenders may need {as_bytes(needed)} together, {opened.device} has {as_bytes(free)} free",
            "--sequential runs one after the other",
        )
