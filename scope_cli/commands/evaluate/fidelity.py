"""scope evaluate fidelity: known texts in, each profile's distance from the full cache out."""

from pathlib import Path
from typing import Annotated

import typer

from scope_cli.commands import options as o
from scope_cli.commands.evaluate import shared as s
from scope_cli.commands.evaluate.texts import read_run, text_of_file, text_of_prompt, text_of_run
from scope_cli.commands.io import check_writable, read_text, tell
from scope_cli.commands.overrides import overrides_of
from scope_cli.commands.variants import Budgets, Profiles, variants
from scope_cli.console.progress import Progress
from scope_cli.errors import UsageError
from scope_cli.measure.evaluate.results import identity

PROMPT_TOKENS = 256  # of a text: what stands for the prompt, if it is not said


@o.with_settings(*o.MEASURED, "raw", "seed")
def fidelity_command(
    text: Annotated[list[str], typer.Option("-t", help="A text to measure on, or - . Repeatable.")] = [],  # noqa: B006  typer copies it
    run: Annotated[
        Path | None, typer.Option(help="A run's own output: OUT.run.json of `scope generate -o OUT`.")
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option("-f", help="The full cache writes an output to measure on; the prompt of --run."),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="With --text: its first tokens are the prompt.")
    ] = PROMPT_TOKENS,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Output tokens to measure: all; 1024 with --prompt-file.")
    ] = None,
    profile: Profiles = [],  # noqa: B006
    budgets: Budgets = None,
    output: s.Output = None,
    force: s.Force = False,
    plot: s.Plot = None,
    json: s.Json = False,
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Feed a known text through the full cache and through each profile: KL, agreement, perplexity, bytes.

    scope evaluate fidelity --text book.txt -p default -p "default scorer=window" --budget 256,512
    """
    common = overrides_of(**given)
    chosen = variants(profile, budgets, common, default=["default"])
    check_writable(output, plot, force)
    if [bool(text), run is not None, prompt_file is not None and run is None].count(True) != 1:
        raise UsageError(
            "give --text FILE, or --prompt-file FILE, or --run RUN.json with the run's --prompt-file",
            "the text is what every profile is measured on",
        )
    if run is not None and prompt_file is None:
        raise UsageError("--run needs the run's prompt as well", "add --prompt-file FILE")

    asked = read_text(prompt_file, "--prompt-file") if prompt_file is not None else ""
    contents = [(file, read_text(file, "--text")) for file in text]
    written = read_run(run) if run is not None else None

    from scope_cli.measure.evaluate.fidelity import Reference, measure

    opened = s.open_for(chosen, offline)
    known_texts = [text_of_file(opened, file, content, prompt_tokens, tokens) for file, content in contents]
    if written is not None:
        known_texts = [text_of_run(opened, written, asked, tokens)]
    result = s.start("fidelity", opened, chosen, {"prompt_tokens": prompt_tokens, "tokens": tokens})
    loaded, chosen = s.load(opened, chosen)
    if prompt_file is not None and run is None:
        known_texts = [text_of_prompt(loaded, chosen[0], prompt_file, asked, tokens or 1024)]
    progress = Progress(len(known_texts) * (1 + len(chosen)))  # the full cache goes first
    for known in known_texts:
        tell(f"{known.name}: {len(known.prompt_ids):,} and {len(known.output_ids):,} tokens")
        reference = Reference.of(loaded, known)
        progress.one_more()
        for variant in chosen:
            found = measure(reference, variant.for_prompt(len(known.prompt_ids)))
            row = {"text_id": identity(known.prompt_ids, known.output_ids), **found.as_dict()}
            s.add_row(result, variant, row, output)
            progress.one_more()
            said = f"KL {found.kl[0]:.4f}, same top token {found.top1[0]:.3f}"
            tell(f"  {variant.name}: {said}{progress.left(' ({} left)')}")
    if plot is not None:
        from scope_cli.measure.evaluate import plots

        plots.agreement(s.rows_of(result), plot)
    s.show(result, json)
