"""A profile's run as a contender: prompt read, known output fed with its evictions, decode steps timed."""

from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from scope_cli.engine.decode import Admission, decode
from scope_cli.engine.facts import versions
from scope_cli.engine.lane import new_lane
from scope_cli.engine.prefill import read_prompt, read_to_end
from scope_cli.engine.replay import MOST_AT_ONCE, feed_known
from scope_cli.engine.roofline import step_weight_bytes
from scope_cli.engine.run import Run, Work
from scope_cli.engine.run_plan import RunPlan, make_plan, policy_in_words, policy_of
from scope_cli.engine.slots_check import slots_of
from scope_cli.events import Token
from scope_cli.machine.device import resolve_device
from scope_cli.machine.gauge import PeakMeter
from scope_cli.measure.bench.protocol import Account, Ids, Job, Loaded
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import load_profile

GPU_AT_ONCE = 512  # known tokens that go through a model on a GPU together
SETTLE = 2 * MOST_AT_ONCE  # tokens before a position that are fed with the profile's own interval
GREEDY = {"sampling.temperature": 0.0, "sampling.repetition_penalty": 1.0, "sampling.stop": []}


class ScopeEngine:
    """What `scope generate` does with a profile, stopped and timed."""

    def __init__(self, profile: str, overrides: dict[str, Any], loaded: LoadedModel | None = None) -> None:
        """loaded: a model that is there already; else it is read for this contender alone."""
        self.profile, self.overrides, self.given = profile, overrides, loaded
        self.device = resolve_device(load_profile(profile, overrides).profile.model.device)

    def load(self, job: Job) -> Loaded:
        self.job = job
        planned = {"sampling.max_new_tokens": job.most_tokens - job.prompt_tokens}
        self.settings = load_profile(self.profile, {**self.overrides, **GREEDY, **planned})
        model = self.settings.profile.model
        self.loaded = self.given or open_model(model, offline=True, lanes=job.lanes).load()
        if job.threads:
            torch.set_num_threads(job.threads)
        self.settings, _ = slots_of(self.loaded, self.settings)
        scorer = policy_of(self.settings.profile.decode).scorer
        ring = MOST_AT_ONCE if scorer.every_step else 1  # as `replay` needs it
        self.plan = make_plan(self.settings, self.loaded.geometry, job.prompt_tokens, ring)
        touch(self.loaded.model)
        profile = self.settings.profile
        whole = not (self.plan.prompt.staged or self.plan.shape.form.packs)
        whole = whole and profile.decode.strategy == "full"
        return Loaded(
            policy=policy_in_words(profile, self.plan),
            exact=whole and self.loaded.opened.load_in is None,
            versions=versions(),
            weight_bytes=step_weight_bytes(self.loaded.model, job.lanes),
        )

    @torch.no_grad()
    def read(self, ids: Ids) -> list[int]:
        self.run: Run | None = None  # the one before goes first
        plan = RunPlan.of(self.settings.profile, [self.plan] * self.job.lanes, self.device.type)
        unwatched = PeakMeter(self.device)
        self.run = Run(self.loaded, plan.profile, plan.shape, unwatched, plan.compiled)
        self.prompts = ids
        self.fed: Ids = [[] for _ in ids]
        self.tokens: Iterator[Token] | None = None
        self.logits = [
            read_to_end(
                read_prompt(
                    self.loaded.model,
                    self.run.cache,
                    torch.tensor([prompt], device=self.device),
                    self.plan.schedule,
                    plan=self.plan.prompt,
                    lane=lane,
                    seed=lane,
                    chunk=self.settings.profile.prefill.chunk,
                    native=self.loaded.native,
                )
            )
            for lane, prompt in enumerate(ids)
        ]
        return self._following()

    @torch.no_grad()
    def advance(self, ids: Ids) -> list[int]:
        """On the way evictions come every 64 tokens at least, on a GPU 512, and as the profile says in the
        last stretch.

        Which tokens are held is not quite what it would be, how many is, and so is the time of a step.
        """
        assert self.run is not None, "a prompt comes first"
        cpu = self.device.type == "cpu"
        assert cpu or self.tokens is None, "on a GPU the loop has launched a step more than it has told"
        for lane, known in enumerate(ids):
            early, late = known[:-SETTLE], known[-SETTLE:]
            cache, most = self.run.cache, MOST_AT_ONCE if cpu else GPU_AT_ONCE
            own = cache.count(lane).schedule
            with cache.with_schedule(lane, replace(own, interval=max(own.interval, most))):
                self._feed(lane, early, most)
            self._feed(lane, late)
        self.tokens = None
        return self._following()

    def _feed(self, lane: int, known: list[int], most: int = MOST_AT_ONCE) -> None:
        assert self.run is not None
        for logits in feed_known(self.loaded.model, self.run.cache, lane, known, most):
            self.logits[lane] = logits[-1:]
        self.fed[lane] += known

    def _following(self) -> list[int]:
        return [int(logits.argmax()) for logits in self.logits]

    def step(self, count: int) -> tuple[float, Ids]:
        """The one decode loop; what it yields first was picked from logits that were there already."""
        assert self.run is not None, "a prompt comes first"
        cache = self.run.cache
        if self.tokens is None:
            self.pending: dict[int, Token] = {}  # by lane, picked and not yet fed
            events = decode(self.run.step, cache, self._admit, self.run.finish)
            self.tokens = (event for event in events if isinstance(event, Token))
            self._next_tokens(self.tokens)
            with cache.at_rest(), torch.no_grad():  # compiles, if anything is to be compiled
                self.run.step(torch.zeros(cache.shape.lanes, 1, dtype=torch.int64, device=self.device))
        moved = cache.reading().moved_bytes
        written: Ids = [[] for _ in self.fed]
        begin = perf_counter()
        for _ in range(count):
            for lane, token in self.pending.items():
                written[lane].append(token.token_id)
            self._next_tokens(self.tokens)
        took = perf_counter() - begin
        for fed, ids in zip(self.fed, written, strict=True):
            fed += ids
        self.moved = cache.reading().moved_bytes - moved
        return took, written

    def _next_tokens(self, tokens: Iterator[Token]) -> None:
        for _ in self.fed:
            token = next(tokens)
            self.pending[token.lane] = token

    def _admit(self, row: int) -> Admission:
        """A lane that has written what was fed, and never ends by itself; it has been read already."""
        prompt = torch.tensor([self.prompts[row]], device=self.device)
        sampling = self.settings.profile.sampling.model_copy(update={"on_loop": "ignore"})
        work = Work(self.prompts[row], self.plan, sampling, seed=row)
        lane = new_lane(self.loaded, work, prompt, self.logits[row], row, row)
        fed = torch.tensor(self.fed[row], device=self.device)
        lane.ids[0, prompt.shape[1] : prompt.shape[1] + len(fed)] = fed
        lane.written, lane.eos_ids = len(fed), frozenset()
        yield from ()  # nothing is left to report
        return lane

    def account(self) -> Account:
        assert self.run is not None, "a prompt comes first"
        reading = self.run.cache.reading()
        return Account(reading.held_bytes, reading.read_bytes, self.moved)


@torch.no_grad()
def touch(model: Any) -> None:
    """Look at every page of the weights: mapped files are read when used, and would be taken for cache."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.reshape(-1)[::512].sum()
