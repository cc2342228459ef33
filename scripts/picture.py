"""Write docs/status-page.png and docs/status-page-dark.png: the status page of a busy server, as chromium shows it.

    python scripts/picture.py

The server is the one of tests/helpers/samples.py, so the numbers are made up. Pillow comes with matplotlib.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.browser import browsing  # noqa: E402  # the tests are no package
from helpers.samples import sample, showing  # noqa: E402

WIDTH = 1240
#: Five minutes, so that the charts are full.
SECONDS = 310
#: More colours would be more bytes, and nothing to see.
COLOURS = 64


def main() -> int:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browsing(Path(profile)) as browser:
        browser.open_tab()
        browser.view(WIDTH, 700)
        with showing(sample) as address:
            browser.show(address)
            browser.wait_for("document.querySelector('#workers tbody tr')")
            browser.pass_time(SECONDS)
            height = int(browser.evaluate("document.getElementById('live').offsetHeight"))
            for dark, name in ((False, "status-page.png"), (True, "status-page-dark.png")):
                browser.view(WIDTH, height, dark=dark)
                browser.picture(ROOT / "docs" / name)
                _shrink(ROOT / "docs" / name)
    return 0


def _shrink(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )


if __name__ == "__main__":
    sys.exit(main())
