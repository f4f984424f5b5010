"""Is the text as good as with the full cache? Fidelity, recall, loops and the paper's two claims, measured.

    python benchmarks/quality.py               # measures the missing rows; Ctrl-C and run it again at will
    python benchmarks/quality.py --size large  # more seeds and lengths, and evictions at every token
    python benchmarks/quality.py --list        # what would be measured, and how long it may take
    python benchmarks/quality.py --docs        # the tables and plots of docs/results/quality.md from the rows

Rows go to benchmarks/results/quality-*.jsonl, one JSON object each; a row that is there is not measured
again. The known texts lie in benchmarks/results/texts/: two outputs of 2,048 tokens that the full cache wrote
(temperature 1, top-p 0.95, repetition penalty 1.1: at lower temperatures the small model soon repeats itself,
and then every policy looks good), and 2,560 tokens of this project's own pages. Every policy of a text holds
the same bytes at its end: baselines that may evict the prompt get the prompt's tokens and the budget
together.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import claims
import torch

from scope_cli.engine.facts import versions
from scope_cli.machine.description import machine
from scope_cli.measure.evaluate.fidelity import KnownText, Reference, measure
from scope_cli.measure.evaluate.loops import repetition
from scope_cli.measure.evaluate.probes import KINDS, Probe, make_probe
from scope_cli.measure.evaluate.recall import AskedModel, recall
from scope_cli.measure.evaluate.results import Rows
from scope_cli.measure.evaluate.writing import write_all
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.settings.schema import ModelSettings
from scope_cli.units import as_duration

HERE = Path(__file__).parent
TEXTS = HERE / "results/texts"
OUTPUT = 2048  # tokens of every known text's output
PROMPTS = {"report": "examples/report.txt", "logbook": "examples/logbook.txt"}
PAGES, PAGES_PROMPT = (
    "docs/explanation/path-of-a-prompt.md",
    512,
)  # text by people: the first 512 tokens are the prompt
PROMPT_TOKENS = {"report": 2572, "logbook": 1052, "pages": PAGES_PROMPT}  # known without loading a model
BUDGETS = (64, 256, 1024)
LOOP_BUDGETS = (128, 512)
LOOP_TOKENS = 896
H2O = {("logbook", 64), ("logbook", 256), ("logbook", 1024), ("report", 256), ("pages", 256)}  # it is slow
RECALL_BUDGETS = (64, 256)
RECALL_TOKENS = 768
SHARES = ("25%", "50%")
PACKED = ("int8", "k8v4")  # slots in which nothing is evicted: what eviction is compared with
STORIES = (
    "Write a long story about a lighthouse keeper and the people who visit him.",
    "Explain how bread is made, from the field to the table, in great detail.",
    "Write a travel guide to a small country that does not exist.",
    "Write the diary of a ship's cook on a voyage around the world.",
)
# What the rows say they were measured with.
PLAIN = {"model.load_in": None, "model.compile": "off", "cache.kv": "plain"}
SAMPLING = {
    "sampling.temperature": 0.7,
    "sampling.top_k": 100,
    "sampling.top_p": 0.95,
    "sampling.ignore_eos": True,
}


def interval_of(row: dict[str, Any]) -> int | str:
    """A row that was measured at another interval is another measurement."""
    return row["profile"]["decode"]["interval"]


KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "fidelity": lambda row: (row["policy_name"], row["budget"], row["text"], interval_of(row)),
    "equal-bytes": lambda row: (row["text"], row["share"], row["matched"], row["way"]),
    "drift": lambda row: row["text"],
    "recall": lambda row: (
        row["policy_name"],
        row["budget"],
        row["kind"],
        row["seed"],
        row["output_length"],
        interval_of(row),
    ),
    "loops": lambda row: (row["policy_name"], row["budget"], row["seed"], interval_of(row)),
}
ROWS = {part: Rows(HERE / f"results/quality-{part}.jsonl", key) for part, key in KEYS.items()}


def protected(budget: int) -> dict[str, dict[str, Any]]:
    """Policies that keep the prompt: name -> overrides of the default profile."""
    slide = {"decode.strategy": "slide", "decode.budget": budget, "decode.interval": interval_for(budget)}
    return {
        "slide": slide,
        "adaptive": {**slide, "decode.strategy": "adaptive"},
        "discontinuous": {**slide, "decode.strategy": "discontinuous", "decode.interval": "auto"},
        "random": {**slide, "decode.scorer": "random"},
        "recency": {**slide, "decode.scorer": "recency"},
    }


def interval_for(budget: int) -> int | str:
    """64, or a quarter of a small budget: with `recent` and 64 new tokens a budget of 64 is full.

    Then nothing is left for the scorer to choose, and every policy is `recency`.
    """
    return "auto" if budget >= 256 else budget // 4


def unified(budget: int, prompt: int) -> dict[str, dict[str, Any]]:
    """Baselines that may evict the prompt, holding as much as the prompt and the budget together."""
    total = prompt + budget
    all_go = {
        "decode.protect_prompt": False,
        "decode.total_budget": total,
        "decode.budget": total,
        "decode.interval": interval_for(budget),
    }
    recent = max(1, min(256, budget // 2))
    return {
        "unified slide": {**all_go, "decode.recent": recent},
        "streamingllm": {**all_go, "decode.scorer": "recency", "decode.sinks": 4, "decode.recent": recent},
        "h2o": {**all_go, "decode.scorer": "accumulated", "decode.recent": total // 2},
        "tova": {**all_go, "decode.share": "layer", "decode.recent": 1},
        "snapkv-decode": {
            **all_go,
            "decode.scorer": {"name": "window", "window": 32, "kernel": 5},
            "decode.recent": 32,
        },
    }


def interval_in(keys: dict[str, Any]) -> int | str:
    return keys.get("decode.interval", "auto")


@dataclass(frozen=True)
class Job:
    """One row that is missing."""

    part: str
    key: Any
    core_s: float  # what it takes a core, roughly, on the machine that this was sized on
    run: Callable[[], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=["small", "large"], default="small")
    parser.add_argument("--only", default="", help="parts whose name contains this: " + ", ".join(KEYS))
    parser.add_argument("--list", action="store_true", help="print what is missing, measure nothing")
    parser.add_argument(
        "--docs", action="store_true", help="write docs/results/quality.md's tables and plots"
    )
    args = parser.parse_args()
    if args.docs:
        import quality_docs

        quality_docs.write()
        return
    jobs = [job for job in missing(args.size == "large") if args.only in job.part]
    if args.list:
        for job in jobs:
            print(f"{job.part}: {job.key}: about {job.core_s:.0f} s")
        print(f"{len(jobs)} rows, about {as_duration(sum(job.core_s for job in jobs))} on one core")
        return
    started, spent, planned = time.perf_counter(), 0.0, sum(job.core_s for job in jobs)
    for number, job in enumerate(jobs, 1):
        before = time.process_time()
        row = job.run()
        if job.key in ROWS[job.part].done():
            continue  # another process was faster
        ROWS[job.part].add(slim(row | {"versions": versions(), "hardware": machine(model().device)}))
        spent += job.core_s
        left = (planned - spent) * (time.perf_counter() - started) / spent
        took = time.process_time() - before
        print(
            f"[{number}/{len(jobs)}] {job.part} {job.key}: {took:.0f} s of CPU; {as_duration(left)} left",
            file=sys.stderr,
            flush=True,
        )


def slim(row: Any, digits: int = 6) -> Any:
    """What the tables and plots are made of: no texts, the interval alone of a profile, rounded numbers."""
    if isinstance(row, float):
        return float(f"{row:.{digits}g}")
    if isinstance(row, list):
        return [slim(one, digits) for one in row]
    if not isinstance(row, dict):
        return row
    if "decode" in row and "model" in row:  # a profile: what produced the row stands in this file
        return {"decode": {"interval": row["decode"]["interval"]}}
    return {key: slim(one, digits) for key, one in row.items() if key not in ("by_layer",)}


def missing(large: bool) -> Iterator[Job]:
    """The text with the longest prompt comes last: it takes as long as the two others together."""
    texts = {
        text: [*fidelity_jobs(text, large), *claim_jobs(text)]
        for text in sorted(PROMPT_TOKENS, key=lambda text: PROMPT_TOKENS[text])
    }
    *shorter, longest = texts.values()
    everything = [
        *(job for jobs in shorter for job in jobs),
        *recall_jobs(large),
        *loop_jobs(large),
        *longest,
    ]
    done = {part: rows.done() for part, rows in ROWS.items()}
    return (job for job in everything if job.key not in done[job.part])


@lru_cache(1)
def model() -> LoadedModel:
    return open_model(ModelSettings(name="smollm2-135m", load_in=None)).load()  # plain float32


def profile(keys: dict[str, Any]) -> LoadedProfile:
    return load_profile("default", {**PLAIN, **keys})


# Fidelity


def fidelity_jobs(text: str, large: bool) -> Iterator[Job]:
    yield fidelity_job(text, "full", None, lambda _prompt: {"decode.strategy": "full"}, 14)
    for budget in BUDGETS:
        for name in protected(budget):
            cost = {"adaptive": 30, "discontinuous": 30 + budget * 0.04}.get(name, 16 if budget > 64 else 24)
            yield fidelity_job(text, name, budget, lambda _prompt, b=budget, n=name: protected(b)[n], cost)
        for name in unified(budget, 1000):
            cost = {"h2o": 60, "tova": 16, "snapkv-decode": 20}.get(name, 16)
            slow = name == "h2o" and (text, budget) not in H2O
            if large or (name != "unified slide" and not slow):
                keys_of = lambda prompt, b=budget, n=name: unified(b, prompt)[n]  # noqa: E731
                yield fidelity_job(text, name, budget, keys_of, cost)
        every_token = ["slide", "adaptive", "recency"]
        if not large:  # a replay that stops at every token takes minutes: one, to compare with
            every_token = ["slide"] if (text, budget) == ("logbook", 256) else []
        for name in every_token:
            keys = {**protected(budget)[name], "decode.interval": 1}
            yield fidelity_job(text, f"{name}, every token", budget, lambda _prompt, k=keys: k, 180)


def fidelity_job(
    text: str, name: str, budget: int | None, keys: Callable[[int], dict[str, Any]], cost: float
) -> Job:
    def run() -> dict[str, Any]:
        settings = profile(keys(len(known_text(text).prompt_ids)))
        row = measure(reference(text), settings).as_dict()
        return {"policy_name": name, "budget": budget, **row, "profile": settings.profile.as_dict()}

    cost *= 1 + PROMPT_TOKENS[text] / 4000  # attention to a long prompt
    return Job("fidelity", (name, budget, text, interval_in(keys(1000))), cost, run)


@lru_cache(1)
def reference(text: str) -> Reference:
    return Reference.of(model(), known_text(text))


def known_text(name: str) -> KnownText:
    """Written once and kept, so that later measurements are of the same text."""
    file = TEXTS / f"quality-{name}.json"
    if not file.is_file():
        if name == "pages":
            text = (HERE.parent / PAGES).read_text(encoding="utf-8")
            ids = model().tokenizer(text)["input_ids"][: PAGES_PROMPT + OUTPUT]
            save_text(file, ids[:PAGES_PROMPT], ids[PAGES_PROMPT:])
        else:
            write_texts()
    saved = json.loads(file.read_text(encoding="utf-8"))
    return KnownText(name, saved["prompt_ids"], saved["output_ids"])


def write_texts() -> None:
    print(f"writing {OUTPUT:,} tokens after each of {', '.join(PROMPTS)}; some minutes", file=sys.stderr)
    settings = load_profile(
        "full",
        {
            **PLAIN,
            "sampling.max_new_tokens": OUTPUT,
            "sampling.temperature": 1.0,
            "sampling.repetition_penalty": 1.1,
            "sampling.top_p": 0.95,
            "sampling.ignore_eos": True,
            "sampling.seed": 1,
        },
    )
    prompts = [encoded((HERE.parent / file).read_text(encoding="utf-8")) for file in PROMPTS.values()]
    for written in write_all(model(), settings, dict(enumerate(prompts))):
        name = list(PROMPTS)[written.prompt]
        save_text(TEXTS / f"quality-{name}.json", prompts[written.prompt], written.ids)


def save_text(file: Path, prompt_ids: list[int], output_ids: list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = model().tokenizer.decode(output_ids)
    saved = {"prompt_ids": prompt_ids, "output_ids": output_ids, "text": text}
    file.write_text(json.dumps(saved, ensure_ascii=False) + "\n", encoding="utf-8")


def encoded(text: str) -> list[int]:
    return model().opened.encode(text, load_profile("full").profile.prompt)


# The paper's two claims


def claim_jobs(text: str) -> Iterator[Job]:
    yield Job("drift", text, 35, lambda: drift_row(text))
    for kv in PACKED:
        yield Job("equal-bytes", (text, "all", "both", kv), 30, lambda kv=kv: packed_row(text, kv))
    pairs = list(claims.equal_bytes(PROMPT_TOKENS[text], OUTPUT, SHARES, window=32))
    for share in dict.fromkeys(pair.share for pair in pairs):
        of_share = [pair for pair in pairs if pair.share == share]
        yield Job(
            "equal-bytes", (text, share, "both", "prompt"), 20, lambda p=of_share[0]: prompt_row(text, p)
        )
        for pair in of_share:
            yield Job(
                "equal-bytes",
                (text, share, pair.matched, "output"),
                16,
                lambda p=pair: equal_bytes_row(text, p, "output"),
            )


def drift_row(text: str) -> dict[str, Any]:
    return {"text": text, "top": 64, "lags": [lag.as_dict() for lag in claims.drift(reference(text), top=64)]}


def prompt_row(text: str, pair: claims.EqualBytes) -> dict[str, Any]:
    """The compressed prompt, with which both the budget of equal peak and that of equal mean are compared."""
    return {**equal_bytes_row(text, pair, "prompt"), "matched": "both", "output_budget": None}


def packed_row(text: str, kv: str) -> dict[str, Any]:
    """Prompt and output whole, in fewer bits."""
    settings = load_profile("full", {"cache.kv": kv})
    row = measure(reference(text), settings).as_dict()
    return {**row, "share": "all", "matched": "both", "way": kv, "profile": settings.profile.as_dict()}


def equal_bytes_row(text: str, pair: claims.EqualBytes, way: str) -> dict[str, Any]:
    prompt = len(known_text(text).prompt_ids)
    assert prompt == PROMPT_TOKENS[text], f"{text} has a prompt of {prompt} tokens now: its budgets change"
    settings = claims.equal_bytes_profiles(pair)[way]
    row = measure(reference(text), settings).as_dict()
    return {**asdict(pair), **row, "way": way, "profile": settings.profile.as_dict()}


# Recall


def recall_jobs(large: bool) -> Iterator[Job]:
    lengths = (RECALL_TOKENS, 2048) if large else (RECALL_TOKENS,)
    for tokens in lengths:
        budgets = (*RECALL_BUDGETS, 1024) if tokens > 1024 else RECALL_BUDGETS
        for kind in KINDS:
            seeds = (10 if large else 3) if kind.endswith("fact") else (3 if large else 1)
            for seed in range(seeds):
                cost = tokens * 0.0055
                yield recall_job(
                    kind, seed, tokens, "full", None, lambda _prompt: {"decode.strategy": "full"}, cost
                )
                for budget in budgets:
                    for name in protected(budget):
                        keys = lambda _prompt, b=budget, n=name: protected(b)[n]  # noqa: E731
                        more = {"discontinuous": 3, "adaptive": 2}.get(name, 1)
                        yield recall_job(kind, seed, tokens, name, budget, keys, cost * more)
                    for name in ("unified slide", "streamingllm", *(["h2o"] if large else [])):
                        keys = lambda prompt, b=budget, n=name: unified(b, prompt)[n]  # noqa: E731
                        yield recall_job(kind, seed, tokens, name, budget, keys, cost * 1.3)


def recall_job(
    kind: str,
    seed: int,
    tokens: int,
    name: str,
    budget: int | None,
    keys: Callable[[int], dict[str, Any]],
    cost: float,
) -> Job:
    def run() -> dict[str, Any]:
        asked = asked_model(kind, seed, tokens)
        settings = profile(keys(len(asked.probe.prompt_ids)))
        row = recall(asked, settings).as_dict()
        what = {"policy_name": name, "budget": budget, "output_length": tokens}
        return what | row | {"profile": settings.profile.as_dict()}

    return Job("recall", (name, budget, kind, seed, tokens, interval_in(keys(1000))), cost, run)


@lru_cache(1)
def asked_model(kind: str, seed: int, tokens: int) -> AskedModel:
    return AskedModel.of(model(), probe(kind, seed, tokens))


def probe(kind: str, seed: int, tokens: int) -> Probe:
    return make_probe(
        kind,
        seed,
        tokens,
        encoded,
        lambda text: model().tokenizer(text, add_special_tokens=False)["input_ids"],
    )


# Loops


def loop_jobs(large: bool) -> Iterator[Job]:
    for seed in range(4 if large else 1):
        seed *= len(STORIES)  # lane i samples with seed + i
        yield loop_job("full", None, {"decode.strategy": "full"}, seed)
        for budget in LOOP_BUDGETS:
            for name, keys in protected(budget).items():
                yield loop_job(name, budget, keys, seed)


def loop_job(name: str, budget: int | None, keys: dict[str, Any], seed: int) -> Job:
    def run() -> dict[str, Any]:
        settings = profile(
            {**keys, **SAMPLING, "sampling.max_new_tokens": LOOP_TOKENS, "sampling.seed": seed}
        )
        prompts = [encoded(story) for story in STORIES]
        outputs = [
            {
                "prompt": written.prompt,
                **asdict(repetition(written.ids)),
                "held_mean": written.bytes.held_mean,
                "held_peak": written.bytes.held_peak,
                "evictions": written.evictions,
            }
            for written in sorted(
                write_all(model(), settings, dict(enumerate(prompts))), key=lambda written: written.prompt
            )
        ]
        what = {"policy_name": name, "budget": budget, "seed": seed, "tokens": LOOP_TOKENS}
        return what | {"outputs": outputs, "profile": settings.profile.as_dict()}

    return Job("loops", (name, budget, seed, interval_in(keys)), LOOP_TOKENS * 0.15, run)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
