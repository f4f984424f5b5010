"""One contender in a process of its own: `python -m scope_cli.bench.worker '{"kind": "scope", ...}'`."""

import json
import sys
from typing import Any

from scope_cli.bench.protocol import Contender, serve


def contender(kind: str, profile: str, overrides: dict[str, Any]) -> Contender:
    if kind == "scope":
        from scope_cli.bench.engine import ScopeEngine

        return ScopeEngine(profile, overrides)
    from scope_cli.bench.peers import TransformersPeer

    return TransformersPeer(kind, overrides)


if __name__ == "__main__":
    serve(contender(**json.loads(sys.argv[1])))
