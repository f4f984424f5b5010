"""scope profiles: list, show, check; and what a profile's check finds."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.commands.overrides import overrides_of, told_idle
from scope_cli.errors import ProfileError
from scope_cli.settings.find import in_place_of_shipped, profile_names, shipped_folder
from scope_cli.settings.load import check, load_profile
from scope_cli.settings.schema import Profile

SHIPPED = profile_names(shipped_folder())


def test_every_shipped_profile_is_valid_and_says_what_it_is_for(scope):
    assert {"default", "full", "slide", "adaptive", "discontinuous"} <= set(SHIPPED)
    assert scope("profiles", "check", *SHIPPED).code == 0
    for name in SHIPPED:
        profile = load_profile(name).profile
        assert profile.description and profile.model.name == "smollm2-135m"


def test_list_names_each_with_its_purpose(scope):
    result = scope("profiles", "list")
    for name in SHIPPED:
        assert f"{name}\t" in result.stdout
        assert load_profile(name).profile.description in result.stdout


@pytest.mark.parametrize("name", SHIPPED)
def test_what_show_prints_is_a_profile_that_says_the_same(scope, tmp_path, name):
    shown = scope("profiles", "show", name)
    (tmp_path / "copy.yaml").write_text(shown.stdout)
    assert load_profile(str(tmp_path / "copy.yaml")).profile == load_profile(name).profile


def test_set_reaches_every_key_and_a_plugins_options(scope):
    shown = yaml.safe_load(
        scope("profiles", "show", "slide", "--set", "decode.budget=99", "--set", "decode.recent=9").stdout
    )
    assert (shown["decode"]["budget"], shown["decode"]["recent"]) == (99, 9)
    wrong = scope("profiles", "show", "slide", "--set", "decode.scorer.nosuch=1")
    assert wrong.code == 2 and "decode.scorer.nosuch: no such key" in wrong.stderr


def test_check_reports_all_and_goes_on(scope, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("decode: {budget: none, recent: 0}\nnosuch: 1\n")
    result = scope("profiles", "check", bad, "slide")
    assert result.code == 2 and "slide: valid" in result.stdout
    for key in ("decode.budget", "decode.recent", "nosuch"):
        assert key in result.stderr


def test_a_profile_in_the_working_folder_comes_before_a_shipped_one(scope, tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "slide.yaml").write_text("description: mine\n")
    monkeypatch.chdir(tmp_path)
    assert load_profile("slide").profile.description == "mine"
    assert load_profile("full").profile.decode.strategy == "full"


@pytest.mark.parametrize(
    ("tree", "key", "words"),
    [
        ({"decode": {"strategy": "slid"}}, "decode.strategy", "did you mean slide?"),
        ({"decode": {"scorer": "randon"}}, "decode.scorer", "did you mean random?"),
        ({"decode": {"scorer": {"name": "random", "x": 1}}}, "decode.scorer.x", "no such key"),
        ({"decode": {"interval": 0}}, "decode.interval", "is 0; it must be at least 1"),
        ({"decode": {"budget": "much"}}, "decode.budget", "is 'much'; it must be a whole number"),
        (
            {"decode": {"scorer": {"name": "window", "window": 0}}},
            "decode.scorer.window",
            "is 0; it must be at least 1 (default 16)",
        ),
        (
            {"decode": {"scorer": {"name": "window", "queries": "most"}}},
            "decode.scorer.queries",
            "there is no 'most'; known: mean, max (default mean)",
        ),
        (
            {"decode": {"scorer": {"name": "window", "windw": 3}}},
            "decode.scorer.windw",
            "no such key; did you mean window?",
        ),
        ({"decode": {"interval": "often"}}, "decode.interval", "often"),
        (
            {"decode": {"strategy": "discontinuous", "budget": 9, "recent": 9}},
            "decode.recent",
            "heavy hitters",
        ),
        ({"decode": {"strategy": "discontinuous", "interval": 3}}, "decode.interval", "computes its own"),
        ({"decode": {"sinks": 4}}, "decode.sinks", "protect_prompt"),
        ({"decode": {"total_budget": 4}}, "decode.total_budget", "protect_prompt"),
        ({"decode": 3}, "decode", "mapping"),
        ({"modle": {}}, "modle", "did you mean model?"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature", "is -1"),
        ({"sampling": {"stop": [""]}}, "sampling.stop", ""),
        ({"model": {"device": "gpu"}}, "model.device", "a device is"),
        ({"model": {"device": "cuda:0,cuda:1"}}, "model.device", "a run has one device"),
        ({"prefill": {"method": "ful"}}, "prefill.method", "did you mean full?"),
    ],
)
def test_what_is_wrong_is_named(tree, key, words):
    with pytest.raises(ProfileError) as caught:
        check(tree, "test")
    assert str(caught.value).startswith(f"{key}: ") and words in str(caught.value)


@given(
    st.dictionaries(
        st.sampled_from([*Profile.model_fields, "nosuch"]),
        st.none()
        | st.integers()
        | st.text(max_size=3)
        | st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=3)),
    )
)
def test_any_tree_is_a_profile_or_one_clear_error(tree):
    try:
        check(tree, "test")
    except ProfileError as error:
        assert ": " in str(error)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("decode: {budget: yes}\n", "decode.budget: is true, which is not allowed here"),
        ("decode: {recent: on}\n", "decode.recent: is true"),
        ("sampling: {temperature: no}\n", "sampling.temperature: is false"),
        ("sampling: {temperature: .inf}\n", "sampling.temperature: is inf"),
        ("sampling: {top_p: .nan}\n", "sampling.top_p: is nan"),
        ("decode: {scorer: {name: window, window: yes}}\n", "decode.scorer.window: is true"),
        ("decode: {budget: 5}\ndecode: {budget: 6}\n", "line 2, column 1: decode stands here twice"),
        ("decode:\n  budget: 5\n  budget: 6\n", "line 3, column 3: budget stands here twice"),
        ("a: &a [1]\nb: *a\n", "line 2, column 4: aliases are not read"),
        ("decode: " + "[" * 100_000, "nested too deep"),
        ("description: 2024-99-99\n", "month must be in 1..12"),
        ("decode: {budget: 99999999999999999999}\n", "must be at most 1,000,000,000"),
        ("decode: {interval: often}\n", "is 'often'; it must be a whole number, or auto or discontinuous"),
        ("a" * 2**21, "has 2,097,152 bytes"),
        ("\0", "NUL"),
    ],
    ids=lambda text: text[:30],
)
def test_what_yaml_makes_of_a_slip_is_told(scope, tmp_path, text, where):
    (tmp_path / "mine.yaml").write_text(text)
    result = scope("profiles", "check", tmp_path / "mine.yaml")
    assert result.code == 2 and where in result.stderr and "Traceback" not in result.stderr


def test_switches_may_be_written_as_yaml_does(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {compile: on}\nprompt: {raw: yes}\nsampling: {top_k: 0}\n")
    profile = load_profile(str(tmp_path / "mine.yaml")).profile
    assert (profile.model.compile, profile.prompt.raw, profile.sampling.top_k) == ("on", True, None)


def test_a_broken_profile_is_listed_as_broken(scope, tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "bad.yaml").write_text("description: mine\ndecode: {budget: 0}\n")
    (tmp_path / "profiles" / "worse.yaml").write_text("decode: [\n")
    (tmp_path / "profiles" / "good.yaml").write_text("description: fine\n")
    monkeypatch.chdir(tmp_path)
    result = scope("profiles", "list")
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert result.code == 0
    assert "broken: decode.budget: is 0" in rows["bad"] and "broken: " in rows["worse"]
    assert "fine" in rows["good"] and "broken" not in rows["good"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--budget", "-1"], "--budget: is -1; it must be at least 1"),
        (["--budget", "many"], "--budget: is 'many'; it must be a whole number"),
        (["--temperature", "warm"], "--temperature: is 'warm'; it must be a number"),
        (["--seed", "-1"], "--seed $RANDOM"),
        (["--top-k", "-1"], "0: among all tokens"),
        (["--interval", "-3"], "--interval: is -3"),
        (["--dtype", "fp16"], "--dtype: there is no 'fp16'; did you mean float16?"),
        (["--dtype", "BF16"], "did you mean bfloat16?"),
        (["--load-in", "q4"], "did you mean int4?"),
        (["--device", "gpu"], "did you mean cuda?"),
        (["--scorer", "window", "--set", "decode.scorer.windw=3"], "--set decode.scorer.windw: no such key"),
        (["--set", "decode.scorer.name=nosuch"], "--set decode.scorer.name"),
        (["--budget", "100", "--set", "decode.budget=50"], "contradict each other"),
        (["--set", "decode.budget=1", "--set", "decode.budget=2"], "given twice"),
        (["-p", "baselines/tova", "--budget", "16"], "--budget has no effect"),
        (["--threads", "100000"], "--threads: is 100,000"),
        (["--samples", "100000"], "--samples: is 100,000; it must be at most 10,000"),
        (["--max-new-tokens", "9" * 30], "--max-new-tokens: is 9"),
        (["--recent", "9" * 12], "--recent: is 999,999,999,999"),
        (["--interval", "9" * 5000], "--interval"),
        (["--lanes", "9" * 30, "--temperature", "inf"], "--temperature: is inf"),
        (["--prefill", "snapkv", "--prefill-budget", "9" * 40], "--prefill-budget"),
        (["--set", "prefill.chunk=99999999999999"], "--set prefill.chunk"),
    ],
)
def test_a_message_names_what_was_typed(scope, argv, message):
    result = scope("generate", "hi", *argv)
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr and result.stderr.startswith("error: ")
    assert ("Input should" not in result.stderr and "hint: " in result.stderr) or "twice" in message


def test_a_plugin_keeps_its_options_wherever_they_stand():
    typed = overrides_of(["decode.scorer.window=5"], scorer="window")
    scorer = load_profile("default", typed).profile.decode.scorer
    assert (scorer.name, scorer.options) == ("window", {"window": 5})


@pytest.mark.parametrize(
    ("profile", "typed", "idle"),
    [
        ("full", {"budget": 9, "scorer": "random"}, ["--scorer", "--budget"]),
        ("default", {"strategy": "full", "interval": "3"}, ["--interval"]),
        ("slide", {"top_k": 5, "seed": 3}, ["--top-k", "--seed"]),
        ("slide", {"seed": 3, "scorer": "random"}, []),
        ("default", {"top_k": 5, "seed": 3, "budget": 9}, []),
        ("default", {"ignore_eos": True, "min_new_tokens": 3}, ["--min-new-tokens"]),
        ("default", {"strategy": "rpc", "budget": 9}, ["--budget"]),
        ("default", {"device": "cuda", "threads": "3"}, ["--threads"]),
    ],
)
def test_what_was_typed_and_does_nothing_is_told(profile, typed, idle):
    notes = told_idle(load_profile(profile, overrides_of([], **typed)))
    assert [note.split(" has no effect: ")[0] for note in notes] == idle


def test_a_budget_beside_a_total_budget_that_was_typed_as_well_is_right():
    both = overrides_of(["decode.total_budget=100", "decode.protect_prompt=false"], budget=50, recent=10)
    assert told_idle(load_profile("default", both)) == []


def test_a_profile_that_takes_the_place_of_a_shipped_one_is_named(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    for name in ("default", "mine"):
        (tmp_path / "profiles" / f"{name}.yaml").write_text("description: mine\n")
    monkeypatch.chdir(tmp_path)
    notes = {
        name: in_place_of_shipped(name, load_profile(name).source) for name in ("default", "mine", "full")
    }
    assert notes["default"] == "the profile is profiles/default.yaml, in the place of the shipped default"
    assert notes["mine"] == notes["full"] == ""
