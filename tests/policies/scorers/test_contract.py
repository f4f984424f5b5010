"""What every scorer promises; the tests find the files by themselves."""

import pytest
import torch
from safetensors.torch import save_file

from scope_cli.policies import plugins
from scope_cli.policies.scorers.base import Scorer
from tests.helpers.caches import loaded_tiny, walk
from tests.policies.scorers.plain import LaneOf, last_view, written

NAMES = plugins.names("scorers")
# Fields that other forms of a scorer live behind.
FORMS = [*NAMES, {"name": "window", "memory": 0.8, "kernel": 5}, {"name": "vase", "mode": "cur"}]
every_form = pytest.mark.parametrize(
    "scorer",
    FORMS,
    ids=lambda form: form if isinstance(form, str) else "-".join(map(str, form.values())),
    indirect=True,
)
every_scorer = pytest.mark.parametrize("scorer", NAMES, indirect=True)


@pytest.fixture
def scorer(request, tmp_path):
    """A scorer as a profile names it, with what it cannot do without."""
    if request.param != "tri":
        return request.param
    chance = torch.Generator().manual_seed(0)
    shapes = {"mean": (4, 4, 2), "size": (4, 4)}
    file = {
        f"{layer}.{name}": torch.rand(shape, generator=chance)
        for layer in (0, 1)
        for name, shape in shapes.items()
    }
    save_file(file, tmp_path / "tri.safetensors")
    return {"name": "tri", "calibration": str(tmp_path / "tri.safetensors")}


def built(scorer) -> Scorer:
    options = {} if isinstance(scorer, str) else {**scorer}
    return plugins.build("scorers", options.pop("name", scorer), options)


CHANCE = [built(form) for form in ("random", "vase", {"name": "vase", "mode": "cur"})]


@every_scorer
def test_it_says_what_it_is(scorer):
    kind = type(built(scorer))
    assert len(plugins.purpose(kind)) > 30
    assert kind.needs != "-" and kind.cost != "-"


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_scores_are_finite_float32_for_every_held_token(scorer, dtype):
    view = last_view(scorer, dtype=dtype)
    built(scorer).observe(view)
    scores = built(scorer).score(view)
    assert scores.shape == view.positions.shape
    assert scores.dtype in (torch.float32, torch.float64)
    assert scores[view.is_held].isfinite().all()
    assert scores[view.is_candidate].unique().numel() > 1, "candidates can be told apart"


@every_form
@pytest.mark.parametrize("case", ["one token takes all attention", "all keys and values are the same"])
def test_scores_stay_finite_at_the_edges(scorer, case):
    view = last_view(scorer, dtype=torch.float32)
    if case == "one token takes all attention":
        view.queries = view.queries * 1e4
    else:
        view.keys, view.values = torch.zeros_like(view.keys), torch.ones_like(view.values)
    built(scorer).observe(view)
    assert built(scorer).score(view)[view.is_held].isfinite().all()


@every_form
def test_scoring_is_pure(scorer):
    view = last_view(scorer)
    assert view.keys.shape == view.values.shape  # they are read when somebody asks
    tensors = {**view._memos, **{name: x for name, x in vars(view).items() if isinstance(x, torch.Tensor)}}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    first = built(scorer).score(view).clone()
    assert torch.equal(first, built(scorer).score(view))
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())


@every_form
def test_the_order_of_the_slots_does_not_matter(scorer):
    """Nor for what is written into the memos."""
    view, shuffled = last_view(scorer), last_view(scorer)
    assert shuffled.keys.shape == shuffled.values.shape  # they are read when somebody asks
    order = torch.randperm(view.positions.shape[2], generator=torch.Generator().manual_seed(1))
    for name, tensor in vars(shuffled).items():
        if isinstance(tensor, torch.Tensor) and tensor.shape[:3] == view.positions.shape:
            setattr(shuffled, name, tensor[:, :, order])
    shuffled._memos = {name: memo[:, :, order] for name, memo in view._memos.items()}
    held = shuffled.is_held
    for one in (view, shuffled):
        built(scorer).observe(one)
    got, expected = built(scorer).score(shuffled), built(scorer).score(view)[:, :, order]
    torch.testing.assert_close(got[held], expected[held])
    for name, memo in shuffled._memos.items():
        torch.testing.assert_close(memo[held], view._memos[name][:, :, order][held])


@every_scorer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_budget_holds_and_prompt_and_recent_stay(tmp_path, scorer, dtype):
    loaded, oldest = loaded_tiny(tmp_path, "llama", dtype), []
    for step, cache in enumerate(walk(loaded, 120, scorer=scorer, budget=16, recent=4, interval=3), 1):
        now = 30 + step - 1
        for layer in cache.policy_layers:
            for held in layer.positions[0].tolist():
                tokens = sorted(position for position in held if position >= 0)
                assert tokens[:30] == list(range(30)), "the prompt stays"
                assert len(tokens) - 30 <= 16
                assert tokens[-4:] == list(range(now - 3, now + 1)), "the newest stay"
        oldest.append(tokens[30])
    assert cache.reading().evictions == (120 - 16 + 2) // 3 == 35
    assert cache.audit().passed, cache.audit().problems


@every_form
def test_the_same_seed_keeps_the_same_tokens(scorer):
    def tensors(seed):
        *_, (cache, logits) = written(scorer, 40, (LaneOf(seed=seed),))
        return {**cache.tensors(), "logits": logits}

    first, again, other = tensors(3), tensors(3), tensors(4)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    same = torch.equal(first["layers.1.positions"], other["layers.1.positions"])
    assert same == (built(scorer) not in CHANCE)


@every_form
def test_a_lane_does_not_notice_its_neighbour(scorer):
    """Bit for bit, at a constant number of lanes: another text, seed, prompt length, rhythm of evictions."""
    mine = LaneOf(prompt=20, seed=5, text=7)
    neighbours = [LaneOf(prompt=20, text=1), LaneOf(prompt=11, seed=9, text=2, interval=1)]

    def trace(neighbour):
        found = []
        for cache, logits in written(scorer, 40, (mine, neighbour), dtype=torch.float32, budget=14):
            layers = [(layer.positions[0].clone(), layer.keys[0].clone()) for layer in cache.policy_layers]
            memos = [memo[0].clone() for layer in cache.policy_layers for memo in layer.memos.values()]
            found.append([logits[0].clone(), *memos, *(tensor for pair in layers for tensor in pair)])
        assert cache.lanes[0].evictions > 3
        return found

    for one, other in zip(trace(neighbours[0]), trace(neighbours[1]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_form
def test_nothing_changes_when_everything_fits(scorer):
    how = {"dtype": torch.float32, "budget": 40}
    for (_, got), (_, expected) in zip(
        written(scorer, 40, **how), written("recency", 40, strategy="full", **how), strict=True
    ):
        assert torch.equal(got, expected)


@every_form
def test_an_unprotected_prompt_can_be_ranked_too(scorer):
    how = {"protect_prompt": False, "total_budget": 12, "recent": 2, "interval": 5}
    for cache, _ in written(scorer, 60, dtype=torch.float32, **how):
        for layer in cache.policy_layers:
            assert (layer.positions[0] >= 0).sum(-1).max() <= max(12, 31 - cache.lanes[0].evicted_tokens)
            scores = built(scorer).score(layer.view())
            assert scores[layer.positions[:, :, : scores.shape[2]] >= 0].isfinite().all()
    assert cache.audit().passed, cache.audit().problems
