"""transformers' models, imported and made without torch's compiler and torch.distributed.

transformers imports both with its first model, and torch does with the first model on the meta device. That
takes longer than everything else of a start. A run on one device needs no torch.distributed, and the compiler
only where a step is compiled, which then imports it. Whoever wants a model class of transformers takes it
from here, so that this comes first.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import torch.distributed

COMPILER = "torch._dynamo"
MODULES = (COMPILER, f"{COMPILER}._trace_wrapped_higher_order_op")  # what transformers and torch ask for


class StandIn(ModuleType):
    """In the place of a module that is imported when something of it is called later."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.decorated: list[Callable[..., Any]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if sys.modules.get(self.__name__) is not self:
                return getattr(import_module(self.__name__), name)(*args, **kwargs)
            # A decorator, which tells the compiler something about a function that no step of ours calls.
            function = args[0] if args else None
            return self._as_it_is if function is None else self._as_it_is(function)

        return call

    def _as_it_is(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self.decorated.append(function)
        return function

    def forget(self) -> None:
        """torch keeps what `disable` gave it: let it ask again."""
        for function in self.decorated:
            function.__dict__.pop("__dynamo_disable", None)


@contextmanager
def without_compiler() -> Iterator[None]:
    """What is done here finds stand-ins, and a torch that was built without torch.distributed."""
    if COMPILER in sys.modules:
        yield
        return
    available = torch.distributed.is_available
    stand_ins = {name: StandIn(name) for name in MODULES}
    sys.modules.update(stand_ins)
    torch._dynamo = stand_ins[COMPILER]
    torch.distributed.is_available = lambda: False  # transformers asks once and remembers
    try:
        yield
    finally:
        torch.distributed.is_available = available
        del torch._dynamo
        for name, stand_in in stand_ins.items():
            del sys.modules[name]
            stand_in.forget()


with suppress(Exception), without_compiler():  # where a release wants more of them, it gets the real ones
    import transformers.generation.utils
    import transformers.modeling_utils  # noqa: F401  what every model file imports

from transformers import (  # noqa: E402
    AttentionInterface,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

__all__ = ["AttentionInterface", "AutoModelForCausalLM", "AutoModelForImageTextToText", "PreTrainedModel"]
