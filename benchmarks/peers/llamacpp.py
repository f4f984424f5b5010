"""llama.cpp as a contender of `scope bench`, through the wheel xllamacpp: its own server, cache and timings.

    scope bench ... --peer "llama.cpp=PYTHON benchmarks/peers/llamacpp.py --gguf FILE"

`benchmarks/peers/setup.sh llamacpp` makes the environment and fetches the file. A slot for each lane, each
with its own stretch of the cache. A burst starts each time where the known text ends: the server keeps what
it has read of it, and only what follows is timed, as the server itself times it. The wheel is built for any
x86-64 with AVX2: a llama.cpp that is compiled for the machine is faster where that has more.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import xllamacpp

from scope_cli.measure.bench.protocol import Account, Ids, Job, Loaded, serve


class LlamaCpp:
    def __init__(self, gguf: Path) -> None:
        self.gguf, self.device = gguf, SimpleNamespace(type="cpu")

    def load(self, job: Job) -> Loaded:
        params = xllamacpp.CommonParams()
        params.model.path = str(self.gguf)
        params.n_ctx = job.lanes * whole(job.most_tokens + 64)
        params.n_parallel = job.lanes
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job.threads or os.cpu_count() or 1
        params.verbosity = 0
        self.server = xllamacpp.Server(params)  # which runs the model once, and so touches every weight
        self.job = job
        self.slots = ThreadPoolExecutor(job.lanes)
        return Loaded(
            policy=f"llama.cpp, {self.gguf.name}, {job.lanes} slots, f16 cache",
            exact=False,  # nothing is forgotten, but its products round the activations to 8 bits
            versions={"xllamacpp": xllamacpp.__version__, "system": xllamacpp.get_system_info()},
            weight_bytes=self.gguf.stat().st_size,
        )

    def read(self, ids: Ids) -> list[int]:
        """The first time that a slot sees a text it reads all of it: no cached prefix is accepted."""
        self.ids = [list(one) for one in ids]
        return self._following(cache_prompt=False)

    def advance(self, ids: Ids) -> list[int]:
        for own, more in zip(self.ids, ids, strict=True):
            own += more
        return self._following(cache_prompt=True)

    def step(self, count: int) -> tuple[float, Ids]:
        """The server's own time between its first and its last token; it does not say which they were."""
        answers = self._complete(count + 1, cache_prompt=True)
        timings = [answer["timings"] for answer in answers]
        assert all(timing["predicted_n"] == count + 1 for timing in timings), "a slot stopped early"
        self.tokens = len(self.ids[0]) + count
        return mean(timing["predicted_ms"] for timing in timings) / 1000, []

    def _following(self, cache_prompt: bool) -> list[int]:
        answers = self._complete(1, cache_prompt=cache_prompt, logprobs=1)
        return [answer["choices"][0]["logprobs"]["content"][0]["id"] for answer in answers]

    def _complete(self, tokens: int, **more: Any) -> list[dict[str, Any]]:
        """A request in every slot at the same time."""

        def one(slot: int) -> dict[str, Any]:
            answer = self.server.handle_completions(
                {
                    "prompt": self.ids[slot],
                    "id_slot": slot,
                    "n_predict": tokens,
                    "temperature": 0,
                    "ignore_eos": True,
                    **more,
                }
            )
            if "timings" not in answer:
                raise RuntimeError(f"llama.cpp: {answer.get('error', answer)}")
            return dict(answer)

        return list(self.slots.map(one, range(self.job.lanes)))

    def account(self) -> Account:
        config = json.loads((Path(self.job.folder) / "config.json").read_text())
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        token = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * head_dim * 2
        held = self.job.lanes * self.tokens * token  # keys and values in f16
        return Account(held_bytes=held, read_bytes=held, moved_bytes=0)


def whole(tokens: int) -> int:
    return -(-tokens // 256) * 256  # what llama.cpp rounds a context to


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=Path, required=True)
    serve(LlamaCpp(parser.parse_args().gguf))
