"""scope evaluate claims: a prompt in, the paper's two claims tested on it out."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from scope_cli.commands import options as o
from scope_cli.commands.evaluate.shared import (
    Json,
    Output,
    Plot,
    add_row,
    check_writable,
    open_for,
    show,
    start,
    write,
)
from scope_cli.commands.evaluate.texts import text_of_prompt
from scope_cli.commands.generate import read_text, tell
from scope_cli.commands.variants import Variant, variants
from scope_cli.errors import UsageError


def claims_command(
    prompt_file: Annotated[
        str, typer.Option("--prompt-file", "-f", help="The full cache writes an output to measure on.")
    ],
    tokens: Annotated[int, typer.Option("--tokens", min=256, help="Length of that output.")] = 2048,
    share: Annotated[
        list[str], typer.Option("--share", help="What stays of the prompt, e.g. 50%. Repeatable.")
    ] = ["25%", "50%"],  # noqa: B006
    top: Annotated[int, typer.Option("--top", min=1, help="How many tokens are heavy hitters.")] = 64,
    output: Output = None,
    plot: Plot = None,
    json: Json = False,
    set_: o.Set = [],  # noqa: B006
    offline: o.Offline = False,
    model: o.Model = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    load_in: o.LoadIn = None,
    raw: o.Raw = False,
    seed: o.Seed = None,
) -> None:
    """The paper's two claims on your prompt: what a compressed prompt costs, and how fast attention moves on.

    scope evaluate claims --prompt-file report.txt --tokens 2048
    """
    common = o.overrides(set_, model=model, dtype=dtype, device=device, load_in=load_in, raw=raw, seed=seed)
    chosen = variants([], None, common, default=["default"])
    check_writable(output, plot)
    asked = read_text(prompt_file, "--prompt-file")

    from scope_cli.settings.load import load_profile

    shares = tuple(dict.fromkeys(share))
    for one in shares:
        load_profile("full", {"prefill.method": "snapkv", "prefill.budget": one})  # refuses what is no share

    from scope_cli.console.progress import Progress
    from scope_cli.console.tables import Table
    from scope_cli.measure.evaluate import claims
    from scope_cli.measure.evaluate.fidelity import Reference, measure
    from scope_cli.measure.evaluate.results import identity
    from scope_cli.measure.evaluate.statistics import as_text

    opened = open_for(chosen, offline)
    profile = chosen[0].settings.profile
    prompt_tokens, least = len(opened.encode(asked, profile.prompt)), claims.least_for_drift(top)
    pairs = list(claims.equal_bytes(prompt_tokens, tokens, shares, profile.prefill.window))
    few = []
    if not pairs:
        few.append(
            f"{tokens:,} tokens are too few for equal bytes: what {', '.join(shares)} of a prompt of "
            f"{prompt_tokens:,} tokens saves is more than an output of that length can"
        )
    if tokens < least:
        few.append(f"{tokens:,} tokens are too few to see how attention moves on, which takes {least:,}")
    if len(few) == 2:
        longest = max(claims.tokens_of(one, prompt_tokens, profile.prefill.window) for one in shares)
        raise UsageError(
            f"there is nothing to measure: {'; '.join(few)}",
            f"--tokens {min(least, prompt_tokens - longest + 2)} at least",
        )
    result = start("claims", opened, chosen, {"shares": list(shares), "top": top, "tokens": tokens})
    loaded = opened.load()
    known = text_of_prompt(loaded, chosen[0], prompt_file, asked, tokens)
    reference = Reference.of(loaded, known)
    text_id = identity(known.prompt_ids, known.output_ids)
    heads = ["held as much as", "what is compressed", "KL to full (nats)", "same top token"]
    rows, progress, costs = [], Progress(2 * len(pairs) + 1), []
    for pair in pairs:
        gaps = {}
        for way, settings in claims.equal_bytes_profiles(pair).items():
            found = measure(reference, settings)
            variant = Variant(f"{pair.share} {pair.matched} {way}", settings)
            add_row(
                result, variant, {"text_id": text_id, **asdict(pair), "way": way, **found.as_dict()}, output
            )
            what = f"the {way}" + (f", budget {pair.output_budget}" if way == "output" else "")
            where = f"{pair.share} of the prompt ({pair.matched})"
            gaps[way] = found.kl[0] or 0.0
            rows.append([where, what, as_text(found.kl), as_text(found.top1, 3)])
            progress.one_more()
            tell(f"  {where}, {what}: KL {as_text(found.kl)}{progress.left(' ({} left)')}")
        costs.append(gaps["prompt"] > gaps["output"])
    result["drift"] = [lag.as_dict() for lag in claims.drift(reference, top=top)]
    drifted = [
        [f"{lag['lag']:,}", as_text(lag["overlap"], 3), f"{lag['chance']:.3f}"] for lag in result["drift"]
    ]
    if output is not None:
        write(result, output)
    if plot is not None and result["drift"]:
        from scope_cli.measure.evaluate import plots

        plots.drift({known.name: result["drift"]}, plot)
    show(
        result, json,
        [
            *([Table(heads, rows, names=2)] if rows else []),
            *([""] if rows and drifted else []),
            *([Table(["steps later", f"still in the top {top}", "by chance"], drifted)] if drifted else []),
            *few,
            f"verdict: {in_a_sentence(costs, result['drift'], top)}",
        ],
    )  # fmt: skip


def in_a_sentence(costs: list[bool], drift: list[dict[str, Any]], top: int) -> str:
    said = []
    if costs:
        said.append(
            f"at equal bytes compressing the prompt cost more than the output in {sum(costs)} of "
            f"{len(costs)} comparisons"
        )
    if drift:
        last = drift[-1]
        said.append(
            f"{last['lag']:,} steps later {last['overlap'][0]:.0%} of the top {top} are still in it "
            f"({last['chance']:.0%} by chance)"
        )
    return "; ".join(said)
