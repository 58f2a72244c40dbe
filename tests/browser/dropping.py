"""Files that a test drops on a page."""

import base64
from pathlib import Path

from playwright.sync_api import Page

DROP = """([files]) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.codePointAt(0));
    transfer.items.add(new File([bytes], name, { lastModified: 1764200000000 }));
  }
  for (const type of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""
"""Drops files on the page as a file manager does."""


def drop(page: Page, files: dict[str, Path]) -> None:
    """Drops files, by the name that each has for the page."""
    contents = [[name, base64.b64encode(path.read_bytes()).decode()] for name, path in files.items()]
    page.evaluate(DROP, [contents])
