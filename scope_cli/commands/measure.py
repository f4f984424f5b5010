"""scope profile: runs measured one after the other, each in a process of its own."""

import sys
from contextlib import nullcontext
from functools import partial

from rich.console import Console

from scope_cli.commands.io import tell
from scope_cli.commands.shown import Cases, Display
from scope_cli.console.progress import Progress
from scope_cli.errors import ModelError
from scope_cli.measure.profiling.footprint import changed, plan_of
from scope_cli.measure.profiling.pages import Page
from scope_cli.measure.profiling.report import as_csv, result_rows, result_table
from scope_cli.measure.profiling.result import Result, as_json
from scope_cli.measure.profiling.runner import run_job
from scope_cli.measure.profiling.source import source_of
from scope_cli.measure.profiling.terminal import draw
from scope_cli.measure.profiling.worker import Measurement
from scope_cli.models.opening import check_model
from scope_cli.models.shapes import ModelShape
from scope_cli.settings.load import LoadedProfile

LONGEST_DEFAULT = 1024  # output tokens that are measured where no length was typed


def show_measured(
    cases: Cases, text: str | None, prompt_tokens: int | None, offline: bool, shown: Display
) -> int:
    results = measure(cases, text, prompt_tokens or 1000, offline, shown.quiet)
    if shown.json:
        print(as_json(results))
    elif shown.csv:
        print(as_csv(result_rows(results)), end="")
    if not shown.quiet:
        shown.table(result_table(results, shown.width))
        for note in dict.fromkeys(note for one in results for note in one.notes):
            tell(f"note: {note}")
    shown.draw(Page.of_results(results), partial(draw, results))
    return 5 if any(one.audit for one in results) else 0


def measure(cases: Cases, text: str | None, prompt_tokens: int, offline: bool, quiet: bool) -> list[Result]:
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
            Measurement(
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


def check_lengths(settings: LoadedProfile, text: str | None, prompt_tokens: int) -> None:
    """What cannot be run is said before a process is started, where the model can be planned."""
    try:
        shape: ModelShape | None = source_of(settings.profile.model.name).shape(
            settings.profile.model.context
        )
    except ModelError:
        return
    if text is None and shape is not None:
        plan_of(settings, shape, prompt_tokens)
