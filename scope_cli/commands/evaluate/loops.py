"""scope evaluate loops: prompts in, how much each profile's outputs repeat themselves out."""

from dataclasses import asdict
from typing import Annotated

import typer

from scope_cli.commands import options as o
from scope_cli.commands.evaluate import shared as s
from scope_cli.commands.io import check_writable, read_text, tell
from scope_cli.commands.overrides import overrides_of
from scope_cli.commands.variants import Budgets, Profiles, variants
from scope_cli.console.progress import Progress
from scope_cli.measure.evaluate.results import identity


@o.with_settings(*o.MEASURED, "raw", "max_new_tokens", "ignore_eos", "seed", "temperature", "top_p", "top_k")
def loops_command(
    prompt_file: Annotated[list[str], typer.Option("-f", help="A prompt to write from, or - . Repeatable.")],
    repeat: Annotated[int, typer.Option(min=1, help="Outputs for each prompt, with different seeds.")] = 1,
    lanes: s.Lanes = 4,
    profile: Profiles = [],  # noqa: B006
    budgets: Budgets = None,
    output: s.Output = None,
    force: s.Force = False,
    plot: s.Plot = None,
    json: s.Json = False,
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Write outputs and count those that fall into repetition, and how many of their 4-grams are distinct.

    scope evaluate loops -f story.txt --max-new-tokens 2000 -p full -p default --budget 128,512
    """
    common = overrides_of(**given)
    chosen = variants(profile, budgets, common, default=["full", "default"])
    check_writable(output, plot, force)
    texts = [read_text(file, "--prompt-file") for file in prompt_file]

    from scope_cli.measure.evaluate.compare import compare
    from scope_cli.measure.evaluate.loops import repetition
    from scope_cli.measure.evaluate.writing import write_all

    opened = s.open_for(chosen, offline)
    prompts = [opened.encode(text, chosen[0].settings.profile.prompt) for text in texts] * repeat
    what = {"prompts": list(prompt_file), "repeat": repeat, "lanes": lanes}
    result = s.start("loops", opened, chosen, what)
    loaded, chosen = s.load(opened, chosen)
    progress = Progress(len(chosen) * len(prompts))
    for variant in chosen:
        longest = max(len(prompt) for prompt in prompts)
        for written in write_all(loaded, variant.for_prompt(longest), dict(enumerate(prompts)), lanes):
            found = repetition(written.ids)
            row = {
                "prompt_id": identity(prompts[written.prompt], [written.prompt]),
                **asdict(found),
                "reason": written.reason,
                "bytes": asdict(written.bytes),
                "evictions": written.evictions,
                "text": written.text,
            }
            s.add_row(result, variant, row, output)
            said = f"a loop of {found.loop_tokens:,} tokens" if found.looped else "no loop"
            progress.one_more()
            said += progress.left(" ({} left)")
            tell(f"  {variant.name}, output {written.prompt + 1}: {found.tokens:,} tokens, {said}")
    if plot is not None:
        from scope_cli.measure.evaluate import plots

        looped = {
            line.profile: (line.mean, line.low, line.high)
            for line in compare([("", result)])
            if line.metric == "unique_ngrams"
        }
        plots.with_intervals(looped, plot, "Repetition", "distinct 4-grams (share)")
    s.show(result, json)
