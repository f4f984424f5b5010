"""scope profiles: list, show, check; and what a profile's check finds."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.errors import ProfileError
from scope_cli.profile import Profile, check, load_profile, profile_names, shipped_folder

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
        assert f"{name} " in result.stdout
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
        ({"decode": {"interval": 0}}, "decode.interval", "is 0, and has to be at least 1"),
        ({"decode": {"budget": "much"}}, "decode.budget", "is 'much', and has to be a whole number"),
        (
            {"decode": {"scorer": {"name": "window", "window": 0}}},
            "decode.scorer.window",
            "is 0, and has to be at least 1 (default 16)",
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
