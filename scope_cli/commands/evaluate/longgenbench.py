"""scope evaluate longgenbench: a benchmark's questions in, right answers by profile and index out."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_cli.commands import options as o
from scope_cli.commands.evaluate import shared as s
from scope_cli.commands.io import check_writable, read_text, tell
from scope_cli.commands.overrides import overrides_of
from scope_cli.commands.variants import Budgets, Profiles, variants
from scope_cli.console.progress import Progress
from scope_cli.errors import UsageError
from scope_cli.measure.evaluate import longgenbench as bench
from scope_cli.measure.evaluate.results import Rows, identity
from scope_cli.names import did_you_mean

if TYPE_CHECKING:
    from scope_cli.models.model import LoadedModel


@o.with_settings(*o.MEASURED, "raw", "max_new_tokens")
def longgenbench_command(
    data: Annotated[
        Path, typer.Option(help="The questions, JSONL; docs/results/quality.md says where from.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", help="The result, JSON; answers are kept in FILE.answers.jsonl as they come."),
    ],
    task: Annotated[str, typer.Option(help="gsm8k, mmlu or csqa.")] = "gsm8k",
    questions: Annotated[int, typer.Option("-k", min=1, help="Questions in one prompt.")] = 30,
    examples: Annotated[
        str | None, typer.Option(help="A file with worked examples, numbered from 1.")
    ] = None,
    shots: Annotated[
        int, typer.Option(min=0, help="Without --examples: this many rows of the data are worked examples.")
    ] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask at most this many questions.")] = None,
    lanes: s.Lanes = 1,
    profile: Profiles = [],  # noqa: B006
    budgets: Budgets = None,
    force: s.Force = False,
    plot: s.Plot = None,
    json: s.Json = False,
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Ask K questions in one prompt and score the long answer question by question: SCOPE's LongGenBench.

    The same command again continues a run that was stopped; a finished one is refused without --force.

        scope evaluate longgenbench --data test.jsonl -k 30 -p full -p paper-4k-512 -o gsm8k.json
    """
    common = overrides_of(**given)
    chosen = variants(profile, budgets, common, default=["full", "paper-4k-512"])
    check_writable(output, plot, force)

    if task not in bench.TASKS:
        raise UsageError(f"--task: there is no {task!r}{did_you_mean(task, bench.TASKS)}")
    items, marked = bench.read_items(data, task)
    if examples is not None:
        worked: Any = read_text(examples, "--examples")
    elif marked:
        worked = marked
    else:
        worked, items = items[:shots], items[shots:]
    if not items:
        raise UsageError(f"--shots {shots} leaves no question of {data}", "give fewer, or --examples FILE")
    groups = bench.make_groups(items, questions, worked, limit)

    from scope_cli.engine.slots_check import slots_of
    from scope_cli.measure.evaluate.writing import write_all

    opened = s.open_for(chosen, offline)
    prompts = {
        group.number: opened.encode(group.prompt, chosen[0].settings.profile.prompt) for group in groups
    }
    asked, lengths = sum(len(group.right) for group in groups), [len(prompt) for prompt in prompts.values()]
    tell(f"{asked:,} questions in {len(groups)} prompts of {min(lengths):,} to {max(lengths):,} tokens")
    settings = {"task": task, "questions": questions, "data": data.name, "limit": limit, "lanes": lanes}
    result = s.start("longgenbench", opened, chosen, settings)
    answers = Rows(
        output.with_name(f"{output.name}.answers.jsonl"), lambda row: (row["profile_id"], row["prompt_id"])
    )
    names = {number: identity(prompt, [number]) for number, prompt in prompts.items()}
    loaded: LoadedModel | None = None
    progress = Progress(len(chosen) * len(groups))
    for variant in chosen:
        mine = variant.for_prompt(max(lengths))
        profile_id = identity(list(f"{opened.name} {mine.profile.model_dump_json()}".encode()))
        left = {
            number: ids
            for number, ids in prompts.items()
            if (profile_id, names[number]) not in answers.done()
        }
        if len(left) < len(groups):
            tell(f"{variant.name}: {len(groups) - len(left)} of {len(groups)} prompts were answered before")
            progress.less(len(groups) - len(left))
        if left:
            loaded = loaded or opened.load()
            settled, why = slots_of(loaded, mine)
            if why:
                tell(f"note: {variant.name}: {why}")
            for written in write_all(loaded, settled, left, lanes):
                scored = bench.score(written.text, groups[written.prompt])
                answers.add(
                    {
                        "profile": variant.name,
                        "profile_id": profile_id,
                        "prompt_id": names[written.prompt],
                        "group": written.prompt,
                        "reason": written.reason,
                        "output_tokens": len(written.ids),
                        "answers": [asdict(one) for one in scored],
                        "bytes": asdict(written.bytes),
                        "evictions": written.evictions,
                        "text": written.text,
                    }
                )
                right = f"{sum(one.correct for one in scored)} of {len(scored)} right"
                where = f"{variant.name}, prompt {written.prompt + 1} of {len(groups)}"
                progress.one_more()
                end = f"({written.reason}){progress.left(', {} left')}"
                tell(f"  {where}: {right}, {len(written.ids):,} tokens {end}")
        mine_of = {row["prompt_id"]: row for row in answers.read() if row["profile_id"] == profile_id}
        for name in names.values():
            row = {key: value for key, value in mine_of[name].items() if not key.startswith("profile")}
            s.add_row(result, variant, row, None)
    s.write(result, output)
    by_index = {
        name: list(bench.by_index([row["answers"] for row in rows], questions))
        for name, rows in s.rows_of(result).items()
    }
    if plot is not None:
        from scope_cli.measure.evaluate import plots

        plots.accuracy_by_index(by_index, plot)
    s.show(result, json)
    tell("right answers by the number of the question in its prompt:")
    for name, found in by_index.items():
        tell(f"  {name}: " + " ".join(f"{share:.0%}" for _index, share, _prompts in found))
