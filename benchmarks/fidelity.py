"""How far does each policy move the model from its full cache? KL divergence on the full cache's own texts.

    python benchmarks/fidelity.py              # measures the missing rows; Ctrl-C and run it again at will
    python benchmarks/fidelity.py --table      # prints the table of the rows there are, and draws scorers.png

Two sample prompts, for each a sampled output of 1,536 tokens under the full cache (temperature 1, top-p 0.95,
repetition penalty 1.1, a fixed seed: at lower temperatures the small model soon repeats itself, and then
every policy looks good). Every policy then reads the same prompt and is fed the same output, up to 64 known
tokens at a time, and its distributions are compared with the full cache's: mean KL(full || policy) in nats,
and how often both have the same most probable token. Rows: every scorer at budgets 128 and 384 (recent 32,
interval 64), and every prefill method at 25% and 50% of the prompt (with slide, budget 384). One JSON object
a row, in benchmarks/results/fidelity.jsonl; a row that is there is not measured again.
"""

import argparse
import json
import time
from pathlib import Path

from scope_cli.engine.calibrate import calibrate
from scope_cli.engine.run import generate, new_work
from scope_cli.events import Token
from scope_cli.measure.evaluate.fidelity import Fidelity, KnownText, Reference, measure
from scope_cli.models.model import open_model
from scope_cli.policies import plugins
from scope_cli.settings.load import load_profile
from scope_cli.settings.schema import ModelSettings

HERE = Path(__file__).parent
PROMPTS = {"report": HERE.parent / "examples/report.txt", "logbook": HERE.parent / "examples/logbook.txt"}
ROWS = HERE / "results/fidelity.jsonl"
TEXTS = HERE / "results/texts"
PICTURE = HERE.parent / "docs/images/scorers.png"
TOKENS = 1536
VARIANTS = {  # options that make a published method of a scorer, beside its defaults
    "window (32, max)": {"name": "window", "window": 32, "queries": "max"},
    "window (32, max, memory)": {"name": "window", "window": 32, "queries": "max", "memory": 0.8},
    "window (SnapKV)": {"name": "window", "window": 32, "kernel": 5},
    "window (G-KV)": {"name": "window", "window": 16, "group": "logit_max", "memory": 0.8},
}


def wanted(calibration: Path) -> list[tuple[str, dict]]:
    """(name, overrides of the default profile) of every row, the cheap ones first."""
    slide = {"decode.strategy": "slide", "decode.recent": 32, "decode.interval": 64}
    scorers: dict[str, object] = {name: name for name in plugins.names("scorers")} | VARIANTS
    scorers["tri"] = {"name": "tri", "calibration": str(calibration)}
    slow = [name for name in plugins.names("scorers") if plugins.plugin_class("scorers", name).every_step]
    rows = [
        (f"{name} {budget}", {**slide, "decode.scorer": scorers[name], "decode.budget": budget})
        for name in sorted(scorers, key=lambda name: name in slow)
        for budget in (128, 384)
    ]
    for name in plugins.names("prefills"):
        if name != "full":
            for share in ("25%", "50%"):
                keys = {**slide, "decode.budget": 384, "prefill.method": name, "prefill.budget": share}
                rows.append((f"prefill {name} {share}", keys))
    for name in plugins.names("wrappers"):
        for share in ("25%", "50%"):
            keys = {**slide, "decode.budget": 384, "prefill.method": "snapkv", "prefill.budget": share}
            rows.append((f"prefill snapkv + {name} {share}", {**keys, "prefill.wrap": [name]}))
    rows.append(("prefill full", {**slide, "decode.budget": 384}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args = parser.parse_args()
    if not args.table:
        measure_missing(args.only)
    print(table())
    draw()


def measure_missing(only: str) -> None:
    loaded = open_model(ModelSettings(name="smollm2-135m", load_in=None)).load()  # plain float32
    done = {(row["policy"], row["text"]) for row in read_rows()}
    ROWS.parent.mkdir(exist_ok=True)
    for text, file in PROMPTS.items():
        calibration = calibrated(loaded, without=text)
        rows = [(name, keys) for name, keys in wanted(calibration) if only in name]
        todo = [(name, keys) for name, keys in rows if (name, text) not in done]
        if not todo:
            continue
        prompt_ids = loaded.opened.encode(file.read_text(), load_profile("full").profile.prompt)
        output_ids = written(loaded, text, prompt_ids)
        reference = Reference.of(loaded, KnownText(text, prompt_ids, output_ids))
        for name, keys in todo:
            if (name, text) in {(row["policy"], row["text"]) for row in read_rows()}:
                continue  # another process was faster
            start = time.perf_counter()
            row = {
                "policy": name,
                "text": text,
                "prompt_tokens": len(prompt_ids),
                "output_tokens": len(output_ids),
            }
            row |= as_row(measure(reference, settings(keys)))
            with ROWS.open("a") as rows:
                rows.write(json.dumps(row) + "\n")
            took = time.perf_counter() - start
            print(f"{text}: {name}: KL {row['kl']:.4f}, top-1 {row['top1']:.4f}, {took:.0f} s", flush=True)


def settings(keys):
    return load_profile("default", {"sampling.max_new_tokens": TOKENS, "cache.kv": "plain", **keys})


def written(loaded, text, prompt_ids) -> list[int]:
    """The full cache's own output, written once and kept."""
    file = TEXTS / f"{text}.json"
    if not file.is_file():
        profile = load_profile(
            "full",
            {
                "cache.kv": "plain",
                "sampling.max_new_tokens": TOKENS,
                "sampling.temperature": 1.0,
                "sampling.repetition_penalty": 1.1,
                "sampling.top_p": 0.95,
                "sampling.ignore_eos": True,
                "sampling.seed": 1,
            },
        )
        work = new_work(profile, loaded.geometry, prompt_ids)
        events = [event for event in generate(loaded, profile.profile, [work]) if isinstance(event, Token)]
        TEXTS.mkdir(parents=True, exist_ok=True)
        ids = [event.token_id for event in events]
        file.write_text(
            json.dumps({"ids": ids, "text": "".join(event.text for event in events)}, ensure_ascii=False)
        )
    return json.loads(file.read_text())["ids"]


def calibrated(loaded, without: str) -> Path:
    """What the scorer tri needs, from the sample prompts that are not measured."""
    file = ROWS.parent / f"tri-without-{without}.safetensors"
    if not file.is_file():
        text = "\n".join(prompt.read_text() for name, prompt in PROMPTS.items() if name != without)
        calibrate(loaded.opened, loaded.tokenizer(text)["input_ids"], file)
    return file


def as_row(found: Fidelity) -> dict:
    """Mean KL and top-1 agreement over the output, and what the cache held at the end."""
    return {
        "kl": found.kl[0],
        "top1": found.top1[0],
        "kept_prompt": found.kept_prompt,
        "kept_generated": found.kept_generated,
        "held_bytes": found.bytes.held_end,
        "allocated_bytes": found.bytes.allocated,
        "full_bytes": found.bytes.full_peak,
        "evictions": found.evictions,
    }


def read_rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


def table() -> str:
    """Markdown, best mean KL first within each group."""
    rows: dict[str, dict[str, dict]] = {}
    for row in read_rows():
        rows.setdefault(row["policy"], {})[row["text"]] = row
    lines = ["| policy | " + " | ".join(f"KL {t} | top-1 {t}" for t in PROMPTS) + " | held / full |"]
    lines.append("|---|" + "---|" * (2 * len(PROMPTS) + 1))

    def mean(item):
        return sum(row["kl"] for row in item[1].values()) / len(item[1])

    for name, texts in sorted(rows.items(), key=lambda item: (item[0].startswith("prefill"), mean(item))):
        cells = [f"{texts[t]['kl']:.4f} | {texts[t]['top1']:.3f}" if t in texts else "- | -" for t in PROMPTS]
        share = sum(r["held_bytes"] for r in texts.values()) / sum(r["full_bytes"] for r in texts.values())
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * share:.0f}% |")
    return "\n".join(lines)


def draw() -> None:
    """Every scorer's mean KL over the texts, at both budgets, the best at the top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found: dict[str, dict[str, list[float]]] = {}
    for row in read_rows():
        name, _, budget = row["policy"].rpartition(" ")
        if not name.startswith("prefill"):
            found.setdefault(name, {}).setdefault(budget, []).append(row["kl"])
    names = sorted(found, key=lambda name: -sum(found[name]["384"]))
    figure, axes = plt.subplots(figsize=(8, 5.2), dpi=100)
    for budget, colour, marker in (("384", "#0072B2", "o"), ("128", "#D55E00", "s")):
        means = [sum(found[name][budget]) / len(found[name][budget]) for name in names]
        axes.plot(means, names, marker, color=colour, markersize=8, label=f"budget {budget}")
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in ("attention", "recency", "random") else "normal")
    axes.set_xscale("log")
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("KL to the full cache, nats: less is nearer", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", frameon=False, fontsize=11)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
