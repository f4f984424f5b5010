"""Compiled steps, traced and not translated."""

import pytest


def traced(module, inputs):
    """The graph that dynamo and autograd make, run by PyTorch: what inductor would translate."""
    from torch._dynamo.backends.debugging import aot_eager

    return aot_eager(module, inputs)


@pytest.fixture(autouse=True)
def compiled_quickly(request, monkeypatch):
    """No compiled step runs on a CPU but here: a C++ compiler takes half a minute for one test, and says
    nothing of a GPU. A test that is about inductor's own code is marked so."""
    if request.node.get_closest_marker("inductor") is None:
        monkeypatch.setattr("scope_cli.engine.step.telling_inductor", traced)
