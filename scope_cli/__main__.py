"""`scope`, and `python -m scope_cli`: what is imported on the way may be interrupted without a traceback."""

import os
import signal


def run() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)  # until cli.run hears it

    from scope_cli import cli
    from scope_cli.machine.setup import wait_briefly

    wait_briefly()
    cli.run()


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    run()
