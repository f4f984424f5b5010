"""Which files of the core have too many lines that no test runs: `make coverage` ends with it.

python -m tests.helpers.covered FILE, a report of coverage in JSON; exit code 1 where there is one.
"""

import json
import sys
from pathlib import Path

CORE = ("scope_cli/cache/", "scope_cli/engine/", "scope_cli/policies/")
LEAST = 95  # percent of a file's lines


def lacking(report: dict) -> list[str]:
    found = []
    for name, file in sorted(report["files"].items()):
        covered = file["summary"]["percent_covered"]
        if name.startswith(CORE) and covered < LEAST:
            found.append(f"{name}: {covered:.1f}% of its lines, and {LEAST}% are asked for")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(lacking(json.loads(Path(sys.argv[1]).read_text()))) or 0)
