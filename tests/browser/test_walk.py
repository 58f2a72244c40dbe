"""The whole way of a newcomer on the pages: two zips, an order that is wrong, a merge, its proof, a chat, a comparison, a download.

Once by mouse, once with no key but those of the keyboard, on a phone, in the dark, in Chinese, and with keys on.
"""

import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.dropping import drop
from tests.browser.keys import KEYS, sign_in
from tests.browser.looks import LOOKS
from tests.miniature import MINIATURE

Questions = list[dict[str, str]]
ZIPS = ("chinese-alpaca-lora", "chinese-llama-lora")
"""In the order in which they are dropped and chosen, which is the wrong one."""


@dataclass(frozen=True)
class Way:
    """One way through the pages: the options of the browser's profile, and how a control is used.

    With `drops`, archives are dragged onto the page; the others choose them by its button.
    """

    name: str
    use: Callable[[Locator], None]
    options: dict[str, Any]
    drops: bool = True


def by_mouse(control: Locator) -> None:
    control.click()


def by_touch(control: Locator) -> None:
    control.tap()


def by_keyboard(control: Locator) -> None:
    """Uses a control as a person without a mouse does; a control that cannot have the focus fails."""
    expect(control).to_be_enabled()
    control.focus()
    expect(control).to_be_focused()
    is_choice = control.evaluate("control => ['checkbox', 'radio'].includes(control.type)")
    control.press("Space" if is_choice else "Enter")


WAYS = (
    Way("mouse", by_mouse, {}),
    Way("keyboard", by_keyboard, {}, drops=False),
    Way("phone", by_touch, LOOKS["phone"], drops=False),
    Way("dark", by_mouse, LOOKS["dark"]),
    Way("chinese", by_mouse, LOOKS["chinese"]),
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_the_whole_way(
    open_page: OpenPage,
    way: Way,
    questions: Questions,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    tmp_path: Path,
) -> None:
    page = open_page("/", **way.options)
    walk(page, way, questions, axe, lambda name: screenshot(page, f"walk-{way.name}-{name}"), tmp_path)


def test_the_whole_way_with_keys_on(
    open_keyed: OpenPage,
    questions: Questions,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    tmp_path: Path,
) -> None:
    page = open_keyed("/")
    sign_in(page, KEYS["admin"])
    walk(
        page,
        Way("keys", by_mouse, {}),
        questions,
        axe,
        lambda name: screenshot(page, f"walk-keys-{name}"),
        tmp_path,
    )


def walk(
    page: Page,
    way: Way,
    questions: Questions,
    axe: Callable[[Page], list[str]],
    picture: Callable[[str], None],
    folder: Path,
) -> None:
    """Goes the whole way; each step ends when the page shows its outcome."""
    bring_models(page, way, picture)
    compose(page, way, picture)
    follow_merge(page, axe, picture)
    chat(page, way, next(item for item in questions if re.search("[一-鿿]", item["question"])), picture)
    compare(page, way, questions[0], picture)
    look_back(page, picture)
    download(page, way, folder)


def bring_models(page: Page, way: Way, picture: Callable[[str], None]) -> None:
    archives = {f"{name}.zip": MINIATURE / f"{name}.zip" for name in ZIPS}
    if way.drops:
        drop(page, archives)
    else:
        choose(page, way, "#choose-files", [*archives.values()])
    names = page.locator("#uploads input")
    expect(names).to_have_count(2)
    choose(page, way, "#choose-folder", [MINIATURE / "llama"])
    expect(names).to_have_count(3)
    for place, name in enumerate(ZIPS):
        expect(names.nth(place)).to_have_value(name)
    names.nth(2).fill("llama-walk")
    picture("1-bring")
    way.use(page.locator("#upload-all"))
    for name in (*ZIPS, "llama-walk"):
        expect(page.locator(f'.model[data-name="{name}"]')).to_be_visible()
    expect(page.locator("#totals")).not_to_contain_text(re.compile("^0 "))
    picture("1-models")


def choose(page: Page, way: Way, button: str, paths: list[Path]) -> None:
    """Opens a file chooser by its button and chooses in it."""
    with page.expect_file_chooser() as opened:
        way.use(page.locator(button))
    opened.value.set_files(paths)


def compose(page: Page, way: Way, picture: Callable[[str], None]) -> None:
    way.use(page.locator('nav a[href="/merge"]'))
    page.wait_for_url("**/merge")  # a key pressed before the scripts have run does nothing
    way.use(page.locator('input[name="base"][value="llama-walk"]'))
    for name in ZIPS:
        way.use(page.locator(f'[data-add="{name}"]'))
    refusal = page.locator('[data-place="adapters"]')
    expect(refusal.get_by_role("alert")).to_be_visible()
    expect(page.locator("#submit")).to_be_disabled()
    picture("2-wrong-order")
    way.use(refusal.get_by_role("button"))
    expect(page.locator("#chosen strong")).to_have_text([*reversed(ZIPS)])
    page.locator("#target").fill("walked")
    way.use(page.locator('input[name="keepBase"]'))
    page.locator("#keep-base-name").fill("walked-base")
    expect(page.locator("#submit")).to_be_enabled()
    picture("3-plan")
    way.use(page.locator("#submit"))


def follow_merge(page: Page, axe: Callable[[Page], list[str]], picture: Callable[[str], None]) -> None:
    expect(page.locator("h1")).to_have_text("walked")
    expect(page.locator('a[href="/playground?model=walked"]').first).to_be_visible()
    expect(page.locator("#steps .badge")).to_have_count(3)
    assert (
        page.locator("#steps .badge").evaluate_all("all => all.map(one => one.dataset.status)")
        == ["succeeded"] * 3
    )
    expect(page.locator("#result")).to_contain_text("lm_head")
    picture("4-verified")
    assert axe(page) == []


def chat(page: Page, way: Way, question: dict[str, str], picture: Callable[[str], None]) -> None:
    way.use(page.locator('a[href="/playground?model=walked"]').first)
    page.wait_for_url("**/playground?model=walked*")
    expect(page.locator("#model")).to_have_value("walked")
    if way.name == "phone":
        way.use(page.locator(".settings > summary"))
    page.locator("#preset").select_option("greedy")
    page.locator("#chat-text").fill(question["question"])
    way.use(page.locator("#chat-send"))
    expect(page.locator('.turn[data-role="assistant"] .words')).to_have_text(question["answer"])
    picture("5-chat")


def compare(page: Page, way: Way, question: dict[str, str], picture: Callable[[str], None]) -> None:
    way.use(page.locator("#tab-compare"))
    models = page.locator("#variants > li > .row select")
    expect(models).to_have_count(3)
    chosen = models.evaluate_all("all => all.map(one => one.value)")
    # the second with the adapters; an equal base that was made before may stand for this one
    assert chosen in (["walked-base", "walked-base", "walked"], ["llama-hf", "llama-hf", "walked"])
    page.locator("#template").select_option("alpaca")
    page.locator("#compare-text").fill(question["question"])
    way.use(page.locator("#compare-send"))
    columns = page.locator(".column")
    expect(columns).to_have_count(3)
    for column in (columns.nth(1), columns.nth(2)):
        expect(column.locator(".words")).to_have_text(question["answer"])
        expect(column.locator("mark")).to_be_visible()
    picture("6-side-by-side")


def look_back(page: Page, picture: Callable[[str], None]) -> None:
    page.goto("/jobs")
    expect(page.get_by_role("row").or_(page.get_by_role("listitem")).first).to_be_visible()
    picture("7-jobs")
    page.goto("/models/walked")
    expect(page.locator("h1")).to_have_text("walked")
    picture("8-model")
    page.goto("/system")
    expect(page.locator("h1")).to_be_visible()
    picture("9-system")


def download(page: Page, way: Way, folder: Path) -> None:
    page.goto("/models/walked")
    with page.expect_download() as started:
        way.use(page.locator('a[href$="/models/walked/archive"]'))
    archive = folder / "walked.tar"
    started.value.save_as(archive)
    with tarfile.open(archive) as opened:
        names = {Path(member).name for member in opened.getnames()}
    assert {"config.json", "manifest.json", "model.safetensors", "tokenizer.model"} <= names
