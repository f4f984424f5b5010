"""scope evaluate recall: seeds in, how well each profile answers what it was told out."""

from pathlib import Path
from typing import Annotated

import typer

from scope_cli.commands import options as o
from scope_cli.commands.evaluate import shared as s
from scope_cli.commands.evaluate.texts import plain_ids
from scope_cli.commands.io import check_writable, tell
from scope_cli.commands.overrides import overrides_of
from scope_cli.commands.variants import Budgets, Profiles, variants
from scope_cli.console.progress import Progress
from scope_cli.errors import UsageError
from scope_cli.measure.evaluate.probes import KINDS, make_probe
from scope_cli.measure.evaluate.results import identity
from scope_cli.names import did_you_mean


@o.with_settings(*o.MEASURED, "raw")
def recall_command(
    kind: Annotated[
        list[str], typer.Option(help="output-fact, prompt-fact, list, copy; all. Repeatable.")
    ] = [],  # noqa: B006
    tokens: Annotated[int, typer.Option(min=48, help="Length of a probe's output.")] = 768,
    seeds: Annotated[int, typer.Option(min=1, help="Probes of each kind.")] = 3,
    profile: Profiles = [],  # noqa: B006
    budgets: Budgets = None,
    output: s.Output = None,
    force: s.Force = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw a plot of the first kind: a .png, .svg or .pdf file.")
    ] = None,
    json: s.Json = False,
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Ask what a policy may have forgotten: facts of the output and the prompt, a list, a long copy.

    scope evaluate recall -p full -p default -p "default scorer=recency" --budget 256
    """
    common = overrides_of(**given)
    chosen = variants(profile, budgets, common, default=["full", "default"])
    check_writable(output, plot, force)

    kinds = list(dict.fromkeys(kind)) or list(KINDS)
    for one in kinds:
        if one not in KINDS:
            raise UsageError(f"--kind: there is no {one!r}{did_you_mean(one, KINDS)}")

    from scope_cli.measure.evaluate.recall import AskedModel, recall

    opened = s.open_for(chosen, offline)
    what = {"kinds": kinds, "tokens": tokens, "seeds": list(range(seeds))}
    result = s.start("recall", opened, chosen, what)
    loaded, chosen = s.load(opened, chosen)
    settings = chosen[0].settings.profile.prompt
    progress = Progress(len(kinds) * seeds)
    for one in kinds:
        for seed in range(seeds):
            probe = make_probe(
                one,
                seed,
                tokens,
                lambda text: opened.encode(text, settings),
                lambda text: plain_ids(opened, text),
            )
            asked = AskedModel.of(loaded, probe)
            asking = f"{len(probe.questions)} questions, {len(probe.output_ids):,} tokens"
            tell(f"{one}, seed {seed}: {asking}{progress.left(' ({} left)')}")
            for variant in chosen:
                found = recall(asked, variant.for_prompt(len(probe.prompt_ids)))
                row = {"probe_id": identity(probe.prompt_ids, probe.output_ids), **found.as_dict()}
                s.add_row(result, variant, row, output)
            progress.one_more()
    if plot is not None:
        from scope_cli.measure.evaluate import plots

        plots.recall_by_gap(s.rows_of(result), kinds[0], plot)
    s.show(result, json)
