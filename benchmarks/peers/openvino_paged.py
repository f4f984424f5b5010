"""OpenVINO GenAI as a contender of `scope bench`: paged attention, continuous batching.

    scope bench ... --peer "OpenVINO=PYTHON benchmarks/peers/openvino_paged.py --model FOLDER --cache f16"

`benchmarks/peers/setup.sh openvino` makes the environment and converts the embedded model: weights of 4 bits
in groups of 32, the head in 8 bits. Each lane is a request that goes on writing; known text cannot be added
to a request, so `advance` reads prompt and known text anew, and only what is written after it is timed.
"""

import argparse
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import openvino
import openvino_genai as genai

from scope_cli.measure.bench.protocol import Account, Ids, Job, Loaded, serve

BLOCK = 32  # tokens of a page of the cache


class OpenVino:
    def __init__(self, model: Path, cache: str, at_once: int) -> None:
        self.model, self.cache, self.at_once = model, cache, at_once
        self.device, self.requests = SimpleNamespace(type="cpu"), 0
        self.handles: list[genai.GenerationHandle] = []

    def load(self, job: Job) -> Loaded:
        self.job = job
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = job.lanes * (-(-job.most_tokens // BLOCK) + 2)
        # Lanes whose prompts were read in several steps would begin to write one after the other.
        scheduler.max_num_batched_tokens = self.at_once if job.lanes == 1 else job.lanes * job.most_tokens
        scheduler.enable_prefix_caching = False  # a prompt that is timed is read
        properties = {"KV_CACHE_PRECISION": self.cache, "PERFORMANCE_HINT": "LATENCY"}
        if job.threads:
            properties["INFERENCE_NUM_THREADS"] = job.threads
        self.pipeline = genai.ContinuousBatchingPipeline(str(self.model), scheduler, "CPU", properties)
        self.slots = scheduler.num_kv_blocks * BLOCK
        self.config = genai.GenerationConfig()
        self.config.do_sample, self.config.ignore_eos = False, True
        self.read([[1] * 64] * job.lanes)  # kernels are made for the shapes that they meet
        return Loaded(
            policy=f"OpenVINO GenAI, int4 in groups of 32, paged attention, {self.cache} cache",
            exact=False,
            versions={"openvino": openvino.__version__, "openvino_genai": genai.__version__},
            weight_bytes=(self.model / "openvino_model.bin").stat().st_size,
        )

    def read(self, ids: Ids) -> list[int]:
        for handle in self.handles:
            handle.cancel()
        if self.handles:
            self.pipeline.step()  # which lets go of them
        self.ids = [list(one) for one in ids]
        self.config.max_new_tokens = self.job.most_tokens - len(ids[0]) + 1
        self.handles = []
        for one in ids:
            tokens = openvino.Tensor(np.array([one], dtype=np.int64))
            self.handles.append(self.pipeline.add_request(self.requests, tokens, self.config))
            self.requests += 1
        return [lane[0] for lane in self._write(1)]

    def advance(self, ids: Ids) -> list[int]:
        return self.read([own + more for own, more in zip(self.ids, ids, strict=True)])

    def step(self, count: int) -> tuple[float, Ids]:
        begin = perf_counter()
        written = self._write(count)
        took = perf_counter() - begin
        for own, new in zip(self.ids, written, strict=True):
            own += new
        return took, written

    def _write(self, count: int) -> Ids:
        """Step until every lane has that many tokens more."""
        written: Ids = [[] for _ in self.handles]
        while any(len(lane) < count for lane in written):
            if not self.pipeline.has_non_finished_requests():
                raise RuntimeError("a lane has ended before the others")
            self.pipeline.step()
            for lane, handle in zip(written, self.handles, strict=True):
                while handle.can_read():
                    lane += next(iter(handle.read().values())).generated_ids
        return written

    def account(self) -> Account:
        token = self.pipeline.get_metrics().kv_cache_size_in_bytes // self.slots
        held = token * sum(map(len, self.ids))
        return Account(held_bytes=held, read_bytes=held, moved_bytes=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--cache", choices=["f16", "u8"], default="f16")
    parser.add_argument("--at-once", type=int, default=256, help="tokens of prompts in one step")
    args = parser.parse_args()
    serve(OpenVino(args.model, args.cache, args.at_once))
