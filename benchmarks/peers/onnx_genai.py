"""onnxruntime-genai as a contender of `scope bench`: its generator, its cache of fixed size.

    scope bench ... --peer "onnxruntime=PYTHON benchmarks/peers/onnx_genai.py --model FOLDER"

`benchmarks/peers/setup.sh onnx` makes the environment and converts the embedded model: weights of 4 bits in
blocks of 32, activations in 8 bits (accuracy level 4), a cache in float32. More lanes than one cannot be
given known text, so `advance` reads prompt and known text anew there.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import onnxruntime_genai as genai
from shared import numbers_of_a_token

from scope_cli.measure.bench.protocol import Account, Ids, Job, Loaded, serve


class OnnxGenai:
    def __init__(self, model: Path) -> None:
        self.model_folder, self.device = model, SimpleNamespace(type="cpu")

    def load(self, job: Job) -> Loaded:
        self.job = job
        config = genai.Config(str(self.model_folder))
        threads = {"intra_op_num_threads": job.threads} if job.threads else {}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self.model = genai.Model(config)
        self.read([[1] * 64] * job.lanes)  # touches every weight
        return Loaded(
            policy="onnxruntime-genai, int4 in blocks of 32, accuracy level 4, float32 cache",
            exact=False,
            versions={name: version(name) for name in ("onnxruntime", "onnxruntime-genai")},
            weight_bytes=(self.model_folder / "model.onnx.data").stat().st_size,
        )

    def read(self, ids: Ids) -> list[int]:
        params = genai.GeneratorParams(self.model)
        most = self.job.most_tokens + 1
        # no end is written before the last position
        params.set_search_options(batch_size=len(ids), max_length=most, min_length=most, do_sample=False)
        self.generator = None  # the one before goes first
        self.generator = genai.Generator(self.model, params)
        self.ids: Ids = [[] for _ in ids]
        return self._feed(ids)

    def advance(self, ids: Ids) -> list[int]:
        if len(ids) == 1:
            return self._feed(ids)
        return self.read([own + more for own, more in zip(self.ids, ids, strict=True)])

    def _feed(self, ids: Ids) -> list[int]:
        self.generator.append_tokens(np.array(ids, dtype=np.int32))
        for own, more in zip(self.ids, ids, strict=True):
            own += more
        logits = np.asarray(self.generator.get_logits()).reshape(len(ids), -1)
        return [int(one.argmax()) for one in logits]

    def step(self, count: int) -> tuple[float, Ids]:
        assert self.generator is not None, "a prompt comes first"
        begin = perf_counter()
        for _ in range(count):
            self.generator.generate_next_token()
            self.generator.get_next_tokens()  # a reader wants to see them
        took = perf_counter() - begin
        written = [self.generator.get_sequence(lane)[-count:].tolist() for lane in range(len(self.ids))]
        for own, new in zip(self.ids, written, strict=True):
            own += new
        return took, written

    def account(self) -> Account:
        held = 4 * numbers_of_a_token(self.job.folder) * sum(map(len, self.ids))
        return Account(held_bytes=held, read_bytes=held, moved_bytes=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    serve(OnnxGenai(parser.parse_args().model))
