"""The playground: conversations in two languages, versions, adapters on the fly, models side by side."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.looks import LOOKS, LOOKS_WITH_CHINESE_PHONE, fits
from tests.e2e.conftest import Line

Questions = list[dict[str, str]]


@pytest.fixture
def playground(open_page: OpenPage, line: Line) -> Page:
    """The page with greedy sampling, which makes answers those of the miniature's list."""
    page = open_page("/playground")
    page.locator("#preset").select_option("greedy")
    return page


def ask(page: Page, text: str) -> None:
    """Sends a message and waits until its reply has ended."""
    before = len(replies(page))
    page.locator("#chat-text").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator('.turn[data-role="assistant"]')).to_have_count(before + 1)
    expect(page.locator("#chat-send")).to_be_enabled()


def replies(page: Page) -> list[str]:
    return page.locator('.turn[data-role="assistant"] .words').all_inner_texts()


def of_language(questions: Questions, pattern: str) -> dict[str, str]:
    return next(item for item in questions if re.search(pattern, item["question"]))


def test_the_latest_merged_model_is_chosen_and_answers_in_two_languages(
    playground: Page, questions: Questions, screenshot: Callable[..., None]
) -> None:
    assert playground.locator("#model").input_value() == "merged"
    chinese, english = of_language(questions, "[一-鿿]"), of_language(questions, "^[A-Za-z]")
    ask(playground, chinese["question"])
    assert replies(playground) == [chinese["answer"]]
    playground.locator("#chat-new").click()
    playground.get_by_role("dialog").get_by_role("button").first.click()
    expect(playground.locator(".turn")).to_have_count(0)
    ask(playground, english["question"])
    assert replies(playground) == [english["answer"]]
    screenshot(playground, "playground")


def test_a_conversation_is_kept_over_reloads_and_belongs_to_its_model(
    playground: Page, questions: Questions
) -> None:
    ask(playground, questions[0]["question"])
    playground.reload()
    assert replies(playground) == [questions[0]["answer"]]
    playground.locator("#model").select_option("llama-hf")
    expect(playground.locator(".turn")).to_have_count(0)
    playground.locator("#model").select_option("merged")
    expect(playground.locator(".turn")).to_have_count(2)


def test_an_edited_message_starts_a_version_and_both_can_be_read(
    playground: Page, questions: Questions
) -> None:
    first, second = questions[0], questions[1]
    ask(playground, first["question"])
    playground.get_by_role("button", name="Edit").click()
    playground.get_by_role("textbox", name="Edit").fill(second["question"])
    playground.get_by_role("button", name="Send again").click()
    expect(playground.locator("#chat-send")).to_be_enabled()
    assert replies(playground) == [second["answer"]]
    playground.get_by_role("button", name="Previous version").click()
    assert replies(playground) == [first["answer"]]
    playground.get_by_role("button", name="Generate again").click()
    expect(playground.locator("#chat-send")).to_be_enabled()
    expect(playground.locator('.turn[data-role="assistant"]')).to_contain_text("2 of 2")
    assert replies(playground) == [first["answer"]]


def test_adapters_on_the_fly_answer_as_the_merged_model(playground: Page, questions: Questions) -> None:
    playground.locator("#model").select_option("llama-hf")
    for name in ("zh", "alpaca"):
        playground.locator("#adapters select").select_option(name)
    playground.locator("#template").select_option("alpaca")
    ask(playground, questions[0]["question"])
    assert replies(playground) == [questions[0]["answer"]]


def test_adapters_are_ordered_and_scaled_by_keyboard(playground: Page) -> None:
    for name in ("alpaca", "zh"):
        playground.locator("#adapters select").select_option(name)
    playground.get_by_role("button", name="Move zh up").focus()
    playground.keyboard.press("Enter")
    assert playground.locator("#adapters .adapter .wrap").all_inner_texts() == ["zh", "alpaca"]
    slider = playground.get_by_role("slider", name="Scale of zh")
    slider.focus()
    playground.keyboard.press("ArrowLeft")
    assert playground.get_by_role("spinbutton", name="Scale of zh").input_value() == "0.95"


def test_a_refused_request_shows_the_reason_and_the_conversation_goes_on(
    playground: Page, questions: Questions
) -> None:
    playground.locator("#model").select_option("llama-hf")
    for name in ("alpaca", "zh"):
        playground.locator("#adapters select").select_option(name)
    playground.locator("#chat-text").fill("hello")
    playground.locator("#chat-send").click()
    expect(playground.locator(".turn .notice")).to_contain_text("order")
    expect(playground.locator("#chat-text")).to_have_value("hello")
    for name in ("alpaca", "zh"):
        playground.get_by_role("button", name=f"Remove {name}").click()
    for name in ("zh", "alpaca"):
        playground.locator("#adapters select").select_option(name)
    playground.locator("#template").select_option("alpaca")
    playground.locator("#chat-text").fill(questions[0]["question"])
    playground.locator("#chat-send").click()
    expect(playground.locator(".turn .notice")).to_have_count(0)
    expect(playground.locator("#chat-send")).to_be_enabled()
    assert replies(playground) == [questions[0]["answer"]]


def test_token_probabilities_are_shown_by_keyboard(playground: Page, questions: Questions) -> None:
    playground.locator("#probabilities").check()
    ask(playground, questions[0]["question"])
    playground.get_by_role("button", name="Tokens").click()
    playground.locator(".token").first.focus()
    playground.keyboard.press("ArrowRight")
    expect(playground.locator(".token").nth(1)).to_be_focused()
    shares = playground.locator(".alternatives td.number").all_inner_texts()
    assert len(shares) >= 5
    numbers = [float(text.rstrip("%")) for text in shares]
    assert sum(numbers) <= 100.5
    assert numbers[0] == max(numbers)  # greedy


def test_a_text_is_continued_and_the_continuation_undone(playground: Page) -> None:
    playground.get_by_role("tab", name="Continue a text").click()
    playground.locator("#raw-text").fill("The capital of France is")
    playground.locator("#raw-send").click()
    expect(playground.locator("#raw-note")).to_contain_text("tokens")
    text = playground.locator("#raw-text").input_value()
    assert text.startswith("The capital of France is")
    assert len(text) > len("The capital of France is")
    playground.locator("#raw-undo").click()
    assert playground.locator("#raw-text").input_value() == "The capital of France is"


def test_base_adapters_and_merged_are_compared_and_the_first_difference_is_marked(
    playground: Page, questions: Questions, screenshot: Callable[..., None]
) -> None:
    playground.locator("#template").select_option("alpaca")
    playground.get_by_role("tab", name="Side by side").click()
    assert playground.locator(".variant > .row select").evaluate_all("all => all.map(one => one.value)") == [
        "llama-hf",
        "llama-hf",
        "merged",
    ]
    playground.locator("#compare-text").fill(questions[0]["question"])
    playground.locator("#compare-send").click()
    columns = playground.locator(".column")
    expect(columns).to_have_count(3)
    texts = columns.locator(".words").all_inner_texts()
    assert texts[1] == texts[2] == questions[0]["answer"]
    assert texts[0] != texts[1]
    marked = columns.nth(1).locator("mark").inner_text()
    common = len(texts[1]) - len(marked)
    assert texts[0][:common] == texts[1][:common]
    assert texts[0][common : common + 1] != texts[1][common : common + 1]
    screenshot(playground, "playground-side-by-side")


@pytest.mark.usefixtures("crowd")
def test_models_and_adapters_are_searched_by_keyboard_among_many(
    open_page: OpenPage, axe: Callable[[Page], list[str]], screenshot: Callable[..., None]
) -> None:
    page = open_page("/playground")
    settings, model = page.locator("#settings"), page.locator("#model")
    expect(model).to_have_value("merged")
    assert 30 <= model.locator("option").count() < 40
    search = settings.get_by_label("Find a model")
    search.focus()
    page.keyboard.type("base-39")
    expect(settings.locator(".find .help").first).to_have_text("1 found")
    expect(model.locator("option")).to_have_text(["merged", "base-39"])
    page.keyboard.press("ArrowDown")
    expect(model).to_be_focused()
    model.select_option("base-39")
    settings.get_by_label("Find an adapter").fill("lora-38")
    adapters = page.locator("#adapters select")
    expect(adapters.locator("option")).to_have_count(2)
    adapters.select_option("lora-38")
    expect(page.locator("#adapters .adapter .wrap")).to_have_text("lora-38")
    screenshot(page, "playground-search", full_page=True)
    page.reload()  # both are kept, and neither is among those that the page carries
    expect(model).to_have_value("base-39")
    expect(page.locator("#adapters .adapter .wrap")).to_have_text("lora-38")
    page.get_by_role("tab", name="Side by side").click()
    second = page.locator(".variant").nth(1)
    second.get_by_label("Find a model").fill("base-3")
    choice = second.locator("select").first
    expect(choice.locator("option")).to_have_count(11)
    choice.select_option("base-35")
    second.get_by_label("Find a model").fill("llama")
    expect(choice.locator("option")).to_have_text(["base-35", "", "llama-hf"])
    expect(choice).to_have_value("base-35")
    screenshot(page, "playground-search-compare", full_page=True)
    assert axe(page) == []


def test_a_conversation_is_exported(playground: Page, questions: Questions) -> None:
    ask(playground, questions[0]["question"])
    with playground.expect_download() as download:
        playground.locator("#chat-json").click()
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert exported["model"] == "merged"
    assert [turn["content"] for turn in exported["messages"]] == [
        questions[0]["question"],
        questions[0]["answer"],
    ]


def test_a_reply_can_be_stopped(playground: Page) -> None:
    playground.locator("#max_new_tokens").fill("100000")
    playground.get_by_role("tab", name="Continue a text").click()
    playground.locator("#raw-text").fill("One")
    playground.locator("#raw-send").click()
    playground.locator("#raw-stop").click()
    expect(playground.locator("#raw-send")).to_be_enabled()


@pytest.mark.parametrize("look", ["phone", "chinese-phone"])
def test_the_tabs_are_one_row_on_a_phone(open_page: OpenPage, line: Line, look: str) -> None:
    page = open_page("/playground", **LOOKS_WITH_CHINESE_PHONE[look])
    boxes = [tab.bounding_box() for tab in page.get_by_role("tab").all()]
    rows = {(box["y"], box["height"]) for box in boxes if box}
    assert len(boxes) == 3
    assert len(rows) == 1
    assert rows.pop()[1] < 40  # a single line of text
    assert fits(page)


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_is_complete_in_other_looks(
    open_page: OpenPage,
    line: Line,
    questions: Questions,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    look: str,
) -> None:
    page = open_page("/playground", **LOOKS[look])
    if look == "phone":
        page.locator(".settings > summary").click()
    page.locator("#preset").select_option("greedy")
    page.locator("#probabilities").check()
    ask(page, questions[0]["question"])
    assert axe(page) == []
    assert fits(page)
    screenshot(page, f"playground-{look}", full_page=True)
