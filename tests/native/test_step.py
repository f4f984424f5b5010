"""The native step against transformers' layers, for every row of its table; the same bits in any company."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import CacheShape
from scope_cli.engine.step import EagerStep
from scope_cli.formats.base import PLAIN, SHORT, SlotFormat
from scope_cli.models import architecture
from scope_cli.models.architecture import geometry_of
from scope_cli.models.attention import ATTENTION, attention_of
from scope_cli.models.decoders import ROWS, NotInTable, decoder_of
from scope_cli.models.native_step import NativeStep
from scope_cli.native.layout import Kind
from scope_cli.policies import plugins
from scope_cli.policies.policy import Policy
from scope_cli.settings.policy import DecodeSettings
from scope_cli.settings.schedules import schedule_of
from tests.families import model_of, random_model
from tests.helpers.packed_linear import pack_linears

FAMILIES = [
    *(row for row in ROWS if row != "gemma2"),
    "llama (biases)", "llama (tied)", "llama (yarn)", "llama (llama3)", "llama (longrope)", "mistral (full)",
    "qwen2 (sliding)", "qwen2 (yarn)", "phi3 (full)", "phi3 (longrope)",
]  # fmt: skip
TOKENS = 24


def model_for(row: str, dtype: torch.dtype = torch.float32) -> Any:
    model = model_of(row).to(dtype)
    model.set_attn_implementation(ATTENTION)
    return model


def prompt_of(tokens: int, seed: int) -> list[int]:
    return [(31 * place + 7 + seed) % 300 for place in range(tokens)]


@dataclass
class Run:
    """A cache whose lanes have read a prompt each, and evict."""

    model: Any
    prompts: list[list[int]]
    budget: int | None = 8
    scorer: str = "window"
    dtype: torch.dtype = torch.float32
    room: int = 400  # of a prompt
    form: SlotFormat = PLAIN
    exact: int = 0
    cache: ScopeCache = field(init=False)

    @torch.no_grad()
    def __post_init__(self) -> None:
        geometry = geometry_of(self.model.config)
        policy = Policy(plugins.build("scorers", self.scorer, {}))
        shape = CacheShape(
            lanes=len(self.prompts),
            prompt_slots=(self.room,) * len(geometry.layers),
            evictable=TOKENS if self.budget is None else self.budget + 1,
            context=2048,
            ring=16,
            memos=len(policy.scorer.memos),
            form=self.form,
            exact=self.exact,
        )
        told = attention_of(self.model, geometry, weighs=False)
        self.cache = ScopeCache(geometry, shape, policy, attention=told, dtype=self.dtype)
        settings = DecodeSettings(strategy="full")
        if self.budget is not None:
            settings = DecodeSettings(strategy="slide", budget=self.budget, recent=4)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a prompt is read in the same way, whatever is tested
        for lane, prompt in enumerate(self.prompts):
            self.cache.start_prompt(lane, schedule_of(settings, TOKENS, kept_prompt=len(prompt)))
            positions = self.cache.start_chunk(lane, len(prompt))
            self.model(
                input_ids=torch.tensor([prompt]),
                position_ids=positions,
                use_cache=False,
                scope_cache=self.cache,
            )
            self.cache.end_chunk()
            self.cache.start_decode(lane)
        torch.set_num_threads(threads)

    @torch.no_grad()
    def logits(self, step: Any, first: int = 3, tokens: int = TOKENS) -> Tensor:
        """[tokens, lanes, vocab]; what is fed does not depend on what comes out."""
        told = []
        for token in range(tokens):
            ids = torch.tensor([[(first + 7 * token + 11 * lane) % 300] for lane in range(len(self.prompts))])
            told.append(step(ids).clone())
            self.cache.end_step()
        return torch.stack(told)


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).float().pow(2).mean().sqrt() / expected.float().pow(2).mean().sqrt())


@pytest.mark.parametrize("row", FAMILIES)
def test_a_model_of_the_table_gives_what_transformers_layers_give(native, row):
    model = model_for(row)
    prompts = [prompt_of(70, 0), prompt_of(381, 1)]
    theirs, ours = Run(model, prompts), Run(model, prompts)
    expected = theirs.logits(EagerStep(model, theirs.cache))
    assert distance(ours.logits(NativeStep(model, ours.cache, native.library)), expected) < 2e-5
    same_state(ours.cache, theirs.cache)


def same_state(ours: ScopeCache, theirs: ScopeCache) -> None:
    """Slots, positions, free slots, queries, memos: what a step and an eviction leave behind."""
    for (name, got), expected in zip(ours.tensors().items(), theirs.tensors().values(), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3, msg=name)
    assert [count and count.evicted_tokens for count in ours.lanes] == [
        count and count.evicted_tokens for count in theirs.lanes
    ]
    assert not ours.audit().problems


@pytest.mark.parametrize("kv", ["int8", "k8v4"])
@pytest.mark.parametrize("row", ["llama", "gemma3_text", "qwen3", "phi3"])
def test_packed_slots_are_written_and_read_as_the_cache_does(native, row, kv):
    """A token is packed by either to the same numbers, but for one that lies on the edge between two."""
    model = model_for(row)
    if SHORT[kv].problem(geometry_of(model.config).layers[0].head_dim):
        pytest.skip("heads that cannot be packed")
    theirs, ours = (Run(model, [prompt_of(70, 0), prompt_of(81, 1)], form=SHORT[kv]) for _ in range(2))
    expected = theirs.logits(EagerStep(model, theirs.cache))
    assert distance(ours.logits(NativeStep(model, ours.cache, native.library)), expected) < 0.02
    assert ours.cache.reading() == theirs.cache.reading() and not ours.cache.audit().problems
    for layer, other in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        assert (layer.keys == other.keys).float().mean() > 0.9


EXACT = ("exact.keys", "exact.values", "exact.slots", "exact.bias", "bias", "positions", "vacant")


@pytest.mark.parametrize("exact", [1, 4, 20])
@pytest.mark.parametrize("row", ["llama", "gemma3_text"])
def test_exact_tokens_are_seen_in_place_of_their_packed_selves(native, row, exact):
    """And what becomes of them is what the cache makes of them: veiled slots, ring, free slots."""
    model = model_for(row)
    prompts = [prompt_of(70, 0), prompt_of(2, 1)]
    budget = None if exact > 4 else 8
    theirs, ours = (Run(model, prompts, budget=budget, form=SHORT["int8"], exact=exact) for _ in range(2))
    expected = theirs.logits(EagerStep(model, theirs.cache))
    assert distance(ours.logits(NativeStep(model, ours.cache, native.library)), expected) < 0.02
    left_behind = theirs.cache.tensors()
    for name, got in ours.cache.tensors().items():
        if name.endswith(EXACT):
            wanted = left_behind[name]
            torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.05, msg=name)
    assert not ours.cache.audit().problems


def test_as_many_exact_tokens_as_there_are_tokens_are_no_rounding(native):
    """What is generated is all exact, and the prompt is a token: as close to plain slots as one key is."""
    model = model_for("llama")
    theirs = Run(model, [prompt_of(1, 0)], budget=None)
    ours = Run(model, [prompt_of(1, 0)], budget=None, form=SHORT["int8"], exact=TOKENS)
    for packed, plain in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        plain.keys[:, :, :1] = packed.store.plain_keys((slice(None), slice(None), slice(1)))
        plain.values[:, :, :1] = packed.store.plain_values((slice(None), slice(None), slice(1)))
    expected = theirs.logits(EagerStep(model, theirs.cache))
    assert distance(ours.logits(NativeStep(model, ours.cache, native.library)), expected) < 2e-5


@pytest.mark.parametrize("scorer", ["attention", "accumulated", "keydiff", "recency"])
def test_scorers_find_what_they_look_for(native, scorer):
    model = model_for("llama")
    theirs, ours = (Run(model, [prompt_of(70, 0)], scorer=scorer) for _ in range(2))
    expected = theirs.logits(EagerStep(model, theirs.cache))
    assert distance(ours.logits(NativeStep(model, ours.cache, native.library)), expected) < 2e-5
    same_state(ours.cache, theirs.cache)


def test_bfloat16_slots_and_weights_are_within_their_rounding(native):
    model = model_for("qwen3", torch.bfloat16)
    theirs, ours = (Run(model, [prompt_of(70, 0)], dtype=torch.bfloat16) for _ in range(2))
    expected = theirs.logits(EagerStep(model, theirs.cache))
    assert distance(ours.logits(NativeStep(model, ours.cache, native.library)), expected) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", ["llama", "gemma3_text", "olmo2"])
def test_a_lane_has_the_same_bits_in_any_company(native, row, dtype):
    model = model_for(row, dtype)

    packed = (SHORT["int8"], 4) if row == "llama" else (PLAIN, 0)

    def first_lane(
        lanes: int, instructions: str, threads: int, others: int = 0, rests: int | None = None
    ) -> Tensor:
        native.use(instructions)
        native.threads(threads)
        prompts = [prompt_of(370, 0)] + [prompt_of(70 + 9 * lane, lane + others) for lane in range(1, lanes)]
        run = Run(model, prompts, budget=None, dtype=dtype, form=packed[0], exact=packed[1])
        if rests is not None:
            run.cache.finish(rests)
        return run.logits(NativeStep(model, run.cache, native.library))[:, 0]

    expected = first_lane(1, "plain", 1)
    for instructions in native.all_instructions():
        assert torch.equal(first_lane(1, instructions, 3), expected)
        assert torch.equal(first_lane(5, instructions, 2, others=9), expected)
        assert torch.equal(first_lane(8, instructions, 4, rests=2), expected)


def test_a_lane_that_does_not_run_is_left_alone(native):
    model = model_for("llama")
    run = Run(model, [prompt_of(70, 0), prompt_of(71, 1)], budget=None)
    run.cache.finish(1)
    before = {name: tensor[1].clone() for name, tensor in run.cache.tensors().items()}
    step = NativeStep(model, run.cache, native.library)
    assert run.logits(step)[:, 1].eq(0).all()
    for name, tensor in run.cache.tensors().items():
        assert torch.equal(tensor[1], before[name]), name


def test_a_prompt_that_needs_other_buffers_is_followed(native):
    model = model_for("llama")
    theirs, ours = (Run(model, [prompt_of(70, 0)], room=100) for _ in range(2))
    steps = EagerStep(model, theirs.cache), NativeStep(model, ours.cache, native.library)
    for run, step in zip((theirs, ours), steps, strict=True):
        run.logits(step, tokens=3)
        run.cache.make_room((200,) * len(run.cache.layers))
        again = Run(model, [prompt_of(180, 2)], room=200)
        for name, tensor in run.cache.tensors().items():
            tensor.copy_(again.cache.tensors()[name])
        run.cache.lanes = again.cache.lanes
        run.cache.set_read_slots()
    expected, got = (run.logits(step, tokens=5) for run, step in zip((theirs, ours), steps, strict=True))
    assert distance(got, expected) < 2e-5


@pytest.mark.parametrize("row", ["gpt2", "olmoe", "cohere"])
def test_a_model_that_is_not_in_the_table_is_told(row):
    with pytest.raises(NotInTable, match="not in its table"):
        decoder_of(model_of(row))


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
@pytest.mark.parametrize("row", ["qwen2", "phi3"])
def test_packed_weights_give_what_they_stand_for(native, row, kind):
    model = model_for(row)
    pack_linears(model, kind)
    prompts = [prompt_of(70, 0), prompt_of(81, 1)]
    theirs, ours = Run(model, prompts), Run(model, prompts)
    expected = theirs.logits(EagerStep(model, theirs.cache))
    assert distance(ours.logits(NativeStep(model, ours.cache, native.library)), expected) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sizes_that_fill_no_vector_are_right_in_all_instructions(native, dtype):
    sizes = {"hidden_size": 72, "intermediate_size": 100, "head_dim": 24, "vocab_size": 301}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 2}
    model = random_model(LlamaConfig(**sizes, **heads)).to(dtype)
    model.set_attn_implementation(ATTENTION)
    theirs = Run(model, [prompt_of(70, 0)], dtype=dtype)
    expected, given = theirs.logits(EagerStep(model, theirs.cache)), []
    for instructions in native.all_instructions():
        native.use(instructions)
        run = Run(model, [prompt_of(70, 0)], dtype=dtype)
        given.append(run.logits(NativeStep(model, run.cache, native.library)))
    assert distance(given[0], expected) < (2e-5 if dtype == torch.float32 else 0.05)
    assert all(torch.equal(one, given[0]) for one in given)


def test_capped_logits_of_gemma2_are_capped(native, monkeypatch):
    """Gemma 2 is refused at the door, because prompts are read without a cap; its step is right."""
    monkeypatch.setattr(architecture, "_refusal", lambda *_: "")
    model = model_of("gemma2")
    ids = torch.tensor([[(3 + 7 * token) % 300 for token in range(-1, TOKENS)]])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, 1:]
    model.set_attn_implementation(ATTENTION)
    run = Run(model, [[int(ids[0, 0])]], budget=None)  # one token of prompt sees itself alone
    assert distance(run.logits(NativeStep(model, run.cache, native.library))[:, 0], expected) < 2e-5
