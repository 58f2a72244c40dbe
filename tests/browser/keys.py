"""Keys of a service that asks for them."""

import hashlib

from playwright.sync_api import Page

KEYS = {"read": "key-of-a-reader", "submit": "key-of-a-submitter", "admin": "key-of-an-admin"}

KEYS_FILE = "\n".join(
    f"{hashlib.sha256(key.encode()).hexdigest()} {role} {role}-key" for role, key in KEYS.items()
)
"""Content of the file that the service reads."""


def sign_in(page: Page, key: str) -> None:
    """Signs in on the page that asks for a key, and waits for the next page."""
    page.get_by_label("API key").fill(key)
    with page.expect_navigation():
        page.keyboard.press("Enter")
