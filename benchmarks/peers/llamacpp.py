"""llama.cpp as a contender of `scope bench`, through the wheel xllamacpp: its own server, cache and timings.

    scope bench ... --peer "llama.cpp=PYTHON benchmarks/peers/llamacpp.py --gguf FILE --cache q8_0 --flash on"

`benchmarks/peers/setup.sh llamacpp` makes the environment; the file is the one that scope made its model of.
A slot for each lane, each with its own stretch of the cache. A burst starts each time where the known text
ends: the server keeps what it has read of it, and only what follows is timed, as the server itself times it.
The wheel is built for any x86-64 with AVX2: a llama.cpp that is compiled for the machine is faster where that
has more.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import xllamacpp
from shared import numbers_of_a_token

from scope_cli.measure.bench.protocol import Account, Ids, Job, Loaded, serve

CACHES = {  # of keys and values: its type, bytes of a number
    "f16": (xllamacpp.ggml_type.GGML_TYPE_F16, 2.0),
    "q8_0": (xllamacpp.ggml_type.GGML_TYPE_Q8_0, 34 / 32),
}
FLASH = {
    "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class LlamaCpp:
    def __init__(self, gguf: Path, cache: str, flash: str) -> None:
        self.gguf, self.cache, self.flash = gguf, cache, flash
        self.device = SimpleNamespace(type="cpu")

    def load(self, job: Job) -> Loaded:
        params = xllamacpp.CommonParams()
        params.model.path = str(self.gguf)
        params.n_ctx = job.lanes * whole(job.most_tokens + 64)
        params.n_parallel = job.lanes
        params.n_gpu_layers = 0
        params.cache_type_k = params.cache_type_v = CACHES[self.cache][0]
        params.flash_attn_type = FLASH[self.flash]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job.threads or os.cpu_count() or 1
        params.verbosity = 0
        self.server = xllamacpp.Server(params)  # which runs the model once, and so touches every weight
        self.job = job
        self.slots = ThreadPoolExecutor(job.lanes)
        return Loaded(
            policy=f"llama.cpp, {self.gguf.name}, {job.lanes} slots, {self.cache} cache, "
            f"flash attention {self.flash}",
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
        token = numbers_of_a_token(self.job.folder) * CACHES[self.cache][1]
        held = round(self.job.lanes * self.tokens * token)
        return Account(held_bytes=held, read_bytes=held, moved_bytes=0)


def whole(tokens: int) -> int:
    return -(-tokens // 256) * 256  # what llama.cpp rounds a context to


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--cache", choices=list(CACHES), default="f16")
    parser.add_argument("--flash", choices=list(FLASH), default="auto", help="a cache in q8_0 needs it")
    args = parser.parse_args()
    serve(LlamaCpp(args.gguf, args.cache, args.flash))
