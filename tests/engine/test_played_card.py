"""The path of a GPU on a card that is played by the CPU: who lies where, and what the host would wait for."""

from dataclasses import replace

import pytest
import torch

from scope_cli.engine import decode as decode_module
from scope_cli.engine import slots_check
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import Run
from scope_cli.events import Token
from scope_cli.formats.base import SHORT
from scope_cli.machine.gauge import PeakMeter
from scope_cli.settings.load import load_profile
from tests.helpers.caches import loaded_tiny
from tests.helpers.card import moved, played_card
from tests.helpers.lanes import settings_of, work_of

COMPRESSED = {"prefill.method": "snapkv", "prefill.budget": 30, "prefill.window": 4}
CASES = {
    "plain": ("llama", 2, {}),
    "windows": ("gemma3-scaled", 2, {}),
    "unprotected": ("llama", 2, {"decode.protect_prompt": False, "decode.budget": 200}),
    "one lane": ("llama", 1, {}),
    "adaptive": ("llama", 2, {"decode.strategy": "adaptive"}),
    "discontinuous": ("llama", 3, {"decode.strategy": "discontinuous", "decode.interval": "auto"}),
    "rpc": ("llama", 1, {"decode.strategy": "rpc"}),
    "every step": ("llama", 2, {"decode.scorer": "accumulated", "decode.interval": 1}),
    "full": ("llama", 2, {"decode.strategy": "full"}),
    "int8": ("llama-32", 2, {"cache.kv": "int8"}),
    "k8v4, some exact": ("gemma3-32", 2, {"cache.kv": "k8v4", "cache.exact": 4}),
    "compressed": ("llama", 2, COMPRESSED),
    "sizes of its own": ("llama", 1, {**COMPRESSED, "prefill.wrap": [{"name": "adakv"}]}),
    "sampled": ("llama", 2, {"sampling.temperature": 1.0, "sampling.top_k": 9, "sampling.top_p": 0.9}),
    "changed": ("llama", 2, {"sampling.repetition_penalty": 1.2, "sampling.min_p": 0.1}),
    "taken back": ("llama", 2, {"sampling.on_loop": "rollback"}),
}
LOOKS = ("taken back",)  # keeps a lane's state now and then: copies to the host, on purpose


def written(loaded, chosen, works, lanes):
    """By prompt: ids, with their log-probabilities."""
    shape = shared_shape([work.plan for work in works], lanes)
    texts = {}
    with PeakMeter(loaded.device) as peak:
        job = Run(loaded, chosen.profile, shape, peak)
        for event in job.run(works):
            if isinstance(event, Token):
                texts.setdefault(event.prompt, []).append((event.token_id, event.logprob))
    assert job.cache.audit().passed
    return texts, job


@pytest.mark.parametrize(("case", "index"), [*((case, 0) for case in CASES), ("plain", 1)])
def test_all_lies_on_one_card_and_the_host_waits_for_nothing_but_tokens(monkeypatch, tmp_path, case, index):
    """The CPU's text; for twenty steps nothing is asked of the card but the tokens."""
    family, lanes, more = CASES[case]
    loaded = replace(loaded_tiny(tmp_path, family), why_not_native="as on a card")
    temperature = more.get("sampling.temperature", 0.0)
    chosen = settings_of(**{"sampling.temperature": temperature, **more})
    works = [work_of(loaded, chosen, seed, 40 + 9 * seed, 30, temperature=temperature) for seed in range(2)]
    oracle, _ = written(loaded, chosen, works, lanes)
    card, reads = played_card(monkeypatch), []

    def received(sent):
        card.forbidden = False
        told = sent.read()
        reads.append(told)
        card.forbidden = case not in LOOKS and 5 < len(reads) < 25
        return told

    monkeypatch.setattr(decode_module, "received", received)
    with card:
        texts, job = written(moved(loaded, index), chosen, works, lanes)
    assert texts.keys() == oracle.keys()
    for number, text in texts.items():
        assert [token for token, _ in text] == [token for token, _ in oracle[number]]
        assert [logprob for _, logprob in text] == pytest.approx([lp for _, lp in oracle[number]], abs=1e-4)
    places = {tensor.device for tensor in job.cache.tensors().values()}
    assert places == {torch.device("cuda", index)}


def test_tokens_are_on_their_way_to_the_host_before_the_next_step_is_launched(monkeypatch, tmp_path):
    """A copy that is asked for later comes after that step, and the card then waits for the host."""
    loaded, chosen = loaded_tiny(tmp_path), settings_of(**{"sampling.temperature": 0.0})
    work, told = work_of(loaded, chosen, 0, 20, 12, temperature=0.0), []
    with played_card(monkeypatch):
        monkeypatch.setattr(torch.cuda.Event, "record", lambda self, stream: told.append("sent"))
        monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda self: told.append("read"))
        loaded = moved(replace(loaded, why_not_native="as on a card"))
        with PeakMeter(loaded.device) as peak:
            job = Run(loaded, chosen.profile, shared_shape([work.plan], 1), peak)
            step = job.step
            job.step = lambda ids: [told.append("step"), step(ids)][1]
            tokens = [event for event in job.run([work]) if isinstance(event, Token)]
    assert len(tokens) == 12
    assert told == ["sent", "step", "read"] * 11 + ["sent", "read"]


@pytest.mark.parametrize(("most", "slots"), [(1e9, "int8"), (-1.0, "plain")])
def test_auto_slots_are_settled_on_the_card(monkeypatch, tmp_path, most, slots):
    """With a stand-in for Triton's kernel; the divergence is the CPU's."""
    loaded = replace(loaded_tiny(tmp_path, "llama-32"), why_not_native="as on a card")
    passage = list(range(100))
    wanted = slots_check.moved(loaded, passage)
    monkeypatch.setattr(slots_check.attention, "KERNEL", lambda query, layer: query)
    monkeypatch.setattr(slots_check, "MOST_KL", most)
    monkeypatch.setattr(slots_check.Computed, "known_kl", lambda self: None)
    monkeypatch.setattr(slots_check.Computed, "remember", lambda self, kl: None)
    with played_card(monkeypatch):
        card = moved(loaded)
        assert slots_check.moved(card, passage) == pytest.approx(wanted, rel=1e-3) != 0
        settled, why = slots_check.slots_of(card, load_profile("default"), passage)
    assert settled.profile.cache.form == SHORT[slots], why
