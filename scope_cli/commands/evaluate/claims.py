"""scope evaluate claims: a prompt in, the paper's two claims tested on it out."""

from dataclasses import asdict
from typing import Annotated

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

    from scope_cli.evaluate import claims
    from scope_cli.evaluate.fidelity import Reference, measure
    from scope_cli.evaluate.results import identity
    from scope_cli.evaluate.statistics import as_text
    from scope_cli.profile import load_profile

    shares = tuple(share)
    for one in shares:
        load_profile("full", {"prefill.method": "snapkv", "prefill.budget": one})  # refuses what is no share
    opened = open_for(chosen, offline)
    result = start("claims", opened, chosen, {"shares": list(shares), "top": top, "tokens": tokens})
    loaded = opened.load()
    known = text_of_prompt(loaded, chosen[0], prompt_file, asked, tokens)
    reference = Reference.of(loaded, known)
    text_id = identity(known.prompt_ids, known.output_ids)
    window = chosen[0].settings.profile.prefill.window
    lines = [
        "| held as much as | what is compressed | KL to full (nats) | same top token |",
        "|---|---|---|---|",
    ]
    for pair in claims.equal_bytes(len(known.prompt_ids), len(known.output_ids), shares, window):
        for way, settings in claims.equal_bytes_profiles(pair).items():
            found = measure(reference, settings)
            variant = Variant(f"{pair.share} {pair.matched} {way}", settings)
            add_row(
                result, variant, {"text_id": text_id, **asdict(pair), "way": way, **found.as_dict()}, output
            )
            what = f"the {way}" + (f", budget {pair.output_budget}" if way == "output" else "")
            same = as_text(found.top1, 3)
            where = f"{pair.share} of the prompt ({pair.matched})"
            lines.append(f"| {where} | {what} | {as_text(found.kl)} | {same} |")
    result["drift"] = [lag.as_dict() for lag in claims.drift(reference, top=top)]
    if not result["drift"]:
        tell(f"{tokens:,} tokens are too few to see how attention moves on: it is followed over 1,024")
    lines += ["", f"| steps later | still in the top {top} | by chance |", "|---|---|---|"]
    for lag in result["drift"]:
        lines.append(f"| {lag['lag']:,} | {as_text(lag['overlap'], 3)} | {lag['chance']:.3f} |")
    if output is not None:
        write(result, output)
    if plot is not None and result["drift"]:
        from scope_cli.evaluate import plots

        plots.drift({known.name: result["drift"]}, plot)
    show(result, json, "\n".join(lines))
