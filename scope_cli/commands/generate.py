"""scope generate: prompts in, their texts streamed to the terminal and to files."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scope_cli import tables, utf8
from scope_cli.commands import options as o
from scope_cli.errors import AuditError, ModelError, ScopeError, UsageError
from scope_cli.events import Failed, Finished
from scope_cli.signals import Interruption

if TYPE_CHECKING:
    from scope_cli.model import LoadedModel, OpenedModel
    from scope_cli.plan import RunPlan
    from scope_cli.profile import LoadedProfile
    from scope_cli.sinks.base import Sink
    from scope_cli.sinks.textfile import FileMode

PROMPT, OUTPUT = "Prompt", "Output"
AUDIT_HINT = "this is a bug in scope: the text may be wrong; please report it with the run record"


def generate_command(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads standard input.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        list[str],
        o.option(
            "--prompt-file",
            "-f",
            panel=PROMPT,
            help="Read a prompt from a file; - is standard input. Repeatable: they are written side by side.",
        ),
    ] = [],  # noqa: B006  typer copies it
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            "-n",
            min=1,
            rich_help_panel=PROMPT,
            help="Write so many texts for each prompt, the seeds counting up from --seed.",
        ),
    ] = 1,
    lanes: Annotated[
        int | None,
        o.option("--lanes", panel=PROMPT, help="Texts written side by side (all of them).", min=1),
    ] = None,
    system: Annotated[str | None, o.option("--system", "-s", panel=PROMPT, help="System message.")] = None,
    system_file: Annotated[
        str | None, o.option("--system-file", panel=PROMPT, help="Read the system message from a file.")
    ] = None,
    continue_text: Annotated[
        str | None,
        o.option("--continue-text", panel=PROMPT, help="How the answer begins: the model goes on behind it."),
    ] = None,
    continue_file: Annotated[
        str | None,
        o.option(
            "--continue-file", panel=PROMPT, help="Read that from a file, such as an output that stopped."
        ),
    ] = None,
    raw: Annotated[
        bool, o.option("--raw", panel=PROMPT, help="Feed the prompt as it is, without the chat template.")
    ] = False,
    output: Annotated[
        Path | None,
        o.option(
            "--output",
            "-o",
            panel=OUTPUT,
            help="Write the text to a file as well, as it comes; of several texts, FILE-1.txt and so on.",
        ),
    ] = None,
    append: Annotated[bool, o.option("--append", panel=OUTPUT, help="Add to the output file.")] = False,
    force: Annotated[bool, o.option("--force", panel=OUTPUT, help="Overwrite the output file.")] = False,
    json: Annotated[
        bool, o.option("--json", panel=OUTPUT, help="One JSON object per event on stdout.")
    ] = False,
    quiet: Annotated[
        bool, o.option("--quiet", "-q", panel=OUTPUT, help="Text and errors, nothing else.")
    ] = False,
    stats_file: o.StatsFile = None,
    metrics_port: o.MetricsPort = None,
    metrics_address: o.MetricsAddress = None,
    verbose: Annotated[
        bool,
        o.option("--verbose", panel=OUTPUT, help="At the end, how near to the memory's bandwidth it came."),
    ] = False,
    profile: o.Profile = "default",
    set_: o.Set = [],  # noqa: B006  typer copies it
    offline: o.Offline = False,
    model: o.Model = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    load_in: o.LoadIn = None,
    template_arg: o.TemplateArg = [],  # noqa: B006
    allow_control_tokens: o.AllowControlTokens = False,
    compile: o.Compile = None,
    threads: o.Threads = None,
    context: o.Context = None,
    strategy: o.Strategy = None,
    prefill: o.Prefill = None,
    prefill_budget: o.PrefillBudget = None,
    scorer: o.Scorer = None,
    budget: o.Budget = None,
    recent: o.Recent = None,
    interval: o.Interval = None,
    max_new_tokens: o.MaxNewTokens = None,
    min_new_tokens: o.MinNewTokens = None,
    ignore_eos: o.IgnoreEos = False,
    stop: o.Stop = [],  # noqa: B006
    stop_token: o.StopToken = [],  # noqa: B006
    stop_on_loop: o.StopOnLoop = False,
    seed: o.Seed = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
) -> None:
    """Write a long text, or several side by side: prompts, the SCOPE cache, one model.

    Text goes to stdout as it comes, everything else to stderr.

        scope generate --prompt-file report.txt --budget 2048
    """
    texts = [text for text in prompts_of(prompt, prompt_file) for _ in range(samples)]
    if system is not None and system_file is not None:
        raise UsageError("--system and --system-file exclude each other")
    system = read_text(system_file, "--system-file") if system_file else system
    if continue_text is not None and continue_file is not None:
        raise UsageError("--continue-text and --continue-file exclude each other")
    continue_text = read_text(continue_file, "--continue-file") if continue_file else continue_text
    typed = o.overrides(
        set_, template_arg, continue_text=continue_text, allow_control_tokens=allow_control_tokens,
        model=model, dtype=dtype, device=device, load_in=load_in, compile=compile, threads=threads,
        context=context, strategy=strategy, scorer=scorer, budget=budget, recent=recent, interval=interval,
        max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, ignore_eos=ignore_eos,
        stop=stop, stop_token=stop_token, stop_on_loop=stop_on_loop, seed=seed,
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, system=system, raw=raw,
        prefill=prefill, prefill_budget=prefill_budget,
    )  # fmt: skip
    if append and force:
        raise UsageError("--append and --force exclude each other")

    from scope_cli.profile import load_profile

    settings = load_profile(profile, typed)
    mode: FileMode = "append" if append else "overwrite" if force else "new"
    sinks = open_sinks(output, mode, json, quiet, len(texts))
    sinks += o.live_sinks(stats_file, metrics_port, metrics_address)
    try:
        code = run(settings, texts, samples, lanes, sinks, offline, quiet, verbose)
    finally:
        for sink in sinks:
            sink.close()
    raise typer.Exit(code)


def prompts_of(argument: str | None, files: list[str]) -> list[str]:
    """The prompts from the one place they were given in."""
    if argument is not None and files:
        raise UsageError("a prompt and --prompt-file exclude each other")
    if argument is None and not files:
        raise UsageError(
            "there is no prompt", "give it as an argument, with --prompt-file FILE, or - for standard input"
        )
    if files.count("-") > 1:
        raise UsageError("--prompt-file - was given twice: standard input can be read once")
    if argument is not None and argument != "-":
        named = [("", argument)]
    else:
        named = [(file, read_text(file, "--prompt-file")) for file in files or ["-"]]
    for file, text in named:
        if not text.strip():
            raise UsageError("the prompt is empty", f"{file} has nothing but white space" if file else "")
    return [text for _, text in named]


def read_text(file: str, option: str) -> str:
    """A UTF-8 file, or standard input for "-"; says where it is not UTF-8."""
    name = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(
            f"{option}: cannot read {name}: {error.strerror}", "give a text file in UTF-8"
        ) from error
    try:
        return utf8.decode(content)
    except utf8.NotText as error:
        raise UsageError(f"{option}: {name} {error}", error.hint("" if file == "-" else file)) from error


def open_sinks(output: Path | None, mode: "FileMode", json: bool, quiet: bool, outputs: int) -> "list[Sink]":
    """Where the events go; a file that cannot be written is known before the model is loaded."""
    from rich.console import Console

    from scope_cli.sinks.jsonl import JsonLines
    from scope_cli.sinks.plain import PlainText
    from scope_cli.sinks.record import RunRecord
    from scope_cli.sinks.several import InOrder, Only
    from scope_cli.sinks.summary import Summary
    from scope_cli.sinks.terminal import Terminal
    from scope_cli.sinks.textfile import TextFile

    sinks: list[Sink] = []
    for prompt, file in enumerate(outputs_of(output, outputs)):
        sinks.append(Only(prompt, TextFile(file, mode)))
        if file.is_file():  # beside a pipe or a device there is no place for a record
            sinks.append(Only(prompt, RunRecord(file)))
    if json:
        sinks.append(JsonLines(sys.stdout))
    elif sys.stdout.isatty():
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that cannot show a character shows a ?
        sinks.append(InOrder(Terminal(Console(), stats=not quiet)))
    else:
        sinks.append(InOrder(PlainText(sys.stdout)))
    if not quiet:
        sinks.append(Summary(Console(stderr=True)))
    return sinks


def outputs_of(output: Path | None, outputs: int) -> list[Path]:
    """story.txt; of several, story-1.txt, story-2.txt, ..."""
    if output is not None and str(output) == "-":
        raise UsageError("--output - is no file: stdout has the text anyway", "leave --output away")
    if output is None or outputs == 1:
        return [output] if output else []
    return [output.with_name(f"{output.stem}-{number + 1}{output.suffix}") for number in range(outputs)]


def run(
    settings: "LoadedProfile",
    texts: list[str],
    samples: int,
    lanes: int | None,
    sinks: "list[Sink]",
    offline: bool,
    quiet: bool,
    verbose: bool = False,
) -> int:
    """Open the model, plan, load, generate; the exit code. `texts` has every prompt `samples` times."""
    say = no_word if quiet else tell

    from scope_cli.generate import generate, new_work
    from scope_cli.model import open_model
    from scope_cli.plan import together

    profile = settings.profile
    side_by_side = min(lanes or len(texts), len(texts))
    opened = open_model(profile.model, offline, say, side_by_side)
    opened.stops(profile.sampling)  # what never comes is told now
    works = []
    for index, text in enumerate(texts):
        prompt = opened.chat.prompt(text, profile.prompt)
        works.append(new_work(settings, opened.geometry, prompt.ids, index % samples, prompt.notes))
    plans = [work.plan for work in works]
    shape = together(plans, side_by_side)
    check_memory(opened, plans, shape.lanes)
    loaded = opened.load()
    ends: list[Finished] = []
    failures: list[Failed] = []
    with Interruption() as interruption:
        for event in generate(loaded, profile, works, shape, interruption, say, each_alone=True):
            for sink in list(sinks):
                try:
                    sink.receive(event)
                except BrokenPipeError:  # the reader went away: end in good order, and quietly
                    interruption.signal = signal.SIGPIPE
                    sinks.remove(sink)
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is buffered
            if isinstance(event, Finished):
                if not event.audit.passed:
                    raise AuditError("the audit failed: " + "; ".join(event.audit.problems), AUDIT_HINT)
                ends.append(event)
            elif isinstance(event, Failed):
                failures.append(event)
    if failures and not interruption.exit_code:
        first = failures[0]
        which = f"output {first.prompt + 1} of {len(works)}: " if len(works) > 1 else ""
        raise ScopeError(f"{which}{first.error}", first.hint)
    if verbose:
        tell(str(loaded.self_test))
    if verbose and ends:
        tell(limit_of(loaded, ends, shape.lanes))
    return interruption.exit_code


def limit_of(loaded: "LoadedModel", ends: list[Finished], lanes: int) -> str:
    """The last line of the summary: the longest output beside the memory's bandwidth, measured now."""
    from scope_cli.roofline import bandwidth, limit_line, step_weight_bytes

    longest = max(ends, key=lambda end: end.output_tokens)
    weight_bytes = step_weight_bytes(loaded.model, lanes)
    return f"limit:     {limit_line(longest, weight_bytes, lanes, bandwidth(loaded.device))}"


def tell(line: str) -> None:
    """On stderr, folded between words where a terminal shows it."""
    print(tables.fitted(line, sys.stderr), file=sys.stderr)


def no_word(line: str) -> None:
    pass


def check_memory(opened: "OpenedModel", plans: "list[RunPlan]", lanes: int) -> None:
    """Raises ModelError, before any weight is read, where weights and cache do not fit what is free."""
    from scope_cli.memory import free_bytes
    from scope_cli.plan import peak_bytes
    from scope_cli.units import as_bytes

    cache = peak_bytes(plans, lanes, opened.geometry, opened.dtype.itemsize)
    weights, loading = opened.weight_bytes, opened.loading_bytes
    needed, free = max(weights + cache, loading), free_bytes(opened.device)
    if needed > free:
        cheaper = "a smaller --budget or --max-new-tokens"
        if max(weights, loading) > cache:
            cheaper = "--load-in 4bit"
        elif lanes > 1:
            cheaper = f"--lanes {lanes // 2}"
        while_loading = f", {as_bytes(loading)} while it is loaded" if loading else ""
        raise ModelError(
            f"not enough memory: {opened.name} needs {as_bytes(needed)} "
            f"(weights {as_bytes(weights)}, cache {as_bytes(cache)}{while_loading}), "
            f"{opened.device} has {as_bytes(free)} free",
            f"try {cheaper}, or a smaller model",
        )
