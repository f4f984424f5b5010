"""The rows of quality.py in, the tables and plots of docs/results/quality.md out.

A table stands between two comments, `<!-- table: fidelity -->` and `<!-- end -->`, and is written anew.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import claims
from quality import (
    BUDGETS,
    LOOP_BUDGETS,
    LOOP_TOKENS,
    PROMPT_TOKENS,
    RECALL_BUDGETS,
    RECALL_TOKENS,
    ROWS,
    interval_for,
    interval_of,
)

from scope_cli.measure.evaluate import plots
from scope_cli.measure.evaluate.statistics import (
    Blocks,
    Estimate,
    as_text,
    blocks_of,
    estimate,
    paired_difference,
)
from scope_cli.units import as_bytes

PAGE = Path(__file__).parent.parent / "docs/results/quality.md"
PICTURES = PAGE.parent.parent / "images"
ORDER = (
    "full", "slide", "slide, every token", "adaptive", "discontinuous", "random", "recency", "unified slide",
    "streamingllm", "h2o", "tova", "snapkv-decode",
)  # fmt: skip
SHOWN = {  # pictures below each table, with what they show
    "fidelity": {
        "quality-budget.png": "KL to the full cache against the budget, one line for each policy",
        "quality-agreement.png": "share of tokens with the same most probable token, along the output",
    },
    "drift": {"quality-drift.png": "share of the top 64 that is still in the top 64 some steps later"},
    "recall": {
        "quality-output-fact.png": "log-probability of a fact of the output, against its distance",
        "quality-prompt-fact.png": "log-probability of a fact of the prompt, against its distance",
    },
    "loops": {"quality-loops.png": "distinct 4-grams of the outputs, by policy"},
}
Row = dict[str, Any]


def write() -> None:
    rows = {part: current(part, found.read()) for part, found in ROWS.items()}
    tables = {
        "fidelity": fidelity(rows["fidelity"]),
        "equal-bytes": equal_bytes(rows["equal-bytes"]),
        "drift": drift(rows["drift"]),
        "recall": recall(rows["recall"]),
        "loops": loops(rows["loops"]),
        "machine": machine([row for found in rows.values() for row in found]),
    }
    draw(rows)
    for name, pictures in SHOWN.items():
        there = [
            f"![{alt}](../images/{file})" for file, alt in pictures.items() if (PICTURES / file).is_file()
        ]
        tables[name] = "\n\n".join([tables[name], *there])
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        page, found = re.subn(
            pattern, lambda at, table=table: f"{at[1]}\n{table}\n\n{at[2]}", page, flags=re.DOTALL
        )
        assert found == 1, f"docs/results/quality.md has {found} places for the table {name}"
    PAGE.write_text(page, encoding="utf-8", newline="\n")


def current(part: str, rows: Sequence[Row]) -> list[Row]:
    """Without what an earlier version measured at intervals that are not used any more."""
    if part not in ("fidelity", "recall", "loops"):
        return list(rows)
    return [
        row
        for row in rows
        if row["policy_name"] in ("full", "discontinuous")
        or row["policy_name"].endswith("every token")
        or interval_of(row) == interval_for(row["budget"])
    ]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not measured yet."
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grouped(rows: Sequence[Row], *keys: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def place(key: tuple[Any, ...]) -> tuple[int, int]:
    """Budget first, then the order of the policies; the full cache before all."""
    name, budget = key[:2]
    return budget or 0, ORDER.index(name)


def fidelity(rows: Sequence[Row]) -> str:
    by_policy = grouped(rows, "policy_name", "budget")
    lines = []
    for name, budget in sorted(by_policy, key=place):
        texts = by_policy[name, budget]
        other = {row["text"]: row for row in by_policy.get(("slide", budget), [])}
        shared = [row for row in texts if row["text"] in other]
        minus = "-"
        if shared and name != "slide":
            found = paired_difference(
                [blocks_of(row, "kl") for row in shared],
                [blocks_of(other[row["text"]], "kl") for row in shared],
            )
            minus = as_text(found) + (" *" if found.differs_from_zero else "")
        held = sum(row["bytes"]["held_mean"] for row in texts)
        full = sum(row["bytes"]["full_mean"] for row in texts)
        ratios = [row["perplexity"] / row["full_perplexity"] for row in texts]
        lines.append([
            name if budget is None else f"{name} {budget}",
            as_text(over_texts(texts, "kl")),
            minus,
            f"{sum(row['kl_p95'][0] for row in texts) / len(texts):.3f}",
            as_text(over_texts(texts, "top1"), 3),
            f"{sum(ratios) / len(ratios):.3f}",
            f"{min(row['first_divergence'] or 0 for row in texts)}" if name != "full" else "-",
            as_bytes(held / len(texts)),
            as_bytes(sum(row["bytes"]["held_peak"] for row in texts) / len(texts)),
            f"{held / full:.0%}",
            str(len(texts)),
        ])  # fmt: skip
    heads = [
        "policy, budget", "KL (nats)", "KL minus slide's", "KL, 95th percentile", "same top token",
        "perplexity / full's", "first divergence", "held, average", "held, at most", "of full", "texts",
    ]  # fmt: skip
    return markdown(heads, lines)


def equal_bytes(rows: Sequence[Row]) -> str:
    prompts = {(row["text"], row["share"]): row for row in rows if row["way"] == "prompt"}
    lines = []
    for row in sorted(
        (row for row in rows if row["way"] == "output"),
        key=lambda row: (list(PROMPT_TOKENS).index(row["text"]), row["share"], row["matched"]),
    ):
        prompt = prompts.get((row["text"], row["share"]))
        if prompt is None:
            continue
        found = paired_difference([blocks_of(prompt, "kl")], [blocks_of(row, "kl")])
        bytes_of = [as_bytes(one["bytes"][f"held_{row['matched']}"]) for one in (prompt, row)]
        lines.append([
            row["text"],
            row["share"],
            "average" if row["matched"] == "mean" else "at most",
            as_text(prompt["kl"]),
            f"{as_text(row['kl'])}, budget {row['output_budget']}",
            as_text(found) + (" *" if found.differs_from_zero else ""),
            " and ".join(bytes_of),
        ])  # fmt: skip
    for row in (row for row in rows if row["share"] == "all"):
        held = " and ".join(as_bytes(row["bytes"][key]) for key in ("held_mean", "held_peak"))
        cells = [row["text"], "all", f"nothing evicted, {row['way']}", as_text(row["kl"]), "-", "-", held]
        lines.append(cells)
    heads = ["text", "of the prompt", "equal", "KL, prompt compressed", "KL, output compressed"]
    heads += ["difference", "held"]
    return markdown(heads, lines)


def drift(rows: Sequence[Row]) -> str:
    lags = {row["text"]: {lag["lag"]: lag for lag in row["lags"]} for row in rows}
    lines = []
    for lag in next(iter(lags.values()), {}):
        cells = [
            f"{as_text(found[lag]['overlap'], 3)}; {found[lag]['mass'][0]:.2f}" for found in lags.values()
        ]
        chance = sum(found[lag]["chance"] for found in lags.values()) / len(lags)
        lines.append([f"{lag:,}", *cells, f"{chance:.3f}"])
    return markdown(["steps later", *lags, "by chance"], lines)


def recall(rows: Sequence[Row]) -> str:
    rows = [row for row in rows if row["output_length"] == RECALL_TOKENS]
    by_kind = grouped(rows, "policy_name", "budget", "kind")
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lines = []
    for name, budget in sorted({key[:2] for key in by_kind}, key=place):
        cells = []
        for kind in kinds:
            mine, full = by_kind.get((name, budget, kind), []), by_kind.get(("full", None, kind), [])
            cells.append(_recall_cell(mine, full) if mine else "-")
        lines.append([name if budget is None else f"{name} {budget}", *cells])
    return markdown(["policy, budget", *kinds], lines)


def _recall_cell(rows: Sequence[Row], full: Sequence[Row]) -> str:
    """'-0.07 (-0.09 to -0.05); 100%' with a star where it differs from the full cache."""
    mine, others = _answers(rows), _answers(full)
    same = [key for key in mine if key in others]
    logprobs = Blocks.of([mine[key]["logprob"] for key in mine], block=1)
    exact = sum(answer["rank"] == 0 for answer in mine.values()) / len(mine)
    star = ""
    if same and rows is not full:
        found = paired_difference(
            [Blocks.of([mine[key]["logprob"] for key in same], block=1)],
            [Blocks.of([others[key]["logprob"] for key in same], block=1)],
        )
        star = " *" if found.differs_from_zero else ""
    return f"{as_text(estimate([logprobs]), 2)}{star}; {exact:.0%}"


def _answers(rows: Sequence[Row]) -> dict[Any, Row]:
    return {(row["seed"], number): answer for row in rows for number, answer in enumerate(row["answers"])}


def loops(rows: Sequence[Row]) -> str:
    by_policy = grouped([row for row in rows if row["tokens"] == LOOP_TOKENS], "policy_name", "budget")
    full = {
        (row["seed"], out["prompt"]): out
        for row in by_policy.get(("full", None), [])
        for out in row["outputs"]
    }
    lines = []
    for name, budget in sorted(by_policy, key=place):
        outputs = {
            (row["seed"], out["prompt"]): out for row in by_policy[name, budget] for out in row["outputs"]
        }
        unique = Blocks.of([out["unique_ngrams"] for out in outputs.values()], block=1)
        minus = "-"
        shared = [key for key in outputs if key in full]
        if name != "full" and shared:
            found = paired_difference(
                [Blocks.of([outputs[key]["unique_ngrams"] for key in shared], block=1)],
                [Blocks.of([full[key]["unique_ngrams"] for key in shared], block=1)],
            )
            minus = as_text(found, 3) + (" *" if found.differs_from_zero else "")
        looped = [out for out in outputs.values() if out["looped"]]
        tokens = sum(out["tokens"] for out in outputs.values())
        lines.append([
            name if budget is None else f"{name} {budget}",
            f"{len(looped)} of {len(outputs)}",
            f"{sum(out['loop_tokens'] for out in looped) / tokens:.0%}",
            as_text(estimate([unique]), 3),
            minus,
            as_bytes(sum(out["held_mean"] for out in outputs.values()) / len(outputs)),
        ])  # fmt: skip
    heads = [
        "policy, budget", "outputs with a loop", "tokens in loops", "distinct 4-grams", "minus full's",
        "held, average",
    ]  # fmt: skip
    return markdown(heads, lines)


def machine(rows: Sequence[Row]) -> str:
    """What the rows were measured on and with, each once."""
    said = {
        f"{row['hardware']['processor']}, {row['hardware']['cores']} cores, {row['hardware']['threads']} "
        f"thread(s); torch {row['versions']['torch']}, transformers {row['versions']['transformers']}"
        for row in rows
    }
    return f"{len(rows)} rows, measured on: {'; '.join(sorted(said))}." if rows else "Not measured yet."


def over_texts(rows: Sequence[Row], what: str) -> Estimate:
    """The mean over all tokens of several saved texts, each text's blocks drawn within it."""
    return estimate([blocks_of(row, what) for row in rows])


def by_budget(named: dict[str, tuple[list[int], list[float]]], path: Path, title: str) -> None:
    """Policy -> budgets, mean KL: both on logarithmic axes, since both go over orders of magnitude."""
    drawn, axes = plots.figure(title, "budget (generated tokens held)", "mean KL to the full cache (nats)")
    plots.lines(axes, named)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(BUDGETS, [f"{budget:,}" for budget in BUDGETS])
    plots.save(drawn, path)


def draw(rows: dict[str, list[Row]]) -> None:
    PICTURES.mkdir(exist_ok=True)
    by_policy = grouped(rows["fidelity"], "policy_name", "budget")
    texts = max((len(those) for those in by_policy.values()), default=0)
    by_policy = {key: those for key, those in by_policy.items() if len(those) == texts}  # else not comparable
    if by_policy:
        shown = [name for name in ORDER if (name, 64) in by_policy]
        plots.agreement(
            {name: by_policy[name, 64] for name in shown},
            PICTURES / "quality-agreement.png",
            "Agreement with the full cache, budget 64",
        )
        named = {}
        for name in shown:
            budgets = [budget for budget in BUDGETS if (name, budget) in by_policy]
            means = [over_texts(by_policy[name, budget], "kl").mean for budget in budgets]
            named[name] = (budgets, means)
        by_budget(named, PICTURES / "quality-budget.png", "Fidelity by budget")
    if rows["drift"]:
        claims.draw_drift({row["text"]: row["lags"] for row in rows["drift"]}, PICTURES / "quality-drift.png")
    probes = [row for row in rows["recall"] if row["output_length"] == RECALL_TOKENS]
    for kind in ("output-fact", "prompt-fact"):
        chosen = grouped(
            [row for row in probes if row["kind"] == kind and row["budget"] in (None, RECALL_BUDGETS[-1])],
            "policy_name",
        )
        if chosen:
            plots.recall_by_gap(
                {name: chosen[name,] for name in ORDER if (name,) in chosen},
                kind,
                PICTURES / f"quality-{kind}.png",
                f"Recall of a fact in the {kind.split('-')[0]}, budget {RECALL_BUDGETS[-1]}",
            )
    looped = grouped([row for row in rows["loops"] if row["tokens"] == LOOP_TOKENS], "policy_name", "budget")
    if looped:
        named = {}
        for name, budget in sorted(looped, key=place):
            values = [out["unique_ngrams"] for row in looped[name, budget] for out in row["outputs"]]
            label = name if budget is None else f"{name} {budget}"
            named[label] = estimate([Blocks.of(values, block=1)]).as_list()
        plots.with_intervals(
            named,
            PICTURES / "quality-loops.png",
            f"Repetition, budgets {' and '.join(map(str, LOOP_BUDGETS))}",
            "distinct 4-grams (share)",
        )
