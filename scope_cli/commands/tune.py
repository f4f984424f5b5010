"""scope tune: a prompt and a limit in, the profile with the smallest budget that stays below it out."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from scope_cli.commands import options as o
from scope_cli.commands.evaluate.texts import text_of_file, text_of_prompt
from scope_cli.commands.io import check_writable, read_text, tell
from scope_cli.commands.overrides import overrides_of
from scope_cli.commands.variants import Variant
from scope_cli.console import tables
from scope_cli.console.progress import Progress
from scope_cli.console.tables import Table
from scope_cli.engine.plan import packable
from scope_cli.errors import UsageError, WriteError
from scope_cli.formats.base import SHORT
from scope_cli.measure.evaluate import tune as search
from scope_cli.measure.evaluate.tune import Tuned
from scope_cli.models.opening import opened_model
from scope_cli.settings.find import parse_yaml
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.units import as_ratio

TRIED = {"decode.strategy": "--strategy", "decode.scorer": "--scorer", "cache.kv": "--kv"}


@o.with_settings(*o.MEASURED, "raw", "seed")
def tune_command(
    output: Annotated[Path, typer.Option("-o", help="The profile to write (YAML).")] = Path("tuned.yaml"),
    prompt_file: Annotated[
        str | None, typer.Option("-f", help="Your prompt; the full cache writes the output to tune for.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("-t", help="Or a text: its first 256 tokens are the prompt.")
    ] = None,
    max_gap: Annotated[float, typer.Option(help="The largest mean KL to the full cache, in nats.")] = 0.02,
    tokens: Annotated[int, typer.Option(min=64, help="Length of the output that is measured.")] = 1024,
    sure: Annotated[
        bool, typer.Option(help="The upper end of the 95% interval, too, must stay below the limit.")
    ] = False,
    strategy: Annotated[
        list[str], typer.Option(help="Strategies to try; slide, adaptive, discontinuous.")
    ] = [],  # noqa: B006  typer copies it
    scorer: Annotated[list[str], typer.Option(help="Scorers to try, by name or in YAML; six of them.")] = [],  # noqa: B006
    kv: Annotated[list[str], typer.Option(help="Slot formats to try at the end; int8 and k8v4.")] = [],  # noqa: B006
    force: Annotated[bool, typer.Option(help="Overwrite the profile.")] = False,
    profile: o.Profile = "default",
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Find the smallest budget that keeps your own text close to the full cache's.

    scope tune --prompt-file report.txt --max-gap 0.02 -o mine.yaml
    """
    if (prompt_file is None) == (text is None):
        raise UsageError(
            "give either --prompt-file FILE or --text FILE", "it is what the budget is tuned for"
        )
    if not max_gap > 0:
        raise UsageError(f"--max-gap must be above 0, not {max_gap}", "0.02 nats is a small difference")
    check_writable(output, None, force)
    common = overrides_of(**given)

    asked = read_text(prompt_file, "--prompt-file") if prompt_file else read_text(text or "-", "--text")

    def load(keys: dict[str, Any]) -> LoadedProfile:
        settings = load_profile(profile, common.over({"decode.recent": "auto", **keys}, TRIED))
        return settings.with_slots("plain")  # formats are tried by themselves

    strategies = tuple(strategy) or search.STRATEGIES
    scorers = tuple(_typed_scorer(one) for one in scorer) or search.SCORERS
    if "full" in strategies:
        raise UsageError("--strategy full has no budget to tune", "try slide, adaptive or discontinuous")
    for keys in search.pairs(strategies, scorers):
        load({**keys, "decode.budget": 4096})  # every mistake is known before the model is
    typed_forms = [load({"cache.kv": form}).profile.cache for form in kv]
    settings = load({})
    with opened_model(settings.profile.model, offline) as opened:
        from scope_cli.measure.evaluate.fidelity import Reference
        from scope_cli.measure.evaluate.statistics import as_text

        for typed in typed_forms:
            packable(typed, opened.geometry)
        forms = tuple(kv) or tuple(
            form
            for form in search.FORMS
            if not any(SHORT[form].problem(layer.head_dim) for layer in opened.geometry.layers)
        )
        loaded = opened.load()
    if prompt_file is not None:
        known = text_of_prompt(loaded, Variant(profile, settings), prompt_file, asked, tokens)
    else:
        known = text_of_file(opened, text or "-", asked, 256, tokens)
    reference = Reference.of(loaded, known)
    progress = Progress(search.most_tried(len(known.output_ids), strategies, scorers, forms))

    def told(tried: search.Tried) -> None:
        progress.one_more()
        left = progress.left(" ({} left at most)")
        tell(f"  {_words(tried.keys)}: KL {as_text(tried.fidelity.kl)}{left}")

    found = search.tune(
        reference, load, max_gap, strategies=strategies, scorers=scorers, forms=forms, sure=sure, told=told
    )
    tables.show(as_table(found))
    if found.best is None:
        raise UsageError(
            f"no budget below the output's {len(known.output_ids):,} tokens keeps the gap under {max_gap}",
            "allow more with --max-gap, or keep the full cache",
        )
    best = found.best
    smaller = [budget for budget in found.grid if budget < best.budget]
    held = best.fidelity.bytes
    tell(
        f"verdict: {_words(best.keys)}: KL {as_text(best.fidelity.kl)} against a limit of {max_gap}, on "
        f"{len(known.output_ids):,} tokens of one text, with {as_ratio(held.held_mean, held.full_mean)} of "
        "the full cache's bytes"
    )
    upper = best.fidelity.kl[2]
    if upper is None:
        tell("the text is too short for an interval: this is a guess")
    elif upper > max_gap:
        tell(f"not sure: the interval reaches {upper:.4f}; --sure asks for all of it, --tokens N narrows it")
    if smaller:
        tell(f"the next smaller budget of the grid, {smaller[-1]}, is over the limit")
    write_profile(output, load(best.keys), best, known.name, max_gap)
    tell(f"written: {output}; scope generate --profile {output} ...")


def _typed_scorer(text: str) -> Any:
    """A name, or a mapping of a name and options."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f"--scorer: {text!r} is not a YAML value", "for example --scorer '{name: window, window: 32}'"
        ) from error


def as_table(found: Tuned) -> Table:
    from scope_cli.measure.evaluate.statistics import as_text

    heads = [
        "budget",
        "strategy",
        "scorer",
        "slots",
        "KL to full (nats)",
        "same top token",
        "held of full",
        "",
    ]
    rows = []
    for tried in sorted(found.tried, key=lambda one: (one.budget, one.gap)):
        kl, top1, held = tried.fidelity.kl, tried.fidelity.top1, tried.fidelity.bytes
        rows.append(
            [
                str(tried.budget), tried.keys["decode.strategy"], _scorer(tried.keys),
                str(tried.settings.profile.cache.form), as_text(kl), as_text(top1, 3),
                as_ratio(held.held_mean, held.full_mean), "chosen" if tried is found.best else "",
            ]
        )  # fmt: skip
    return Table(heads, rows, names=4)


def write_profile(output: Path, settings: LoadedProfile, best: Any, text: str, max_gap: float) -> None:
    """The whole profile in force, with a comment that says what was measured."""
    from scope_cli.measure.evaluate.statistics import as_text

    tree = settings.profile.as_dict()
    tree["description"] = f"tuned: {_words(best.keys)}, for a gap of at most {max_gap}"
    head = (
        f"# Written by scope tune: mean KL to the full cache {as_text(best.fidelity.kl)} nats over "
        f"{best.fidelity.output_tokens} tokens of\n# {text}; the limit was {max_gap}.\n"
    )
    try:
        output.write_text(head + yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise WriteError(output, error) from error


def _words(keys: dict[str, Any]) -> str:
    slots = f", slots {keys['cache.kv']}" if "cache.kv" in keys else ""
    return f"{keys['decode.strategy']}, {_scorer(keys)}, budget {keys['decode.budget']}{slots}"


def _scorer(keys: dict[str, Any]) -> str:
    chosen = keys["decode.scorer"]
    if isinstance(chosen, str):
        return chosen
    options = ", ".join(f"{key} {value}" for key, value in chosen.items() if key != "name")
    return f"{chosen['name']} ({options})"
