"""What axe-core finds in a report: `python -m benchmarks.accessibility REPORT.html`. Needs Chromium, and npm for axe-core."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_RUN = """axe.run(document).then((found) => { const told = document.createElement("pre"); told.id = "axe";
told.textContent = JSON.stringify(found.violations); document.body.append(told); })"""
_CHROMIUM = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)
SCHEMES = {"light": "1", "dark": "0"}


def main() -> int:
    """Print each finding; the exit code is 1 where there is one, and 2 where axe-core did not run."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", Path(sys.argv[1]).read_text(encoding="utf-8"))
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "axe-core@4", "--silent"], cwd=folder, check=True, capture_output=True)
        subprocess.run(["tar", "xf", next(Path(folder).glob("axe-core-*.tgz"))], cwd=folder, check=True)
        axe = (Path(folder) / "package" / "axe.min.js").read_text(encoding="utf-8")
        copy = Path(folder) / "page.html"
        copy.write_text(page.replace("</body>", f"<script>{axe}</script><script>{_RUN}</script></body>"), encoding="utf-8")
        for name, scheme in SCHEMES.items():
            options = [f"--user-data-dir={folder}/{name}", f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=20000"]
            command = [*_CHROMIUM, *options, "--dump-dom", copy.as_uri()]
            told = re.search(
                r'<pre id="axe">(.*?)</pre>', subprocess.run(command, capture_output=True, text=True, check=True).stdout, re.DOTALL
            )
            if told is None:
                print("axe-core did not run")
                return 2
            for one in json.loads(html.unescape(told[1])):
                count += 1
                print(
                    f"{name}: {one['impact']} {one['id']}: {one['help']} ({len(one['nodes'])} places, as {one['nodes'][0]['html'][:120]})"
                )
    print(f"{count} findings")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
