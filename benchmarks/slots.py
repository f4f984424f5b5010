"""What do slots in 8 and 4 bits cost, and what do they save? KL to the full plain cache, and bytes.

    python benchmarks/slots.py             # measures the missing rows; Ctrl-C and run it again at will
    python benchmarks/slots.py --table     # prints the tables of the rows there are
    python benchmarks/slots.py --docs      # writes them into docs/results/quality.md

The three known texts of quality.py, their first 1,280 output tokens, fed to every cache (teacher forcing):
slots plain, in int8, and keys in int8 with values in int4, where nothing is evicted and under `slide` with
budgets of 256 and 1,024. Then what is not offered, or not by default, to show why: 4-bit values without exact
tokens or with one scale a token, and keys in 4 bits; and budgets of the same bytes, plain and in int8.
Then recall and loops: facts of the output and of the prompt that are asked for (quality.py's probes, one of
each kind, 1,280 tokens long), and four stories of that length. One JSON object a row, in
benchmarks/results/slots*.jsonl.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from quality import SAMPLING, STORIES, asked_model, encoded, model

from scope_cli.console.tables import Table, as_markdown
from scope_cli.engine.facts import versions
from scope_cli.machine.description import machine
from scope_cli.measure.evaluate.fidelity import KnownText, Reference, measure
from scope_cli.measure.evaluate.loops import repetition
from scope_cli.measure.evaluate.recall import recall
from scope_cli.measure.evaluate.results import Rows
from scope_cli.measure.evaluate.writing import write_all
from scope_cli.models.model import open_model
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.settings.policy import CacheSettings
from scope_cli.settings.schema import ModelSettings
from scope_cli.units import as_bytes

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs/results/quality.md"
PLACES = ("slots", "slots: recall and loops")  # of the tables: <!-- slots -->, <!-- end of slots -->
OUTPUT = 1280
TEXTS = ("pages", "logbook", "report")
SLOTS = {  # name -> keys, values, exact tokens
    "plain": ("plain", "plain", 0),
    "int8": ("int8", "int8", 0),
    "k8v4": ("int8", "int4", 64),
    "k8v4, exact 0": ("int8", "int4", 0),
    "k4v4, exact 64": ("int4", "int4", 64),
    "k4v4, exact 0": ("int4", "int4", 0),
    "int8, exact 64": ("int8", "int8", 64),
    "k8v4, one group": ("int8", "int4_whole", 64),  # a scale and a minimum for all 64 numbers of a head
}
# A second copy of the format, with groups as wide as a head.
INT4 = find_spec("scope_cli.formats.int4")
sys.modules["scope_cli.formats.int4_whole"] = whole = module_from_spec(INT4)
INT4.loader.exec_module(whole)
whole.GROUP = 64
POLICIES: dict[str, dict[str, object]] = {
    "full": {"decode.strategy": "full"},
    "slide 256": {"decode.strategy": "slide", "decode.budget": 256},
    "slide 1024": {"decode.strategy": "slide", "decode.budget": 1024},
    # As few plain slots or many in int8, for the output: 512 bytes or 132 for a token of a KV head.
    "slide 64": {"decode.strategy": "slide", "decode.budget": 64},
    "slide 248": {"decode.strategy": "slide", "decode.budget": 248},
    "slide 992": {"decode.strategy": "slide", "decode.budget": 992},
}
OFFERED = ("plain", "int8", "k8v4")
WANTED = [(policy, slots) for policy in ("full", "slide 256", "slide 1024") for slots in OFFERED]
WANTED += [("full", slots) for slots in SLOTS if slots not in OFFERED]
WANTED += [
    (policy, slots)
    for policy in ("slide 256", "slide 1024")
    for slots in ("k4v4, exact 64", "k8v4, one group")
]
WANTED += [("slide 64", "plain"), ("slide 248", "int8"), ("slide 992", "int8")]
PROBED = [
    (policy, slots)
    for policy in ("full", "slide 256", "slide 1024")
    for slots in (*OFFERED, "k8v4, one group", "k4v4, exact 64")
]
PROBES = [("output-fact", 0), ("prompt-fact", 0)]  # kind, seed
FIDELITY, RECALL, LOOPS = (
    Rows(HERE / f"results/slots{part}.jsonl", lambda row: (row["policy"], row["slots"], row["text"]))
    for part in ("", "-recall", "-loops")
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true", help="print the tables, measure nothing")
    parser.add_argument("--only", default="", help="measure this part alone: fidelity, recall or loops")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/results/quality.md")
    args = parser.parse_args()
    if args.docs:
        page = DOCS.read_text(encoding="utf-8")
        for place, table in zip(PLACES, tables(), strict=True):
            begin, end = f"<!-- {place} -->", f"<!-- end of {place} -->"
            before, _, rest = page.partition(begin)
            page = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
        DOCS.write_text(page, encoding="utf-8")
        return
    parts = ("recall", RECALL, recalled), ("loops", LOOPS, loops), ("fidelity", FIDELITY, fidelity)
    if not args.table:
        for part, rows, measured in parts:
            for row in measured() if args.only in part else ():
                rows.add(
                    {**row, "versions": versions(), "machine": machine(), "threads": torch.get_num_threads()}
                )
                print(
                    f"{time.process_time():.0f} s of CPU: {row['text']}, {row['policy']}, {row['slots']}",
                    flush=True,
                )
    print(*tables(), sep="\n\n")


def fidelity() -> Iterator[dict[str, Any]]:
    for text in TEXTS:
        missing = [pair for pair in WANTED if (*pair, text) not in FIDELITY.done()]
        if not missing:
            continue
        known = json.loads((HERE / f"results/texts/quality-{text}.json").read_text(encoding="utf-8"))
        reference = Reference.of(model(), KnownText(text, known["prompt_ids"], known["output_ids"][:OUTPUT]))
        for policy, slots in missing:
            told = measure(reference, settings_of(policy, slots)).as_dict()
            del told["blocks"]
            yield {**told, "policy": policy, "slots": slots, "text": text, "in_words": told["policy"]}


def recalled() -> Iterator[dict[str, Any]]:
    for kind, seed in PROBES:
        text = f"{kind} {seed}"
        for policy, slots in PROBED:
            if (policy, slots, text) not in RECALL.done():
                found = recall(asked_model(kind, seed, OUTPUT), settings_of(policy, slots))
                yield {"policy": policy, "slots": slots, "text": text, **found.as_dict()}


def loops() -> Iterator[dict[str, Any]]:
    """With the weights in 4 bits, by the native step, which reads no other groups of values than its own."""
    loaded = open_model(ModelSettings(name="smollm2-135m")).load()
    stories = dict(enumerate(map(encoded, STORIES)))
    for policy, slots in PROBED:
        if slots != "k8v4, one group" and (policy, slots, "stories") not in LOOPS.done():
            more = {"model.load_in": "auto", **SAMPLING, "sampling.max_new_tokens": OUTPUT}
            written = sorted(
                write_all(loaded, settings_of(policy, slots, more), stories), key=lambda one: one.prompt
            )
            outputs = [{**asdict(repetition(one.ids)), "bytes": asdict(one.bytes)} for one in written]
            yield {"policy": policy, "slots": slots, "text": "stories", "outputs": outputs}


def settings_of(policy: str, slots: str, more: dict[str, Any] | None = None) -> LoadedProfile:
    """Keys in 4 bits are refused in a profile; here they are measured."""
    plain = {"model.load_in": None, "model.compile": "off"}
    loaded = load_profile("default", {**plain, **POLICIES[policy], **(more or {})})
    keys, values, exact = SLOTS[slots]
    cache = CacheSettings.model_construct(kv="plain", keys=keys, values=values, exact=exact)
    return replace(loaded, profile=loaded.profile.model_copy(update={"cache": cache}))


def tables() -> tuple[str, str]:
    return fidelity_table(), probes_table()


def fidelity_table() -> str:
    """Means over the texts, bytes as a share of the full plain cache's."""
    rows = FIDELITY.read()
    lines = []
    for policy, slots in WANTED:
        mine = [row for row in rows if (row["policy"], row["slots"]) == (policy, slots)]
        if not mine:
            continue
        held, full = (mean(row["bytes"][key] for row in mine) for key in ("held_mean", "full_mean"))
        lines.append([
            f"{policy}, {slots}",
            f"{mean(row['kl'][0] for row in mine):.5f}",
            f"{mean(row['kl_p95'][0] for row in mine):.4f}",
            f"{mean(row['top1'][0] for row in mine):.3f}",
            f"{mean(row['perplexity'] / row['full_perplexity'] for row in mine):.4f}",
            as_bytes(held),
            f"{held / full:.0%}",
            str(len(mine)),
        ])  # fmt: skip
    heads = ["policy, slots", "KL (nats)", "KL, 95th percentile", "same top token", "perplexity / full's",
             "held, average", "of full", "texts"]  # fmt: skip
    return as_markdown(Table(heads, lines))


def probes_table() -> str:
    """Log-probability of the right answer and how many are exact; loops; bytes of both, on average."""
    rows, lines = (RECALL.read(), LOOPS.read()), []
    for policy, slots in PROBED:
        asked, wrote = (
            [row for row in some if (row["policy"], row["slots"]) == (policy, slots)] for some in rows
        )
        cells = []
        for kind in ("output-fact", "prompt-fact"):
            answers = [answer for row in asked if row["kind"] == kind for answer in row["answers"]]
            exact = mean(answer["rank"] == 0 for answer in answers) if answers else 0
            cells.append(f"{mean(one['logprob'] for one in answers):.2f}; {exact:.0%}" if answers else "-")
        outputs = [output for row in wrote for output in row["outputs"]]
        if outputs:
            cells.append(f"{sum(one['looped'] for one in outputs)} of {len(outputs)}")
            looped, tokens = (sum(one[key] for one in outputs) for key in ("loop_tokens", "tokens"))
            cells.append(f"{looped / tokens:.0%}")
            cells.append(f"{mean(one['unique_ngrams'] for one in outputs):.3f}")
        else:
            cells += ["-"] * 3
        for some in (asked, outputs):
            cells.append(as_bytes(mean(one["bytes"]["held_mean"] for one in some)) if some else "-")
        lines.append([f"{policy}, {slots}", *cells])
    heads = ["policy, slots", "a fact of the output", "of the prompt", "outputs with a loop"]
    heads += ["tokens in loops", "distinct 4-grams", "held, facts", "held, stories"]
    return as_markdown(Table(heads, lines))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
