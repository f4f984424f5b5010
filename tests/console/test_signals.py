"""Signals while a run goes on."""

import os
import signal

from scope_cli import cli
from scope_cli.console.signals import Interruption


def test_a_second_ctrl_c_is_one_whatever_it_comes_into(scope, monkeypatch):
    """pydantic makes an error of its own of what its callbacks raise."""

    def ends_badly(**_):
        with Interruption():
            os.kill(os.getpid(), signal.SIGINT)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as error:
                raise ValueError("the callback failed") from error

    with monkeypatch.context() as patch:
        patch.setattr(cli, "command", lambda: ends_badly)
        ended = scope("generate")
    assert (ended.code, ended.stderr) == (130, "interrupted\n")
    assert scope("scorers").stderr == "", "the next one knows nothing of it"
