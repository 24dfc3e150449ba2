"""Compare the figures of two report.json files, check by check: python -m benchmarks.compare_reports OLD NEW."""

import json
import sys
from pathlib import Path


def figures(path: str) -> dict[str, tuple[str, str]]:
    """Outcome and figure with interval, to the digits that messages show, by test and check."""
    found = {}
    for verdict in json.loads(Path(path).read_text(encoding="utf-8"))["verdicts"]:
        measured = verdict["measurement"]
        shown = "" if measured is None else " ".join(f"{float(one):.3g}" for one in (measured["value"], *(measured["interval"] or ())))
        found[f"{verdict['nodeid']} {verdict['check']}"] = verdict["outcome"], shown
    return found


def main() -> int:
    old, new = (figures(path) for path in sys.argv[1:3])
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            print(f"{name}: {old.get(name)} -> {new.get(name)}")
    same = sum(old.get(name) == new.get(name) for name in old)
    print(f"{same} of {len(old)} figures are the same; {len(new)} in the new report.")
    return 0 if old == new else 1


if __name__ == "__main__":
    sys.exit(main())
