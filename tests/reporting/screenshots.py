"""Takes the pictures of the documentation: `python -m tests.reporting.screenshots FOLDER`.

FOLDER holds finished runs, each in a folder named after its kind, and the built site in `site`.
What it does not hold keeps its pictures. Each page is taken at 1400 and 390 pixels, light and dark.
"""

import base64
import sys
import tempfile
from pathlib import Path

from tests.documented_commands import SECTIONS
from tests.reporting.chromium import Browser, serve

IMAGES = Path(__file__).parents[2] / 'docs' / 'images'
HEIGHTS = {1400: 1100, 390: 1000}
SCALES = {1400: 0.6, 390: 1.0}


def main(folder: Path) -> None:
  """Writes the pictures to docs/images."""
  reports = {f'report_{kind}': folder / kind / 'report.html' for kind in SECTIONS}
  take({name: page for name, page in reports.items() if page.exists()})
  if (folder / 'site').exists():
    with serve(folder / 'site') as address:  # opened as files, the site has no search
      take({'docs': address})


def take(pages: dict[str, Path | str]) -> None:
  """Writes the pictures of these pages, by the name of the picture."""
  for dark in (False, True):
    # A profile of its own: the site remembers the first scheme it was seen in.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
      browser = Browser(Path(profile))
      for name, page in pages.items():
        for width in HEIGHTS:
          browser.open(page, width, dark)
          browser.evaluate('new Promise((done) => setTimeout(done, 300))')  # colours fade in
          clip = {'x': 0, 'y': 0, 'width': width, 'height': HEIGHTS[width]}
          shot = browser.call(
            'Page.captureScreenshot',
            **{'format': 'webp', 'quality': 70, 'clip': clip | {'scale': SCALES[width]}},
            captureBeyondViewport=True,
          )
          path = IMAGES / f'{name}_{width}_{"dark" if dark else "light"}.webp'
          path.write_bytes(base64.b64decode(shot['data']))
      browser.close()


if __name__ == '__main__':
  main(Path(sys.argv[1]))
