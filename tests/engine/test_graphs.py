"""The bookkeeping of CUDA graphs with a stand-in that records and replays, and is as unkind with memory."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import Run
from scope_cli.engine.step import GraphStep
from scope_cli.events import Token
from scope_cli.machine.gauge import PeakMeter
from scope_cli.policies import plugins
from tests.helpers.caches import loaded_tiny
from tests.helpers.lanes import settings_of, work_of

SCORERS = [name for name in plugins.names("scorers") if name != "tri"]  # tri needs a file of its own
WAITS = {  # what makes the host wait for a device, and cannot be recorded
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
}


class Recording(TorchDispatchMode):
    """Notes what is made, and refuses what waits for the device."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in WAITS, f"{func} waits for the device"
        if func is torch.ops.aten.index.Tensor:
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), (
                "a mask waits"
            )
        out = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in tensors(args) + tensors(kwargs or {})}
        self.made += [one for one in tensors(out) if one.untyped_storage().data_ptr() not in given]
        return out


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, dict):
        found = found.values()
    return [one for part in found for one in tensors(part)] if isinstance(found, (tuple, list)) else []


class StandIn:
    """Records by running, replays by running again; a replay spoils all that any recording or replay made."""

    def __init__(self, refuses_at=None):
        self.made, self.recorded, self.replays, self.refuses_at = [], 0, 0, refuses_at

    @torch.no_grad()
    def __call__(self, run):
        self.recorded += 1
        self._run(run)
        if self.recorded == self.refuses_at:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

        @torch.no_grad()
        def replay():
            self.replays += 1
            self._run(run)

        return replay

    def _run(self, run):
        for tensor in self.made:
            tensor.fill_(
                torch.nan if tensor.is_floating_point() else 77 if tensor.dtype != torch.bool else True
            )
        self.made.clear()
        with Recording(self.made):
            run()


def texts_of(loaded, chosen, works, lanes, recorders=None, told=None, fixed_reads=True):
    """By prompt the ids that are written, with graphs where `recorders` is a list to put them in."""
    shape = shared_shape([work.plan for work in works], lanes)
    texts: dict[int, list[int]] = {}
    loaded = replace(loaded, why_not_native="a graph records PyTorch's operations")
    with PeakMeter(loaded.device) as peak:
        job = Run(loaded, chosen.profile, shape, peak)
        if recorders is not None:
            job.cache.fixed_reads = fixed_reads
            tell = (told if told is not None else []).append

            def recorder():
                recorders.append(
                    StandIn(recorders.pop() if recorders and recorders[-1] in (1, 2, 3) else None)
                )
                return recorders[-1]

            job.step = GraphStep(job.step, job.cache, tell, recorder)
        for event in job.run(works):
            if isinstance(event, Token):
                texts.setdefault(event.prompt, []).append(event.token_id)
    assert job.cache.audit().passed
    return texts, job


@pytest.mark.parametrize(
    ("family", "strategy", "lanes"),
    [
        ("llama", "slide", 1),
        ("llama", "slide", 3),
        ("llama", "adaptive", 1),
        ("llama", "full", 1),
        ("gemma3", "slide", 1),
    ],
)
def test_graphs_of_every_length_and_eviction_write_the_plain_text(models, family, strategy, lanes):
    """Evictions are recorded before steps of longer prefixes: nothing that one leaves may be the other's."""
    chosen = settings_of(
        **{
            "sampling.temperature": 0.0,
            "decode.strategy": strategy,
            "decode.budget": 150,
            "decode.recent": 20,
            "decode.interval": 9,
        }
    )
    works = [
        work_of(models[family], chosen, seed, 9, 230 - 50 * seed, temperature=0.0)
        for seed in range(2 + lanes)
    ]
    plain, _ = texts_of(models[family], chosen, works, lanes)
    recorders, told = [], []
    graphs, job = texts_of(models[family], chosen, works, lanes, recorders, told)
    assert graphs == plain and not told
    (recorder,) = recorders
    assert recorder.replays > 150, "nothing was replayed"
    assert len(job.step._steps) > 1 or lanes > 1, "one length was read"
    assert bool(job.step._evictions) == (strategy != "full")
    assert job.step._logits.isfinite().all()


@pytest.mark.parametrize(("keys", "values", "lanes"), [("int8", "int8", 2), ("int8", "int4", 1)])
def test_graphs_over_packed_slots_write_the_plain_text(tmp_path, keys, values, lanes):
    loaded = loaded_tiny(tmp_path, "llama-32")
    chosen = settings_of(
        **{
            "sampling.temperature": 0.0,
            "cache.keys": keys,
            "cache.values": values,
            "decode.budget": 30,
            "decode.recent": 10,
            "decode.interval": 9,
        }
    )
    works = [work_of(loaded, chosen, seed, 20, 50, temperature=0.0) for seed in range(2)]
    plain, _ = texts_of(loaded, chosen, works, lanes)
    recorders = []
    graphs, job = texts_of(loaded, chosen, works, lanes, recorders)
    assert graphs == plain
    assert recorders[0].replays > 40 and job.step._evictions


@pytest.mark.parametrize(
    ("scorer", "interval"),
    [*((scorer, 1) for scorer in SCORERS), ("attention", 5), ("accumulated", 5), ("rkv", 5)],
)
def test_no_step_and_no_eviction_asks_the_device(models, scorer, interval):
    chosen = settings_of(
        **{"decode.scorer": scorer, "decode.interval": interval, "sampling.temperature": 0.0}
    )
    works = [work_of(models["llama"], chosen, seed, 20, 20, temperature=0.0) for seed in range(2)]
    plain, _ = texts_of(models["llama"], chosen, works, 2)
    graphs, job = texts_of(models["llama"], chosen, works, 2, [])
    assert graphs == plain and job.step._evictions


def test_other_sizes_get_another_recorder_and_old_graphs_go(models):
    """Memory whose last graph is gone is gone itself: to record into it is an error of CUDA's."""
    chosen = settings_of(
        **{
            "prefill.method": "snapkv",
            "prefill.budget": 30,
            "prefill.window": 4,
            "prefill.wrap": [{"name": "adakv"}],
            "decode.interval": 1,
            "sampling.temperature": 0.0,
        }
    )
    works = [work_of(models["llama"], chosen, seed, 60 + 7 * seed, 20, temperature=0.0) for seed in range(4)]
    plain, _ = texts_of(models["llama"], chosen, works, 1)
    recorders = []
    graphs, job = texts_of(models["llama"], chosen, works, 1, recorders)
    assert graphs == plain
    assert len(recorders) == job.cache.fitted + 1 == 5
    assert [recorder.recorded > 0 for recorder in recorders[1:]] == [True] * 4
    assert max(len(job.step._steps), len(job.step._evictions)) <= 2, "as many as one prompt reads lengths"


@pytest.mark.parametrize("refuses_at", [1, 2, 3])
def test_a_recording_that_fails_half_way_is_one_warning_and_the_right_text(models, refuses_at):
    chosen = settings_of(**{"sampling.temperature": 0.0, "decode.strategy": "slide"})
    works = [work_of(models["llama"], chosen, seed, 20, 60, temperature=0.0) for seed in range(2)]
    plain, _ = texts_of(models["llama"], chosen, works, 1)
    told, recorders = [], [refuses_at]
    graphs, _ = texts_of(models["llama"], chosen, works, 1, recorders, told)
    assert graphs == plain
    if recorders[0].recorded >= refuses_at:
        said = "warning: no CUDA graph can be made, going on without: "
        assert told == [said + "operation not permitted when stream is capturing"]
    assert recorders[0].recorded <= refuses_at, "tried again after it failed"
