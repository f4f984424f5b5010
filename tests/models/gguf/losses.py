"""What packing changes in weights of every type that a GGUF file can have.

`python -m tests.models.gguf.losses` prints the table of docs/how-to/gguf.md.
"""

import tempfile
from pathlib import Path

import torch

from scope_cli.models.model import OpenedModel, open_model
from scope_cli.models.packed import PackedLinear
from scope_cli.settings.schema import ModelSettings
from tests.models.gguf.cases import KINDS
from tests.models.gguf.files import write

SETTINGS = {"hidden_size": 256, "intermediate_size": 512}


def opened(folder: Path, kind: str, but: dict[str, str] | None = None, **settings) -> OpenedModel:
    file = write(folder / "tiny.gguf", kind=kind, but=but, **SETTINGS).path
    return open_model(ModelSettings(name=str(file), device="cpu", **settings))


def loss_of(loaded, plain) -> float:
    """The root mean square of what packing changed in the layers, as a share of the weights'."""
    changed = total = 0.0
    for name, module in plain.model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            packed = loaded.model.model.layers.get_submodule(name)
            assert isinstance(packed, PackedLinear)
            changed += float((packed.weight - module.weight).double().square().sum())
            total += float(module.weight.double().square().sum())
    return (changed / total) ** 0.5


def measured(kind: str, load_in: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        plain = opened(Path(folder), kind, load_in=None).load(attention="sdpa")
        return loss_of(opened(Path(folder), kind, load_in=load_in).load(attention="sdpa"), plain)


def main() -> None:
    print("| in the file | int4 | int8 |\n|---|--:|--:|")
    for kind in KINDS:
        losses = [measured(kind, load_in) for load_in in ("int4", "int8")]
        print(
            f"| {kind} | " + " | ".join(f"{loss:.2%}" if loss else "nothing" for loss in losses) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
