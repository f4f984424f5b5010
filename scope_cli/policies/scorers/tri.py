"""How well a key's direction matches the queries the model usually asks, wherever they will stand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from numpy import float32, isfinite, zeros
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from scope_cli.errors import UsageError
from scope_cli.policies.rope import as_pairs, unrotate
from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor

    from scope_cli.geometry import Geometry

HINT = "make one: scope calibrate FILE --text TEXT, then --set decode.scorer='{name: tri, calibration: FILE}'"


@scorer("tri")
@dataclass(frozen=True)
class Tri(Scorer):
    """Calibrated mean queries against keys, over distances to come (TriAttention, arXiv 2604.04921)."""

    needs: ClassVar[str] = "keys, RoPE, a calibration file"
    cost: ClassVar[str] = "17 S D per query head"

    calibration: str = ""  # a file that `scope calibrate` wrote for this model
    furthest: int = 16  # offsets 1, 2, 4, ... 2**furthest

    def __post_init__(self) -> None:
        """A run without its file is refused before the model is loaded."""
        if not self.calibration:
            raise UsageError("the scorer tri needs a calibration file", HINT)
        calibration_file(self.calibration)

    def check(self, geometry: Geometry) -> None:
        """Does the file hold a mean and a size for each query head of each layer under the policy?"""
        file = calibration_file(self.calibration)
        for number, layer in enumerate(geometry.layers):
            if layer.kind != "full":
                continue
            mean, size = (file.get(f"{number}.{name}", zeros(0, float32)) for name in ("mean", "size"))
            fits = size.ndim == 2 and size.shape[0] == layer.heads and 2 * size.shape[1] <= layer.head_dim
            if not fits or mean.shape != (*size.shape, 2):
                raise UsageError(f"{self.calibration} was made for another model", HINT)
            if not (isfinite(mean).all() and isfinite(size).all()):
                raise UsageError(f"{self.calibration} is damaged: not all of it are numbers", HINT)

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        import torch

        if view.inv_freq is None:
            raise UsageError("the scorer tri needs a model with rotary positions")
        mean, size = self._statistics(view)  # [kv_heads, group, pairs]
        precise = view.precise(view.keys)
        keys = as_pairs(unrotate(precise, view.positions.clamp(min=0), view.inv_freq), view.inv_freq)
        keys = keys.unsqueeze(2)  # [lanes, kv_heads, 1, slots, pairs]
        product = mean.unsqueeze(2) * keys.conj()
        frequencies = view.inv_freq.to(precise.dtype)
        score = ((size - mean.abs()).unsqueeze(2) * keys.abs()).sum(-1)  # [lanes, kv_heads, group, slots]
        distance = (view.now - view.positions).to(precise.dtype).unsqueeze(2)
        for power in range(self.furthest + 1):
            angle = (distance + 2**power).unsqueeze(-1) * frequencies
            turned = product * torch.polar(torch.ones_like(angle), angle)
            score = score + turned.real.sum(-1) / (self.furthest + 1)
        held = view.is_held.unsqueeze(2)
        count = held.sum(-1, keepdim=True)
        average = score.masked_fill(~held, 0).sum(-1, keepdim=True) / count
        centred = (score - average).masked_fill(~held, 0)
        deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt().clamp(min=1e-9)
        return (centred / deviation).amax(2)

    def _statistics(self, view: SlotView) -> tuple[Tensor, Tensor]:
        """Mean complex query and mean size, per query head and frequency, [kv_heads, group, pairs]."""
        import torch

        file = calibration_file(self.calibration)
        mean = torch.view_as_complex(torch.tensor(file[f"{view.layer}.mean"])).to(view.keys.device)
        size = torch.tensor(file[f"{view.layer}.size"]).to(view.keys.device)
        kv_heads = view.keys.shape[1]
        return mean.unflatten(0, (kv_heads, -1)), size.unflatten(0, (kv_heads, -1))


@lru_cache(maxsize=2)
def calibration_file(path: str) -> dict[str, NDArray[float32]]:
    """'LAYER.mean', [heads, pairs, 2]; 'LAYER.size', [heads, pairs]; numpy's, as planning has no torch."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read the calibration file {path}: {error}", HINT) from error
