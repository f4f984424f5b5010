"""A value that cannot be taken is told under the name that was typed, by every command."""

import pytest

TEXT = ["--text", "examples/logbook.txt"]
CASES = {
    "generate": (["generate", "x", "--load-in", "int3"], "--load-in: there is no 'int3'"),
    "profile": (["profile", "--plan", "--load-in", "int3"], "--load-in: there is no 'int3'"),
    "profile, one of several": (["profile", "--plan", "--strategy", "slid,full"], "--strategy: there is no"),
    "bench": (["bench", "-f", "examples/report.txt", "--load-in", "int3"], "--load-in: there is no 'int3'"),
    "evaluate": (["evaluate", "recall", "--load-in", "int3"], "--load-in: there is no 'int3'"),
    "evaluate, a budget": (["evaluate", "recall", "--load-in", "none", "--budget", "0"], "--budget"),
    "tune": (["tune", *TEXT, "--load-in", "int3"], "--load-in: there is no 'int3'"),
    "tune, what it tries": (["tune", *TEXT, "--kv", "int9"], "--kv: there is no 'int9'"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_value_is_told_by_the_option_that_gave_it(scope, case):
    argv, said = CASES[case]
    result = scope(*argv)
    assert result.code == 2, result.stderr
    assert result.stderr.startswith(f"error: {said}") and "\nhint: " in result.stderr


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["batch", "--on-loop"], "scope batch"),
        (["models", "list", "--bytes"], "scope models list"),
        (["profile", "compare", "--memory"], "scope profile compare"),
        (["--none-such"], "scope"),
    ],
)
def test_an_option_that_is_not_there_or_has_no_value_leads_to_the_commands_help(scope, argv, command):
    result = scope(*argv)
    assert result.code == 2
    assert result.stderr.endswith(f"hint: {command} --help\n")
