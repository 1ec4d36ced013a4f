"""Regenerates reports/quickstart/report.png (`make picture`): the top of a real report, as a browser shows it.

Needs Debian's chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sim.cli import call

HERE = Path(__file__).parent


def main() -> int:
    """Run the quickstart scenario and take a screenshot of its report."""
    browser = shutil.which("chromium")
    if browser is None:
        print("chromium is not installed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        call(["run", "quickstart", "--out", f"{scratch}/run", "--format", "json"])
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={scratch}/profile",
             "--window-size=1000,1500", f"--screenshot={HERE / 'quickstart' / 'report.png'}",
             f"file://{scratch}/run/report.html"],
            check=True, capture_output=True,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
