"""The paper's two claims, tested on a text: what equal bytes buy, and whether heavy hitters stay heavy.

    python benchmarks/claims.py --prompt-file report.txt    # with the options of `scope evaluate fidelity`

(i) Compressing the prompt hurts more than compressing the output at equal bytes (SCOPE, arXiv 2412.13649,
Table 2).
(ii) Heavy hitters drift: what is attended to at step t is less and less what is attended to at t + d.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from scope_cli import cli
from scope_cli.commands import options as o
from scope_cli.commands.evaluate import shared as s
from scope_cli.commands.evaluate.texts import text_of_prompt
from scope_cli.commands.io import check_writable, read_text, tell
from scope_cli.commands.overrides import overrides_of
from scope_cli.commands.variants import Variant, variants
from scope_cli.console.progress import Progress
from scope_cli.console.tables import Table
from scope_cli.engine.plan import tokens_of
from scope_cli.engine.replay import MOST_AT_ONCE, replay
from scope_cli.errors import UsageError
from scope_cli.measure.evaluate import plots
from scope_cli.measure.evaluate.fidelity import Reference, measure, planned
from scope_cli.measure.evaluate.results import identity
from scope_cli.measure.evaluate.statistics import Blocks, as_text, estimate
from scope_cli.policies.view import SlotView
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.settings.policy import DecodeSettings
from scope_cli.settings.schedules import schedule_of

SHORT_LAGS = (1, 2, 4, 8, 16, 32)
PLAIN = {"cache.kv": "plain"}
RECENT = 32  # tokens before t that every policy keeps anyway


@dataclass(frozen=True)
class EqualBytes:
    """Two ways to hold the same number of tokens: a compressed prompt, or a bounded output."""

    share: str  # of the prompt that stays in the first way
    matched: str  # peak: the same tokens held at the end; mean: the same on average over the output
    kept_prompt: int
    output_budget: int


def equal_bytes(prompt: int, output: int, shares: tuple[str, ...], window: int) -> Iterator[EqualBytes]:
    """The output budgets that hold what a compressed prompt and a whole output hold, where there are any.

    Every token of every layer and KV head takes the same bytes, so equal tokens are equal bytes.
    """
    for share in shares:
        kept = tokens_of(share, prompt, window)
        at_the_end, on_average = kept + output - prompt, kept - prompt + (output - 1) / 2
        if at_the_end >= 2:
            yield EqualBytes(share, "peak", kept, at_the_end)
        budget = budget_for_mean(on_average, output)
        if budget is not None:
            yield EqualBytes(share, "mean", kept, budget)


def budget_for_mean(tokens: float, output: int) -> int | None:
    """The largest budget of `slide` that holds at most `tokens` generated ones, averaged over the output."""
    if mean_held(2, output) > tokens:
        return None
    low, high = 2, output
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if mean_held(middle, output) <= tokens else (low, middle - 1)
    return low


def mean_held(budget: int, output: int) -> float:
    """Generated tokens that `slide` holds when it predicts a token, averaged over the output."""
    schedule = schedule_of(DecodeSettings(strategy="slide", budget=budget), output, kept_prompt=0)
    return sum(schedule.held(output - 1)) / output


def equal_bytes_profiles(pair: EqualBytes, method: str = "snapkv") -> dict[str, LoadedProfile]:
    """Both ways as profiles: the prompt compressed by `method`, or the output by SCOPE's slide."""
    return {
        "prompt": load_profile(
            "full", {**PLAIN, "prefill.method": method, "prefill.budget": pair.kept_prompt}
        ),
        "output": load_profile(
            "default", {**PLAIN, "decode.strategy": "slide", "decode.budget": pair.output_budget}
        ),
    }


def least_for_drift(top: int, most_lag: int = 1024) -> int:
    """Output tokens from which on `drift` has a step to look at; the last one is never fed."""
    first = MOST_AT_ONCE * -(-(2 * top + RECENT) // MOST_AT_ONCE)
    return first + most_lag + 1


@dataclass(frozen=True)
class Drift:
    """How much of the top-k at step t is in the top-k at t + lag, over all layers, KV heads and steps t."""

    lag: int
    overlap: list[float | None]  # share of the k, and the interval's ends
    mass: list[float | None]  # share of the attention at t + lag that the top-k of t gets
    chance: float  # the overlap of k tokens drawn by chance
    by_layer: list[float]  # overlap, a mean over heads and steps
    steps: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def drift(reference: Reference, top: int = 64, most_lag: int = 1024) -> list[Drift]:
    """Attention of single queries to the generated tokens, the full cache holding all of them.

    The steps t are the same for every lag, and so are the tokens that compete: those generated until t, but
    the newest 32. Otherwise a longer text would make every later overlap smaller by itself.
    """
    loaded, text = reference.loaded, reference.text
    settings = planned(load_profile("full", PLAIN), len(text.output_ids))
    every = MOST_AT_ONCE
    rows: dict[int, Tensor] = {}  # tokens written -> attention of the newest, [layers, kv_heads, output]
    written = 0
    replayed = replay(loaded, settings, text.prompt_ids, text.output_ids, reference.state, queries=every)
    for number, (logits, cache) in enumerate(replayed):
        if number == 0:  # only the prompt has been read
            continue
        before, written = written, written + len(logits)
        wanted = [before + lag for lag in SHORT_LAGS if before and before + lag < written]
        for step in [*wanted, written]:
            rows[step] = torch.stack(
                [
                    _attention(layer.view(), len(text.prompt_ids) + step - 1, len(text.prompt_ids))
                    for layer in cache.policy_layers
                ]
            ).cpu()
    lags = [*SHORT_LAGS, *(lag for lag in range(every, most_lag + 1, every) if lag & (lag - 1) == 0)]
    steps = [
        step
        for step in rows
        if step % every == 0 and step - RECENT >= 2 * top and all(step + lag in rows for lag in lags)
    ]
    return [_compare(rows, steps, lag, top) for lag in lags] if steps else []


def _attention(view: SlotView, position: int, prompt: int) -> Tensor:
    """What the query at a position gives to each generated token, in the order of the text.

    [kv_heads, generated]; 0 for what came after it
    """
    _queries, positions = view.newest_queries(view.query_positions.shape[1])
    row = int((positions[0] == position).nonzero())
    logits = view.logits(positions.shape[1])[0, :, :, row]  # [kv_heads, group, slots]
    probabilities = logits.softmax(-1).mean(1)  # [kv_heads, slots]
    where = view.positions[0].long()
    generated = (where >= prompt) & (where <= position)
    out = probabilities.new_zeros(where.shape[0], int(where.max()) - prompt + 1)
    at = (where - prompt).clamp(min=0)
    return out.scatter_add_(1, at, probabilities.masked_fill(~generated, 0))


def _compare(rows: dict[int, Tensor], steps: list[int], lag: int, top: int) -> Drift:
    overlaps, masses, chances = [], [], []
    for step in steps:
        candidates = step - RECENT
        now, later = rows[step][..., :candidates], rows[step + lag][..., :candidates]
        heavy = torch.zeros_like(now).scatter_(-1, now.topk(top).indices, 1)
        still = heavy.gather(-1, later.topk(top).indices).mean(-1)  # [layers, kv_heads]
        overlaps.append(still)
        masses.append(float(((later * heavy).sum(-1) / later.sum(-1).clamp(min=1e-12)).mean()))
        chances.append(top / candidates)
    by_step = torch.stack(overlaps)  # [steps, layers, kv_heads]
    return Drift(
        lag=lag,
        overlap=estimate([Blocks.of(by_step.mean((1, 2)).tolist(), block=1)]).as_list(),
        mass=estimate([Blocks.of(masses, block=1)]).as_list(),
        chance=sum(chances) / len(chances),
        by_layer=by_step.mean((0, 2)).tolist(),
        steps=len(steps),
    )


@o.with_settings(*o.MEASURED, "raw", "seed")
def claims_command(
    prompt_file: Annotated[
        str, typer.Option("--prompt-file", "-f", help="The full cache writes an output to measure on.")
    ],
    tokens: Annotated[int, typer.Option("--tokens", min=256, help="Length of that output.")] = 2048,
    share: Annotated[
        list[str], typer.Option("--share", help="What stays of the prompt, e.g. 50%. Repeatable.")
    ] = ["25%", "50%"],  # noqa: B006
    top: Annotated[int, typer.Option("--top", min=1, help="How many tokens are heavy hitters.")] = 64,
    output: s.Output = None,
    force: s.Force = False,
    plot: s.Plot = None,
    json: s.Json = False,
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """The paper's two claims on your prompt: what a compressed prompt costs, and how fast attention moves on.

    python benchmarks/claims.py --prompt-file report.txt --tokens 2048
    """
    common = overrides_of(**given)
    chosen = variants([], None, common, default=["default"])
    check_writable(output, plot, force)
    asked = read_text(prompt_file, "--prompt-file")

    shares = tuple(dict.fromkeys(share))
    for one in shares:
        load_profile("full", {"prefill.method": "snapkv", "prefill.budget": one})  # refuses what is no share

    opened = s.open_for(chosen, offline)
    profile = chosen[0].settings.profile
    prompt_tokens, least = len(opened.encode(asked, profile.prompt)), least_for_drift(top)
    pairs = list(equal_bytes(prompt_tokens, tokens, shares, profile.prefill.window))
    few = []
    if not pairs:
        few.append(
            f"{tokens:,} tokens are too few for equal bytes: what {', '.join(shares)} of a prompt of "
            f"{prompt_tokens:,} tokens saves is more than an output of that length can"
        )
    if tokens < least:
        few.append(f"{tokens:,} tokens are too few to see how attention moves on, which takes {least:,}")
    if len(few) == 2:
        longest = max(tokens_of(one, prompt_tokens, profile.prefill.window) for one in shares)
        raise UsageError(
            f"there is nothing to measure: {'; '.join(few)}",
            f"--tokens {min(least, prompt_tokens - longest + 2)} at least",
        )
    result = s.start("claims", opened, chosen, {"shares": list(shares), "top": top, "tokens": tokens})
    loaded = opened.load()
    known = text_of_prompt(loaded, chosen[0], prompt_file, asked, tokens)
    reference = Reference.of(loaded, known)
    text_id = identity(known.prompt_ids, known.output_ids)
    heads = ["held as much as", "what is compressed", "KL to full (nats)", "same top token"]
    rows, progress, costs = [], Progress(2 * len(pairs) + 1), []
    for pair in pairs:
        gaps = {}
        for way, settings in equal_bytes_profiles(pair).items():
            found = measure(reference, settings)
            variant = Variant(f"{pair.share} {pair.matched} {way}", settings)
            s.add_row(
                result, variant, {"text_id": text_id, **asdict(pair), "way": way, **found.as_dict()}, output
            )
            what = f"the {way}" + (f", budget {pair.output_budget}" if way == "output" else "")
            where = f"{pair.share} of the prompt ({pair.matched})"
            gaps[way] = found.kl[0] or 0.0
            rows.append([where, what, as_text(found.kl), as_text(found.top1, 3)])
            progress.one_more()
            tell(f"  {where}, {what}: KL {as_text(found.kl)}{progress.left(' ({} left)')}")
        costs.append(gaps["prompt"] > gaps["output"])
    result["drift"] = [lag.as_dict() for lag in drift(reference, top=top)]
    drifted = [
        [f"{lag['lag']:,}", as_text(lag["overlap"], 3), f"{lag['chance']:.3f}"] for lag in result["drift"]
    ]
    if output is not None:
        s.write(result, output)
    if plot is not None and result["drift"]:
        draw_drift({known.name: result["drift"]}, plot)
    s.show(
        result, json,
        [
            *([Table(heads, rows, names=2)] if rows else []),
            *([""] if rows and drifted else []),
            *([Table(["steps later", f"still in the top {top}", "by chance"], drifted)] if drifted else []),
            *few,
            f"verdict: {in_a_sentence(costs, result['drift'], top)}",
        ],
    )  # fmt: skip


def in_a_sentence(costs: list[bool], drifted: list[dict[str, Any]], top: int) -> str:
    said = []
    if costs:
        said.append(
            f"at equal bytes compressing the prompt cost more than the output in {sum(costs)} of "
            f"{len(costs)} comparisons"
        )
    if drifted:
        last = drifted[-1]
        said.append(
            f"{last['lag']:,} steps later {last['overlap'][0]:.0%} of the top {top} are still in it "
            f"({last['chance']:.0%} by chance)"
        )
    return "; ".join(said)


def main(argv: list[str]) -> int:
    """As a command of scope: its options, its errors, its exit codes."""
    cli.app.command("claims")(claims_command)
    try:
        return cli.main(["claims", *argv])
    finally:
        cli.app.registered_commands.pop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


def draw_drift(rows: dict[str, list[dict[str, Any]]], path: Path, title: str = "") -> None:
    """Text -> its lags: how much of the top-k is still in the top-k some steps later."""
    drawn, axes = plots.figure(
        title or "Heavy hitters drift",
        "steps later (tokens)",
        "share of the top 64 that is still in the top 64",
    )
    named = {
        name: ([lag["lag"] for lag in lags], [lag["overlap"][0] for lag in lags])
        for name, lags in rows.items()
    }
    chance = next(iter(rows.values()))
    named["by chance"] = ([lag["lag"] for lag in chance], [lag["chance"] for lag in chance])
    plots.lines(axes, named)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(0, 1)
    plots.save(drawn, path)
