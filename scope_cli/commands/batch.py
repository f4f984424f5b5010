"""scope batch: a directory of prompts in, one text each out; a job that survives."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from scope_cli.batch.database import NAME
from scope_cli.batch.inputs import PromptFrame
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.options import Options
from scope_cli.commands import options as o
from scope_cli.commands.io import read_into, read_text, tell
from scope_cli.commands.overrides import notes_on, overrides_of
from scope_cli.console.safe import printable
from scope_cli.errors import UsageError
from scope_cli.machine.installed import need
from scope_cli.models.opening import check_model
from scope_cli.settings.load import load_profile
from scope_cli.settings.schedules import nothing_to_choose

PROMPTS, JOB, CLUSTER, SHOWN = "Prompts", "Job", "Cluster", "What is shown"


@o.with_settings(*(name for name in o.SETTINGS if name != "continue_text"))
def batch_command(
    prompts: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPTS", help="A directory, a .jsonl file, or - for JSON lines.", show_default=False
        ),
    ] = None,
    output_dir: Annotated[Path | None, o.option(JOB, "Where texts, records and the ledger go.", "-o")] = None,
    glob: Annotated[list[str], o.option(PROMPTS, "Which files of the directory to read. Repeatable.")] = [],  # noqa: B006  typer copies it
    prompt_template: Annotated[
        str | None, o.option(PROMPTS, "A template: a file in which {text} stands for each prompt.")
    ] = None,
    system_file: Annotated[str | None, o.option(PROMPTS, "Read the system message from a file.")] = None,
    suffix: Annotated[str, o.option(PROMPTS, "Text to append to every prompt.")] = "",
    lanes: Annotated[str, o.option(JOB, "Prompts at once: auto (what fits, at most 32) or N.")] = "auto",
    order: Annotated[
        str, o.option(JOB, "Which prompts come first: longest (the default) or input.")
    ] = "longest",
    limit: Annotated[int | None, o.option(JOB, "Run at most this many prompts this time.", min=1)] = None,
    row_timeout: Annotated[
        float | None, o.option(JOB, "Most seconds that an output may take.", min=0.001)
    ] = None,
    fail_fast: Annotated[bool, o.option(JOB, "Stop at the first prompt that fails.")] = False,
    retry_failed: Annotated[bool, o.option(JOB, "Run failed prompts again.")] = False,
    restart: Annotated[bool, o.option(JOB, "Start over, and overwrite the job's own outputs.")] = False,
    accept_changed_profile: Annotated[
        bool, o.option(JOB, "Continue with other settings; finished texts stay as they are.")
    ] = False,
    join: Annotated[bool, o.option(JOB, "Share the work of a process that uses the same folder.")] = False,
    engine: Annotated[
        str, o.option(CLUSTER, "Where to run: local (the default) or ray, a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None, o.option(CLUSTER, "ray://HOST:10001 or auto (default: a local cluster).")
    ] = None,
    workers: Annotated[
        int | None, o.option(CLUSTER, "Models at once (default: one per GPU, else per CPU core).", min=1)
    ] = None,
    checkpoint_every: o.CheckpointEvery = None,
    no_checkpoint: Annotated[
        bool, o.option(JOB, "Write half-written texts again from their beginning.")
    ] = False,
    dry_run: Annotated[bool, o.option(JOB, "Show what would run, and write nothing.")] = False,
    status: Annotated[
        Path | None, o.option(SHOWN, "Show the progress of a job, and exit.", metavar="OUT")
    ] = None,
    json: Annotated[bool, o.option(SHOWN, "With --status: print JSON.")] = False,
    report: Annotated[bool, o.option(SHOWN, "Write OUT/report.html at the end (or with --status).")] = False,
    log_every: Annotated[float, o.option(SHOWN, "Seconds between two lines in a log (30).", min=0.1)] = 30.0,
    quiet: Annotated[bool, o.option(SHOWN, "Print nothing but failures and errors.", "-q")] = False,
    profile: o.Profile = "default",
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Write a text for each of many prompts, several at once; a job can be stopped and resumed.

    The same command again continues the job.

        scope batch prompts/ --output-dir texts --budget 2048
    """
    if report:
        need("matplotlib", "--report")
    if status is not None:
        if prompts is not None or output_dir is not None:
            raise UsageError("--status takes the output folder and nothing else", "scope batch --status OUT")
        show_status(status, json, report)
        raise typer.Exit(0)
    if prompts is None or output_dir is None:
        missing = [
            name for name, given in (("PROMPTS", prompts), ("--output-dir", output_dir)) if given is None
        ]
        told = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        raise UsageError(told, "scope batch PROMPTS --output-dir OUT")
    if order not in ("longest", "input"):
        raise UsageError(f"--order must be longest or input, not {order!r}")
    if engine not in ("local", "ray"):
        raise UsageError(f"--engine must be local or ray, not {engine!r}")
    if engine == "local" and (ray_address is not None or workers is not None):
        raise UsageError("--ray-address and --workers need --engine ray")
    if json:
        raise UsageError("--json needs --status", "results.jsonl in the output folder has every result")
    for one, other, named in (
        (restart, join, "--restart and --join"),
        (dry_run, join, "--dry-run and --join"),
        (restart, accept_changed_profile, "--restart and --accept-changed-profile"),
    ):
        if one and other:
            raise UsageError(f"{named} cannot be combined")
    read_into(given, "system", system_file, "--system-file")
    typed = overrides_of(**given)

    from scope_cli.batch.session import run

    settings = load_profile(profile, typed)
    nothing = nothing_to_choose(settings.profile.decode, settings.profile.sampling.max_new_tokens)
    notes = [*notes_on(profile, settings), *([] if nothing is None else [nothing])]
    for note in [] if quiet else notes:
        tell(f"note: {note}")
    check_model(settings.profile.model)
    code = run(
        Options(
            prompts=prompts,
            out=output_dir,
            globs=tuple(glob),
            settings=settings,
            frame=PromptFrame(template_of(prompt_template), suffix),
            lanes=lanes_of(lanes),
            order="input" if order == "input" else "longest",
            limit=limit,
            row_timeout=row_timeout,
            fail_fast=fail_fast,
            retry_failed=retry_failed,
            restart=restart,
            accept_changed=accept_changed_profile,
            join=join,
            dry_run=dry_run,
            report=report,
            checkpoint_every=checkpoint_every,
            no_checkpoint=no_checkpoint,
            log_every=log_every,
            quiet=quiet,
            offline=offline,
            engine="ray" if engine == "ray" else "local",
            ray_address=ray_address,
            workers=workers,
        )
    )
    raise typer.Exit(code)


def lanes_of(text: str) -> int | None:
    """A number, or None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--lanes must be auto or a number from 1 up, not {text!r}")
    return int(text)


def template_of(file: str | None) -> str | None:
    if file is None:
        return None
    template = read_text(file, "--prompt-template")
    if "{text}" not in template:
        raise UsageError(f"--prompt-template: {file} has no {{text}} in it", "that is where each prompt goes")
    return template


def show_status(out: Path, json: bool, report: bool) -> None:
    from scope_cli.batch.status import print_status, status_json

    if not (out / NAME).is_file():
        raise UsageError(f"there is no job in {out}", f"looked for {out / NAME}")
    ledger = Ledger(out, read_only=True)
    if report:
        from scope_cli.batch.report import write_report

        print(printable(f"wrote {write_report(ledger, out)}"), file=sys.stderr)
    if json:
        print(status_json(ledger, out))
    else:
        print_status(ledger, out)
