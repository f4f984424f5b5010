"""The example in docs/how-to/add-a-scorer.md is a scorer."""

import re
from pathlib import Path

import torch

from scope_cli.policies import plugins
from tests.policies.scorers.plain import last_view

PAGE = Path(__file__).parents[3] / "docs/how-to/add-a-scorer.md"


def test_the_example_of_the_page_works():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    cls = plugins._registered["scorers", "value_norm"]
    try:
        view = last_view("attention")
        scores = cls(kernel=1).score(view)
        torch.testing.assert_close(scores[view.is_held], view.values.norm(dim=-1)[view.is_held])
        assert not torch.equal(scores, cls(kernel=3).score(view))
        assert plugins.options_in_words(cls) == "kernel=3"
    finally:
        del plugins._registered["scorers", "value_norm"]


def test_the_page_names_everything_the_view_offers():
    page = PAGE.read_text()
    view = last_view("attention")
    offered = {name for name in dir(view) if not name.startswith("_")} - {
        "precise", "queries", "query_positions", "head_seeds", "output_weight",
    }  # fmt: skip
    assert {name for name in offered if name not in page} == set()
