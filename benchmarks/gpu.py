"""One model on one card: milliseconds a token and memory, against transformers' caches, in one process.

    python benchmarks/gpu.py random:llama-3.1-8b     # measures what is not there yet, in about eight minutes
    python benchmarks/gpu.py random:llama-3.1-8b --kvpress "$(benchmarks/peers/setup.sh kvpress)"
    python benchmarks/gpu.py --table                 # what was measured, as markdown
    python benchmarks/gpu.py --plot docs/images/gpu.png

The weights are read, or drawn (`random:`), once, and every contender uses them. A contender reads a prompt,
is fed what is known up to a position and writes some bursts of 64 tokens there; the first warms up. Who
forgets nothing reads everything up to the position as its prompt, which leaves the same cache. kvpress wants
an older transformers: a process of its own has it, and weights of its own, so it is measured alone. A row is
written as soon as it is measured, to benchmarks/results/gpu/MODEL.jsonl, and is not measured again.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "gpu"
PROMPT, BURST, SPARE = 4096, 64, 2
POSITIONS = (4096, 8192, 16_384, 32_768, 65_536)
MINUTES = 8.0


@dataclass(frozen=True)
class Contender:
    """Who is measured, and where."""

    name: str
    profile: str | None = None  # ours; None: transformers' cache of that name
    overrides: tuple[tuple[str, Any], ...] = ()
    keeps_all: bool = True
    lanes: tuple[int, ...] = (1,)
    positions: tuple[int, ...] = POSITIONS


def ours(name: str, profile: str, lanes: tuple[int, ...] = (1,), **overrides: Any) -> Contender:
    overrides = {"cache__kv": "plain", **overrides}
    keys = tuple((key.replace("__", "."), value) for key, value in overrides.items())
    return Contender(name, profile, keys, keeps_all=profile == "full", lanes=lanes)


INT8 = {"cache__keys": "int8", "cache__values": "int8"}
K8V4 = {"cache__keys": "int8", "cache__values": "int4"}
CONTENDERS = [
    ours("slide 2048", "default", (1, 8, 32), decode__budget=2048, model__compile="on"),
    Contender("DynamicCache", None, lanes=(1, 8, 32)),
    ours("full", "full", (1, 8, 32), model__compile="on"),
    ours("slide 2048 int8", "default", (1, 8, 32), decode__budget=2048, model__compile="on", **INT8),
    ours("slide 2048 k8v4", "default", (1, 8, 32), decode__budget=2048, model__compile="on", **K8V4),
    ours("full int8", "full", (1, 8, 32), model__compile="on", **INT8),
    ours("slide 512", "default", decode__budget=512, model__compile="on"),
    ours("slide 4096", "default", decode__budget=4096, model__compile="on"),
    ours("slide 1024", "default", decode__budget=1024, model__compile="on"),
    ours("slide 2048, no graphs", "default", (1, 8), decode__budget=2048, model__compile="off"),
    Contender("StaticCache", None),
    Contender("QuantizedCache", None),
    Contender("kvpress 2048", None, keeps_all=False),
]
APART = "kvpress 2048"  # in a process of its own, with --kvpress
PEERS = {"DynamicCache": "dynamic", "StaticCache": "static", "QuantizedCache": "quantized"}

DRAWN = {  # contender: label, colour, marker, dashes; told apart in grey as well
    "DynamicCache": ("transformers' DynamicCache", "#D55E00", "s", "--"),
    "full": ("scope, nothing evicted", "#56B4E9", "o", "--"),
    "slide 2048": ("scope, budget 2,048", "#0072B2", "o", "-"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="hub names, folders, or random:llama-3.1-8b and the like")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin nothing that would end later")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=PROMPT)
    parser.add_argument("--positions", type=int, nargs="+", default=list(POSITIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", help="names of contenders", default=[one.name for one in CONTENDERS]
    )
    parser.add_argument("--kvpress", help="its command: measure it, and nobody else")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    for model in args.models:
        measure(model, args, until)
    if args.table or not args.models:
        print(table(rows(args.results)))
    if args.plot:
        draw(rows(args.results), args.plot)


def measure(model: str, args: argparse.Namespace, until: float) -> None:
    """Every contender that has no row yet."""
    import torch

    from scope_cli.engine.roofline import bandwidth
    from scope_cli.models.model import open_model
    from scope_cli.settings.load import load_profile

    file = args.results / f"{model.rpartition('/')[2].replace(':', '-')}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    there = {key_of(row) for row in read(file)}
    failed = {key_of(row)[:3] for row in read(file) if "failed" in row}  # to try again, remove the row
    device = torch.device(args.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    todo = [
        (one, lanes)
        for one in CONTENDERS
        for lanes in one.lanes
        if one.name in args.only and lanes in args.lanes and (one.name == APART) == bool(args.kvpress)
    ]
    todo.sort(key=lambda pair: pair[1])
    gives = bandwidth(device)
    settings = load_profile("full", {"model.name": model, "model.device": args.device})
    loaded: Any = open_model(settings.profile.model)
    if not args.kvpress:
        loaded = loaded.load()
    print(f"{model} on {card}, {gives / 1e9:.0f} GB/s", file=sys.stderr, flush=True)
    longest = 0.0  # seconds of a contender so far
    for one, lanes in todo:
        positions = args.positions if lanes == 1 else args.positions[:1]
        context = loaded.geometry.context
        positions = [at for at in positions if at + SPARE <= context]
        positions = [at for at in positions if (card, one.name, lanes, at) not in there]
        if not positions or (card, one.name, lanes) in failed:
            continue
        if (began := time.monotonic()) + longest > until:
            print("the time is over; the same command goes on from here", file=sys.stderr)
            return
        known = {"model": model, "card": card, "contender": one.name, "lanes": lanes, "bandwidth": gives}
        for row in measured(loaded, one, lanes, positions, args):
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(known | row) + "\n")
            print(line_of(known | row), file=sys.stderr, flush=True)
        longest = max(longest, time.monotonic() - began)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measured(
    loaded: Any, one: Contender, lanes: int, positions: list[int], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each position; a row that says why where one cannot be measured."""
    import torch

    from scope_cli.measure.bench.protocol import Job

    contender = taking_part(one, loaded, args)
    opened = getattr(loaded, "opened", loaded)
    cuda = torch.device(args.device).type == "cuda"
    # those that forget begin again for each position too: on a GPU the loop is a step ahead of what it told
    for position in positions:
        start = position - BURST * (args.rounds + 1)
        prompt = start if one.keeps_all else min(args.prompt, position // 2)
        job = Job(
            loaded.name, str(opened.folder.path), prompt, position + SPARE, lanes, device=args.device,
            dtype=str(opened.dtype).removeprefix("torch."),
        )  # fmt: skip
        row: dict[str, Any] = {"position": position}
        try:
            weights = contender.load(job).weight_bytes
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            ids = torch.randint(
                0, 256, (lanes, position), generator=torch.Generator().manual_seed(0)
            ).tolist()
            began = time.perf_counter()
            contender.read([lane[:prompt] for lane in ids])
            row["read_s"] = time.perf_counter() - began
            row["prompt"] = prompt
            if start > prompt:
                contender.advance([lane[prompt:start] for lane in ids])
            reading_peak = torch.cuda.max_memory_allocated() if cuda else 0
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            contender.step(BURST)
            row["first_burst_s"] = time.perf_counter() - began
            row["step_ms"] = [1000 * contender.step(BURST)[0] / BURST for _ in range(args.rounds)]
            account = contender.account()
            row |= {
                "weight_bytes": weights,
                "held_bytes": account.held_bytes,
                "read_bytes": account.read_bytes,
                "reading_peak_bytes": reading_peak,
                "writing_peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
            }
            if one.name == APART:
                row["writing_peak_bytes"] = weights + contender.told["peak_bytes"] if cuda else 0
        except Exception as error:  # a contender that cannot is a row that says why
            row["failed"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        contender.run = contender.cache = contender.tokens = None
        if one.name == APART:
            contender.close()
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
        yield row
        if "failed" in row:
            return


def taking_part(one: Contender, loaded: Any, args: argparse.Namespace) -> Any:
    """Who does the work of a contender."""
    from scope_cli.measure.bench.engine import ScopeEngine
    from scope_cli.measure.bench.peers import TransformersPeer
    from scope_cli.models.attention import ATTENTION

    model = {"model.name": loaded.name, "model.device": args.device}
    if one.name == APART:
        from apart import Apart  # beside this file

        return Apart(f"{args.kvpress} --budget 2048")
    if one.profile is None:
        loaded.model.set_attn_implementation("sdpa")
        return TransformersPeer(PEERS[one.name], model, loaded)
    loaded.model.set_attn_implementation(ATTENTION)
    return ScopeEngine(one.profile, model | dict(one.overrides), loaded)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def rows(folder: Path = RESULTS) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.jsonl")) for row in read(file)]


def key_of(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["card"], row["contender"], row["lanes"], row["position"]


HEAD = (
    "model", "lanes", "position", "contender", "ms/step", "tokens/s", "read/step", "of limit", "held", "peak",
    "x DynamicCache",
)  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """Grouped by model, lanes and position; ratios are of tokens/s."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---:|---:|---|" + "---:|" * (len(HEAD) - 4)]
    order = {one.name: place for place, one in enumerate(CONTENDERS)}
    base = {
        (row["model"], row["lanes"], row["position"]): median(row["step_ms"])
        for row in found
        if row["contender"] == "DynamicCache" and "step_ms" in row
    }
    key = ("model", "lanes", "position")
    for row in sorted(found, key=lambda row: (*(row[name] for name in key), order[row["contender"]])):
        cells = [str(row["model"]), str(row["lanes"]), f"{row['position']:,}", row["contender"]]
        if "failed" in row:
            cells += [f"failed: {row['failed']}", *[""] * 6]
        else:
            step_ms = median(row["step_ms"])
            against = base.get((row["model"], row["lanes"], row["position"]))
            reads = row["weight_bytes"] + row["read_bytes"]
            share = reads / row["bandwidth"] / (step_ms / 1000)
            cells += [
                f"{step_ms:.2f} ({min(row['step_ms']):.2f}-{max(row['step_ms']):.2f})",
                f"{1000 * row['lanes'] / step_ms:,.0f}",
                f"{reads / 2**30:.1f} GiB",
                f"{100 * share:.0f}%",
                f"{row['held_bytes'] / 2**30:.2f} GiB",
                f"{row['writing_peak_bytes'] / 2**30:.1f} GiB",
                f"{against / step_ms:.2f}" if against else "-",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def line_of(row: dict[str, Any]) -> str:
    where = f"{row['contender']}, lanes {row['lanes']}, {row['position']:,}"
    if "failed" in row:
        return f"{where}: {row['failed']}"
    return (
        f"{where}: {median(row['step_ms']):.2f} ms, first burst {row['first_burst_s']:.1f} s, "
        f"read {row['lanes'] * row['prompt'] / row['read_s']:,.0f} tokens/s, "
        f"peak {row['writing_peak_bytes'] / 2**30:.1f} GiB"
    )


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Milliseconds a token against position, one lane, a panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = [row for row in found if row["lanes"] == 1 and "step_ms" in row]
    models = sorted({row["model"] for row in found})
    figure, axes = plt.subplots(1, len(models), figsize=(8 * len(models), 3.8), squeeze=False, sharey=True)
    for axis, model in zip(axes[0], models, strict=True):
        for name, (label, colour, marker, dashes) in DRAWN.items():
            points = sorted(
                (row["position"], median(row["step_ms"]))
                for row in found
                if (row["model"], row["contender"]) == (model, name)
            )
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    dashes,
                    marker=marker,
                    color=colour,
                    linewidth=2.5,
                    label=label,
                )
                beside = {"xytext": (9, -4), "textcoords": "offset points", "fontsize": 11}
                axis.annotate(f"{points[-1][1]:.0f}", points[-1], **beside)
        axis.set_title(model.removeprefix("random:"), fontsize=12)
        axis.set_xlabel("tokens of prompt and output so far", fontsize=12)
        axis.set_xlim(0, 1.06 * max(row["position"] for row in found))
        axis.set_ylim(0)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.tick_params(labelsize=11)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("ms for the next token", fontsize=12)
    axes[0][0].legend(loc="center left", frameon=False, fontsize=11, bbox_to_anchor=(0, 0.65))
    figure.tight_layout()
    figure.savefig(file, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
