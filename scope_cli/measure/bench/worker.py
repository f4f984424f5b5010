"""One contender in a process of its own, told what it is as JSON in its argument."""

import json
import sys
from typing import Any

from scope_cli.machine.setup import wait_briefly
from scope_cli.measure.bench.protocol import Contender, serve


def contender(kind: str, profile: str, overrides: dict[str, Any]) -> Contender:
    if kind == "scope":
        wait_briefly()
        from scope_cli.measure.bench.engine import ScopeEngine

        return ScopeEngine(profile, overrides)
    from scope_cli.measure.bench.peers import TransformersPeer

    return TransformersPeer(kind, overrides)


if __name__ == "__main__":
    serve(contender(**json.loads(sys.argv[1])))
