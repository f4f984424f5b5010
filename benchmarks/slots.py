"""What do slots in 8 and 4 bits cost, and what do they save? KL to the full plain cache, and bytes.

    python benchmarks/slots.py             # measures the missing rows; Ctrl-C and run it again at will
    python benchmarks/slots.py --table     # prints the table of the rows there are
    python benchmarks/slots.py --docs      # writes it into docs/results/quality.md

The three known texts of quality.py, their first 1,280 output tokens, fed to every cache (teacher forcing):
slots plain, in int8, and keys in int8 with values in int4, where nothing is evicted and under `slide` with
budgets of 256 and 1,024. Then what is not offered, or not by default, to show why: 4-bit values without exact
tokens, and keys in 4 bits; and budgets of the same bytes, in plain slots and in int8. One JSON object a row,
in benchmarks/results/slots.jsonl.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

from scope_cli.console.tables import Table, as_markdown
from scope_cli.engine.facts import versions
from scope_cli.machine.description import machine
from scope_cli.measure.evaluate.fidelity import KnownText, Reference, measure
from scope_cli.measure.evaluate.results import Rows
from scope_cli.models.model import open_model
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.settings.policy import CacheSettings
from scope_cli.settings.schema import ModelSettings
from scope_cli.units import as_bytes

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs/results/quality.md"
BEGIN, END = "<!-- slots: benchmarks/slots.py --docs -->", "<!-- end of slots -->"
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
}
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
WANTED += [(policy, "k4v4, exact 64") for policy in ("slide 256", "slide 1024")]
WANTED += [("slide 64", "plain"), ("slide 248", "int8"), ("slide 992", "int8")]
ROWS = Rows(HERE / "results/slots.jsonl", lambda row: (row["policy"], row["slots"], row["text"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/results/quality.md")
    args = parser.parse_args()
    if args.docs:
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        DOCS.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
        return
    if not args.table:
        measure_missing()
    print(table())


def measure_missing() -> None:
    for text in TEXTS:
        missing = [pair for pair in WANTED if (*pair, text) not in ROWS.done()]
        if not missing:
            continue
        known = json.loads((HERE / f"results/texts/quality-{text}.json").read_text(encoding="utf-8"))
        loaded = open_model(ModelSettings(name="smollm2-135m", load_in=None)).load()  # plain float32
        reference = Reference.of(loaded, KnownText(text, known["prompt_ids"], known["output_ids"][:OUTPUT]))
        for policy, slots in missing:
            began = time.perf_counter()
            found = measure(reference, settings_of(policy, slots))
            told = found.as_dict()
            row = {**told, "policy": policy, "slots": slots, "text": text, "in_words": told["policy"]}
            del row["blocks"]
            ROWS.add(
                {**row, "versions": versions(), "machine": machine(), "threads": torch.get_num_threads()}
            )
            print(
                f"{text}, {policy}, {slots}: KL {found.kl[0]:.5f}, {time.perf_counter() - began:.0f} s",
                flush=True,
            )


def settings_of(policy: str, slots: str) -> LoadedProfile:
    """Keys in 4 bits are refused in a profile; here they are measured."""
    loaded = load_profile("default", {"model.load_in": None, "model.compile": "off", **POLICIES[policy]})
    keys, values, exact = SLOTS[slots]
    cache = CacheSettings.model_construct(kv="plain", keys=keys, values=values, exact=exact)
    return replace(loaded, profile=loaded.profile.model_copy(update={"cache": cache}))


def table() -> str:
    """Means over the texts, bytes as a share of the full plain cache's."""
    rows = ROWS.read()
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


if __name__ == "__main__":
    main()
