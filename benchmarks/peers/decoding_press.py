"""kvpress's DecodingPress as a contender of `scope bench`, holding as many tokens as a scope budget does.

    scope bench ... --peer "kvpress=PYTHON benchmarks/peers/decoding_press.py --budget 512"

`benchmarks/peers/setup.sh kvpress` makes the environment: kvpress 0.5.5 wants an older transformers. The
press compresses prompt and output together every `--interval` tokens, down to prompt + budget - interval + 1,
the number that scope's `slide` evicts to. Its scores are key norms, the cheapest there are, unless `--press`
names others.
"""

import argparse
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import kvpress
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from scope_cli.measure.bench.protocol import Account, Ids, Job, Loaded, serve

PRESSES = {"knorm": kvpress.KnormPress, "snapkv": kvpress.SnapKVPress, "tova": kvpress.TOVAPress}


class Kvpress:
    def __init__(self, budget: int, interval: int, press: str) -> None:
        self.budget, self.interval, self.press_name = budget, interval, press
        self.hooks = ExitStack()

    def load(self, job: Job) -> Loaded:
        if job.threads:
            torch.set_num_threads(job.threads)
        if job.load_in:
            raise RuntimeError("kvpress is run with plain weights")
        self.job = job
        made = {"dtype": getattr(torch, job.dtype), "attn_implementation": "sdpa"}
        if any(Path(job.folder).glob("*.safetensors")):
            self.model = AutoModelForCausalLM.from_pretrained(job.folder, local_files_only=True, **made)
        else:  # a configuration alone, of a model with random weights: drawn on the device
            with self.device:
                self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.folder), **made)
        self.model.to(self.device)
        self.model.eval().requires_grad_(False)
        for tensor in self.model.parameters():  # mapped files are read when they are used
            tensor.reshape(-1)[::512].sum()
        self.press = kvpress.DecodingPress(
            base_press=PRESSES[self.press_name](),
            compression_interval=self.interval,
            target_size=job.prompt_tokens + self.budget - self.interval + 1,
        )
        self.hooks.enter_context(self.press(self.model))
        return Loaded(
            policy=f"DecodingPress({self.press_name}), {self.press.target_size} to "
            f"{self.press.target_size + self.interval} tokens, prompt included",
            exact=False,
            versions={name: version(name) for name in ("torch", "transformers", "kvpress")},
            weight_bytes=sum(tensor.nbytes for tensor in self.model.parameters()),
        )

    @property
    def device(self) -> torch.device:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(kind if self.job.device == "auto" else self.job.device)

    @torch.no_grad()
    def read(self, ids: Ids) -> list[int]:
        self.press.reset()
        self.cache, self.position, self.moved = DynamicCache(), 0, 0
        return self._feed(torch.tensor(ids, device=self.device))

    @torch.no_grad()
    def advance(self, ids: Ids) -> list[int]:
        """As many tokens at once as lie between two compressions, each followed by one."""
        self.press.compression_interval = 1
        for chunk in torch.tensor(ids, dtype=torch.long, device=self.device).split(self.interval, 1):
            if chunk.shape[1]:
                self._feed(chunk)
        self.press.compression_interval = self.interval
        return self.following[:, 0].tolist()

    def _feed(self, ids: Tensor) -> list[int]:
        """Where the mask counts, places in the cache; where the rotation counts, places in the text."""
        held, tokens = self.cache.get_seq_length(), ids.shape[1]
        logits = self.model(
            ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            cache_position=torch.arange(held, held + tokens, device=self.device),
            position_ids=torch.arange(self.position, self.position + tokens, device=self.device)[None],
        ).logits
        self.position += tokens
        self.following = logits[:, -1].argmax(-1, keepdim=True)  # [lanes, 1]
        return self.following[:, 0].tolist()

    @torch.no_grad()
    def step(self, count: int) -> tuple[float, Ids]:
        written = []
        self.moved, token = 0, self._token_bytes()
        begin = perf_counter()
        for _ in range(count):
            written.append(self.following)
            before = self.cache.get_seq_length()
            self._feed(self.following)  # waits for the ids, as a reader does
            after = self.cache.get_seq_length()
            # the new token is concatenated to what there was; a compression gathers what it keeps
            self.moved += token * (before + (after if after <= before else 0))
        took = perf_counter() - begin
        return took, torch.cat(written, 1).tolist()

    def _token_bytes(self) -> int:
        config, layer = self.model.config, self.cache.layers[0]
        heads, head_dim = layer.keys.shape[1], layer.keys.shape[3]
        return 2 * config.num_hidden_layers * heads * head_dim * layer.keys.element_size() * self.job.lanes

    def account(self) -> Account:
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)
        return Account(held_bytes=held, read_bytes=held, moved_bytes=self.moved)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=int, default=512, help="generated tokens held")
    parser.add_argument("--interval", type=int, default=64, help="tokens between two compressions")
    parser.add_argument("--press", choices=sorted(PRESSES), default="knorm")
    args = parser.parse_args()
    serve(Kvpress(args.budget, args.interval, args.press))
