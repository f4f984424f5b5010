"""A card that is played on a CPU: tensors that say they lie on cuda:N, with their numbers, and its rules.

What two tensors on different devices may not do together is refused here as well; so is whatever makes the
host wait, while `Card.forbidden` is set. Numbers are those of the CPU.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode

READS = {  # what the host waits for the device with
    getattr(Tensor, name)
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero")
} | {torch.nonzero, torch.equal, torch.masked_select, Tensor.equal, Tensor.masked_select}
POINTERS = {Tensor.data_ptr, Tensor.numpy}  # the host may not look there at all
CROSSES = {Tensor.copy_, Tensor.to, Tensor.type_as}  # between devices, as it should
MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}


class OnCard(Tensor):
    """A tensor of the CPU's that says it lies on a card."""

    place = torch.device("cuda", 0)

    @property
    def device(self):
        return self.place

    @property
    def is_cuda(self):
        return True

    @property
    def is_cpu(self):
        return False

    def __deepcopy__(self, memo):
        return put(self.as_subclass(Tensor).clone(), self.place)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        args = [
            one._materialize("cpu").as_subclass(OnCard) if isinstance(one, CausalBias) else one
            for one in args
        ]
        given = tensors([*args, *kwargs.values()])
        places = {one.place for one in given if isinstance(one, OnCard)}
        if func not in CROSSES:
            strangers = [one for one in given if not isinstance(one, OnCard) and one.dim()]
            assert not strangers, (
                f"{func.__name__}: {places} and cpu, {[tuple(one.shape) for one in strangers]}"
            )
            assert len(places) == 1, f"{func.__name__}: {places}"
        (place, *_) = [one.place for one in given if isinstance(one, OnCard)]
        kwargs = {name: "cpu" if name == "device" and on_card(one) else one for name, one in kwargs.items()}
        with torch._C.DisableTorchFunctionSubclass():
            return marked(func(*args, **kwargs), place, given)


def put(tensor, place):
    """The same numbers, on a card."""
    made = tensor.as_subclass(OnCard)
    made.place = place
    return made


def marked(out, place, given=()):
    if isinstance(out, Tensor):
        return out if any(one is out for one in given) else put(out, place)
    if isinstance(out, (tuple, list)) and tensors(out):
        parts = [marked(one, place, given) for one in out]
        return type(out)(parts)
    return out


def tensors(found):
    if isinstance(found, Tensor):
        return [found]
    return [one for part in found for one in tensors(part)] if isinstance(found, (tuple, list)) else []


def on_card(device):
    return device is not None and torch.device(device).type == "cuda"


def indexed(device):
    device = torch.device(device)
    return torch.device("cuda", device.index or 0)


class Card(TorchFunctionMode):
    """While it is entered, `device="cuda:N"` makes tensors of the kind, and `to` moves them."""

    def __init__(self):
        super().__init__()
        self.forbidden, self.reads = False, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        mine = [one for one in tensors([*args, *kwargs.values()]) if isinstance(one, OnCard)]
        if func in POINTERS:
            assert not mine, f"{func.__name__} of a tensor on a card"
        if func in READS and mine:
            self.reads += 1
            assert not self.forbidden, f"{func.__name__}: the host waits for the device"
        if func in MOVES:
            return self._move(func, *args, **kwargs)
        if func is Tensor.pin_memory:
            return args[0]
        if func in (Tensor.tolist, Tensor.item) and mine:
            return func(args[0].as_subclass(Tensor))
        place = kwargs.get("device")
        if mine or not on_card(place):
            if self.forbidden and func is Tensor.copy_ and mine:
                assert all(isinstance(one, OnCard) for one in tensors(args)), (
                    "copy_ from pageable memory waits"
                )
            return func(*args, **kwargs)
        if self.forbidden:
            assert func is not torch.tensor, "torch.tensor: its numbers come from the host, which waits"
        return marked(func(*args, **{**kwargs, "device": "cpu"}), indexed(place))

    def _move(self, func, tensor, *args, **kwargs):
        """`to` in its forms; a copy to the card is asked for with non_blocking, or the host waits for it."""
        to = kwargs.pop("device", None)
        asked = list(args)
        if func is Tensor.to and to is None and asked and isinstance(asked[0], (torch.device, str, int)):
            to = asked.pop(0)
        if func is Tensor.to and to is None and asked and isinstance(asked[0], Tensor):
            to, asked[0] = asked[0].device, asked[0].dtype
        to = "cpu" if func is Tensor.cpu else "cuda" if func is Tensor.cuda else to
        here = isinstance(tensor, OnCard)
        waits = self.forbidden and to is not None and on_card(to) != here
        assert not waits or kwargs.get("non_blocking"), f"to {to}: the host waits for the device"
        plain = tensor.as_subclass(Tensor)
        moved = plain.to(*asked, **kwargs) if asked or kwargs else plain
        if to is None:
            return put(moved, tensor.place) if here else moved
        moved = moved.clone() if here != on_card(to) and moved is plain else moved
        return put(moved, indexed(to)) if on_card(to) else moved


class Generator:
    """In the place of torch.Generator: a card's, with the CPU's numbers."""

    def __new__(cls, device="cpu"):
        return object.__new__(cls) if on_card(device) else torch_generator(device)

    def __init__(self, device="cpu"):
        self.real = torch_generator("cpu")

    def manual_seed(self, seed):
        self.real.manual_seed(seed)
        return self

    def get_state(self):
        return self.real.get_state()

    def set_state(self, state):
        self.real.set_state(state)


class Event:
    """Of a stream on which everything has been done."""

    def record(self, stream):
        pass

    def synchronize(self):
        pass


torch_generator, torch_rand = torch.Generator, torch.rand


def rand(*size, generator=None, **kwargs):
    """torch.rand, which takes nothing but its own generators."""
    return torch_rand(*size, generator=getattr(generator, "real", generator), **kwargs)


def played_card(monkeypatch):
    """A mode to enter, with what PyTorch asks CUDA for played as well."""
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "rand", rand)
    return Card()


def moved(loaded, index=0):
    """The model itself, its weights on a played card."""
    device = torch.device("cuda", index)
    for module in loaded.model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = torch.nn.Parameter(put(tensor.detach(), device), False)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = put(tensor, device)
    return replace(loaded, opened=replace(loaded.opened, device=device), why_not_native="it is on a card")
