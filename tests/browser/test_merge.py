"""The page New merge, used by mouse, touch and keyboard, up to the merged model."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.looks import LOOKS, LOOKS_WITH_CHINESE_PHONE, fits
from tests.e2e.conftest import Incoming, Line
from tests.e2e.product import Json, Product

WRONG = "/merge?base=llama&adapters=alpaca,zh"
RIGHT = "/merge?base=llama&adapters=zh,alpaca"


def rows(page: Page) -> Locator:
    return page.locator("#chosen > li")


def expect_order(page: Page, *names: str) -> None:
    expect(rows(page).locator("strong")).to_have_text(list(names))
    expect(rows(page).locator(".merge-position")).to_have_text([str(n + 1) for n in range(len(names))])


def expect_fit(page: Page) -> None:
    expect(page.locator("#plan-state")).to_have_text("Fits")
    expect(page.locator("#submit")).to_be_enabled()


def test_a_wrong_order_is_proposed_right_and_one_click_mends_it(
    open_page: OpenPage, line: Line, screenshot: Callable[..., None]
) -> None:
    page = open_page(WRONG)
    refusal = page.locator('[data-place="adapters"]')
    expect(refusal.get_by_role("alert")).to_contain_text("embeddings of 1104 rows; before it there are 1105")
    expect(refusal.get_by_role("listitem")).to_have_text(["zh", "alpaca"])
    expect(page.locator("#submit")).to_be_disabled()
    screenshot(page, "merge-wrong-order", full_page=True)
    refusal.get_by_role("button", name="Use this order").click()
    expect_order(page, "zh", "alpaca")
    expect_fit(page)
    expect(refusal).to_be_empty()
    assert page.url.endswith("adapters=zh%2Calpaca")


def test_the_plan_says_which_adapter_brings_which_rows(open_page: OpenPage, line: Line) -> None:
    page = open_page(RIGHT)
    expect_fit(page)
    steps = page.locator(".merge-flow > li")
    expect(steps).to_have_count(4)
    expect(steps.nth(1)).to_contain_text("vocabulary 608 → 1,104")
    expect(steps.nth(2)).to_contain_text("vocabulary 1,104 → 1,105")
    expect(steps.nth(3)).to_contain_text("llama-alpaca")
    expect(steps.nth(3)).to_contain_text("vocabulary 608 → 1,105")
    expect(page.locator("#plan dt")).to_contain_text(["Output", "Peak memory", "Disk"])


def test_adapters_are_added_ordered_by_dragging_and_removed(open_page: OpenPage, line: Line) -> None:
    page = open_page("/merge?base=llama")
    for name in ("alpaca", "zh"):
        page.get_by_role("button", name=f"Add {name}", exact=True).click()
    expect_order(page, "alpaca", "zh")
    grip = rows(page).nth(1).locator(".merge-grip")
    grip.hover()
    page.mouse.down()
    top = rows(page).nth(0).bounding_box()
    assert top is not None
    page.mouse.move(top["x"] + 20, top["y"] + 3, steps=6)
    page.mouse.up()
    expect_order(page, "zh", "alpaca")
    expect(page.locator("#announce")).to_have_text("zh is now 1 of 2.")
    expect_fit(page)
    page.get_by_role("button", name="Remove alpaca").click()
    expect_order(page, "zh")
    expect(page.get_by_role("button", name="Remove zh")).to_be_focused()


def test_adapters_are_ordered_by_touch(open_page: OpenPage, line: Line) -> None:
    page = open_page(WRONG, **LOOKS["phone"])
    expect_order(page, "alpaca", "zh")
    # rows do not move any more once the answer is there
    expect(page.locator('[data-place="adapters"]').get_by_role("alert")).to_be_visible()
    rows(page).nth(1).evaluate("row => row.scrollIntoView({block: 'center'})")  # not below the navigation
    grip = rows(page).nth(1).locator(".merge-grip").bounding_box()
    top = rows(page).nth(0).bounding_box()
    assert grip is not None
    assert top is not None
    session = page.context.new_cdp_session(page)
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 6):
        point = {"x": x, "y": y + (top["y"] + 3 - y) * step / 5}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect_order(page, "zh", "alpaca")


def test_adapters_are_ordered_by_keyboard_and_focus_stays(open_page: OpenPage, line: Line) -> None:
    page = open_page(WRONG)
    up = page.get_by_role("button", name="Move zh up")
    up.focus()
    page.keyboard.press("Enter")
    expect_order(page, "zh", "alpaca")
    expect(page.locator("#announce")).to_have_text("zh is now 1 of 2.")
    expect(up).to_be_focused()
    page.keyboard.press("Alt+ArrowDown")
    expect_order(page, "alpaca", "zh")
    expect(up).to_be_focused()
    page.keyboard.press("Alt+ArrowUp")
    expect_order(page, "zh", "alpaca")
    expect_fit(page)


def test_the_whole_way_by_keyboard(open_page: OpenPage, line: Line) -> None:
    page = open_page("/merge?base=llama-hf")
    for name in ("zh", "alpaca"):
        page.get_by_role("button", name=f"Add {name}", exact=True).focus()
        page.keyboard.press("Enter")
    expect_fit(page)
    page.locator("#target").fill("by-keyboard")
    expect_fit(page)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("by-keyboard")
    expect(page.get_by_role("link", name="Open the playground")).to_be_visible()


def test_a_merge_runs_to_the_end_and_its_verification_is_shown(
    open_page: OpenPage, line: Line, axe: Callable[[Page], list[str]], screenshot: Callable[..., None]
) -> None:
    page = open_page(RIGHT)
    page.locator("#target").fill("by-mouse")
    page.get_by_label("Keep the base as a Hugging Face model too").check()
    page.get_by_label("Name of the base").fill("by-mouse-base")
    expect_fit(page)
    page.get_by_role("button", name="Merge and try").click()
    expect(page.locator("#steps h2")).to_have_text(
        ["Convert llama to by-mouse-base", "Merge into by-mouse", "Verify and measure", "Try by-mouse"]
    )
    expect(page.get_by_role("link", name="Open the playground")).to_have_attribute(
        "href", "/playground?model=by-mouse"
    )
    expect(page.locator("#steps .badge")).to_have_text(["Succeeded"] * 3)
    expect(page).to_have_title("✓ by-mouse · Graftwerk")
    expect(page.get_by_role("heading", name="Verification")).to_be_visible()
    expect(page.locator("#result")).to_contain_text("Passed")
    expect(page.locator("#result")).to_contain_text("lm_head")
    screenshot(page, "merge-done", full_page=True)
    assert axe(page) == []
    page.reload()
    expect(page.locator("#steps .badge")).to_have_text(["Succeeded"] * 3)
    expect(page.get_by_role("heading", name="Verification")).to_be_visible()
    page.get_by_role("link", name="Change and run again").click()
    expect_order(page, "zh", "alpaca")
    expect(page.locator("#target-problem")).to_have_text("A model of this name exists already.")
    expect(page.locator("#submit")).to_be_disabled()


def test_a_gguf_file_is_made_next_to_the_merged_model(
    open_page: OpenPage, line: Line, product: Product, screenshot: Callable[..., None]
) -> None:
    page = open_page(RIGHT)
    page.locator("#target").fill("small")
    page.get_by_text("GGUF", exact=True).click()
    page.locator("#dtype").select_option("q4_k_m")
    expect(page.locator("#dtype-help")).to_have_text("The usual choice: small, with little loss.")
    expect(page.locator("#submit")).to_have_text("Merge")
    page.get_by_text("Compare the types").click()
    table = page.get_by_role("table")
    expect(table.get_by_role("row")).to_have_count(31)
    expect(table.get_by_role("row", name="q8_0 8.50")).to_contain_text("608.2 kB")  # 572,384 × 8.5 / 8
    table.get_by_role("button", name="q5_k_m", exact=True).press("Enter")
    expect(page.locator("#dtype")).to_have_value("q5_k_m")
    expect(table.get_by_role("button", name="q5_k_m", exact=True)).to_be_focused()
    screenshot(page, "merge-types", full_page=True)
    table.get_by_role("button", name="q4_k_m", exact=True).click()
    page.get_by_label("Keep the merged model as a Hugging Face model too").check()
    expect(page.locator("#submit")).to_have_text("Merge and try")
    expect(page.locator("#keep-merge-name")).to_have_value("small-hf")
    expect_fit(page)
    page.locator("#submit").click()
    expect(page.get_by_role("link", name="Open the playground")).to_have_attribute(
        "href", "/playground?model=small-hf"
    )
    assert product.get("/api/models/small")["kind"] == "gguf"


def test_an_adapter_of_another_base_is_refused_with_the_reason(
    open_page: OpenPage, line: Line, slow: Json
) -> None:
    page = open_page("/merge?base=llama&adapters=slow-adapter")
    refusal = page.locator('[data-place="adapters"]').get_by_role("alert")
    expect(refusal).to_contain_text("The adapter was trained on")
    expect(page.locator("#plan-state")).to_have_text("Not possible")
    expect(page.locator("#submit")).to_be_disabled()
    page.get_by_role("link", name="The reason is shown under “Adapters”.").click()
    expect(refusal).to_be_in_viewport()


def test_an_adapter_whose_vocabulary_is_too_small_is_marked_before_it_is_chosen(
    open_page: OpenPage, line: Line
) -> None:
    page = open_page("/merge?base=merged")
    mark = page.locator('#available [data-name="zh"] .merge-mark')
    expect(mark).to_have_text("Its embeddings have 1,104 rows, fewer than the base's 1,105.")
    page.get_by_role("radio", name="llama original").check()
    expect(mark).to_be_hidden()


def test_a_hugging_face_base_can_be_tried_without_merging(open_page: OpenPage, line: Line) -> None:
    page = open_page("/merge?base=llama-hf&adapters=zh,alpaca")
    expect(page.get_by_role("link", name="Try it first without merging")).to_have_attribute(
        "href", "/playground?model=llama-hf&adapters=zh%2Calpaca"
    )
    page.get_by_role("radio", name="llama original").check()
    expect_fit(page)
    expect(page.get_by_role("link", name="Try it first without merging")).to_be_hidden()


def test_ranks_that_do_not_divide_are_refused_where_they_are_chosen(open_page: OpenPage, line: Line) -> None:
    page = open_page(RIGHT)
    page.get_by_text("Original", exact=True).click()
    page.locator("#more > summary").click()
    page.get_by_label("Rank files").fill("3")
    expect(page.locator('[data-place="output"]').get_by_role("alert")).to_contain_text("3")
    expect(page.get_by_role("link", name="The reason is shown under “Output”.")).to_be_visible()
    page.get_by_label("Rank files").fill("2")
    expect_fit(page)


def test_too_little_memory_is_the_reason_in_the_plan(open_page: OpenPage, line: Line) -> None:
    page = open_page("/merge?base=llama")
    refusal = {
        "code": "insufficient_memory",
        "detail": "9 GB are needed, 1 GB is there.",
        "hint": "Add memory.",
    }
    page.route("**/api/jobs?dry_run=true", lambda route: route.fulfill(status=422, json=refusal))
    page.get_by_role("button", name="Add zh", exact=True).click()
    alert = page.locator('[data-place="plan"]').get_by_role("alert")
    expect(alert).to_contain_text("9 GB are needed, 1 GB is there.")
    expect(alert).to_contain_text("Add memory.")
    expect(page.locator("#submit")).to_be_disabled()


@pytest.fixture
def gate(slow: Json, product: Product) -> list[str]:
    """The id of a job that takes seconds: jobs after it do not end before those that wait for them are submitted."""
    return [product.submit(**slow, target="gate")["id"]]


def test_a_failed_job_and_what_waited_for_it_are_shown_with_the_reason(
    open_page: OpenPage, line: Line, incoming: Incoming, product: Product, gate: list[str]
) -> None:
    wrong = {"tokenizer.model": "0" * 64}
    source = {"path": incoming.llama}
    first = product.submit(kind="import", source=source, target="broken", sha256=wrong, after=gate)
    merge = {"kind": "merge", "base": "broken", "adapters": ["zh"], "target": "unmerged"}
    second = product.submit(**merge, after=[first["id"]])
    page = open_page(f"/merge?jobs={first['id']},{second['id']}")
    expect(page.get_by_role("alert").first).to_contain_text("tokenizer.model")
    expect(page.locator("#steps > li").first).to_have_attribute("data-status", "failed")
    expect(page.locator("#steps > li").nth(1).get_by_role("alert")).to_be_visible()
    expect(page.locator("#steps > li").nth(2)).to_contain_text("Not run")
    expect(page.get_by_role("link", name="Open the playground")).to_have_count(0)


def test_a_wrong_order_that_a_job_finds_is_mended_by_a_link(
    open_page: OpenPage, line: Line, product: Product, gate: list[str]
) -> None:
    # the base of the merge does not exist when it is submitted, so that its order is checked when it runs
    first = product.submit(kind="convert", source="llama", target="order-base", after=gate)
    merge = {"kind": "merge", "base": "order-base", "adapters": ["alpaca", "zh"], "target": "ordered"}
    second = product.submit(**merge, after=[first["id"]])
    page = open_page(f"/merge?jobs={first['id']},{second['id']}")
    page.get_by_role("link", name="Use the order zh, alpaca").click()
    expect_order(page, "zh", "alpaca")
    expect(page.locator("#target")).to_have_value("ordered")
    expect(page.get_by_role("radio", name="llama original")).to_be_checked()
    expect_fit(page)


@pytest.mark.usefixtures("crowd")
def test_a_base_and_adapters_are_searched_by_keyboard_among_many(
    open_page: OpenPage, axe: Callable[[Page], list[str]], screenshot: Callable[..., None]
) -> None:
    page = open_page("/merge?base=llama")
    expect(page.locator(".merge-base strong")).to_have_count(
        31 + 30
    )  # of the others, 30 that cannot be a base
    expect(page.locator("#bases .merge-found")).to_have_text(
        re.compile(r"31 of 4\d are listed\. Search for the others\.")
    )
    search = page.get_by_label("Find a base")
    search.focus()
    page.keyboard.type("HUGGING base-3")
    expect(page.locator(".merge-base:visible strong")).to_have_text(
        [*(f"base-{number}" for number in range(30, 40)), "llama"]
    )
    expect(page.get_by_role("radio", name="llama original")).to_be_checked()
    expect(page.locator("#announce")).to_have_text("10 found")
    page.keyboard.press("Enter")  # does not submit
    expect(search).to_be_focused()
    page.get_by_role("radio", name="base-37").check()
    page.get_by_label("Find an adapter").fill("lora-39")
    page.get_by_role("button", name="Add lora-39").press("Enter")
    expect_order(page, "lora-39")
    expect(page).to_have_url(re.compile("base=base-37&adapters=lora-39$"))
    search.fill("base-0")
    expect(page.get_by_role("radio", name="base-05")).to_be_visible()
    expect(page.get_by_role("radio", name="base-37")).to_be_checked()
    screenshot(page, "merge-search", full_page=True)
    assert axe(page) == []
    page.get_by_label("Find an adapter").fill("zh")
    expect(page.get_by_role("button", name="Add zh", exact=True)).to_be_visible()
    page.get_by_role("button", name="Remove lora-39").click()
    expect(page.get_by_label("Find an adapter")).to_be_focused()
    page.reload()
    expect(page.get_by_role("radio", name="base-37")).to_be_checked()


def test_an_adapter_of_another_width_is_marked_before_it_is_chosen(
    open_page: OpenPage, line: Line, slow: Json
) -> None:
    page = open_page("/merge?base=llama")
    mark = page.locator('#available [data-name="slow-adapter"] .merge-mark')
    expect(mark).to_have_text(re.compile(r"Trained on a base of width [\d,]+; this one has 112\."))
    page.get_by_role("radio", name=re.compile("^slow ")).check()
    expect(mark).to_be_hidden()


def test_a_model_that_arrives_is_offered_and_choices_are_kept(
    open_page: OpenPage, line: Line, product: Product
) -> None:
    page = open_page("/merge?base=llama&adapters=zh")
    expect_fit(page)
    product.run(kind="convert", source="llama", target="arrived")
    page.get_by_role("status").get_by_text("arrived is on the volume now.").wait_for()
    page.get_by_role("link", name="Show it").click()
    expect(page.get_by_role("radio", name="arrived Hugging Face")).to_be_visible()
    expect(page.get_by_role("radio", name="llama original")).to_be_checked()
    expect_order(page, "zh")


def test_what_cannot_be_a_base_is_shown_with_the_reason(open_page: OpenPage, line: Line) -> None:
    page = open_page("/merge")
    page.get_by_text("cannot be a base").click()
    expect(page.get_by_role("radio", name="zh adapter An adapter: add it to a base below.")).to_be_disabled()


def test_an_answer_to_an_earlier_question_is_discarded(open_page: OpenPage, line: Line) -> None:
    page = open_page("/merge?base=llama")
    held = list[Route]()

    def hold_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/api/jobs?dry_run=true", hold_first)
    with page.expect_request("**/api/jobs?dry_run=true"):
        page.get_by_role("button", name="Add alpaca", exact=True).click()
    page.get_by_role("button", name="Remove alpaca").click()
    page.get_by_role("button", name="Add zh", exact=True).click()
    expect_fit(page)
    held[0].fulfill(status=422, json={"code": "vocabulary_mismatch", "detail": "late", "hint": ""})
    page.get_by_role("spinbutton", name="Scale of zh").fill("0.5")
    expect(page.locator(".merge-flow > li").nth(1)).to_contain_text("scaled by 0.5")
    expect(page.get_by_text("late", exact=True)).to_have_count(0)


def test_slider_and_number_agree_and_the_address_keeps_them(open_page: OpenPage, line: Line) -> None:
    page = open_page("/merge?base=llama&adapters=zh@0.5")
    slider, number = page.get_by_role("slider"), page.get_by_role("spinbutton", name="Scale of zh")
    expect(slider).to_have_value("0.5")
    slider.press("ArrowRight")
    expect(number).to_have_value("0.55")
    number.fill("-1.5")
    expect(slider).to_have_value("0")  # its end
    expect_fit(page)
    assert page.url.endswith("adapters=zh%40-1.5")
    number.fill("")
    expect(page.locator("#submit")).to_be_disabled()


def test_the_request_is_copied_as_command_python_and_curl(open_page: OpenPage, line: Line) -> None:
    page = open_page(RIGHT, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_text("The same as a command or program").click()
    text = page.locator("#snippet")
    expect(text).to_contain_text("graftwerk merge --url")
    expect(text).to_contain_text("llama --adapters zh,alpaca --target llama-alpaca")
    page.get_by_role("button", name="Python").click()
    expect(text).to_contain_text('adapters=["zh", "alpaca"],')
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#toasts")).to_contain_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == text.text_content()


def test_a_running_merge_is_followed_and_canceled(
    open_page: OpenPage, slow: Json, product: Product, screenshot: Callable[..., None]
) -> None:
    job = product.submit(**slow | {"target": "never"})
    page = open_page(f"/merge?jobs={job['id']}")
    expect(page.locator("#steps progress")).to_be_visible()
    screenshot(page, "merge-running")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the jobs").click()
    expect(page.locator("#steps .badge").first).to_have_text("Canceled")
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_hidden()


def test_on_a_phone_the_plan_is_one_touch_away(
    open_page: OpenPage, line: Line, screenshot: Callable[..., None]
) -> None:
    page = open_page(WRONG, **LOOKS["phone"])
    bar = page.locator(".merge-bar")
    expect(bar).to_have_text("PlanNot possible")
    page.get_by_role("button", name="Use this order").tap()
    expect(bar).to_have_text("PlanFits")
    screenshot(page, "merge-phone-bar")
    bar.tap()
    expect(page.get_by_role("heading", name="Plan")).to_be_in_viewport()


@pytest.mark.parametrize("look", LOOKS_WITH_CHINESE_PHONE)
def test_the_progress_is_accessible_and_fits_the_screen(
    open_page: OpenPage,
    line: Line,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    look: str,
) -> None:
    page = open_page(f"/merge?jobs={line.convert['id']},{line.merge['id']}", **LOOKS_WITH_CHINESE_PHONE[look])
    expect(page.locator("#result table").first).to_be_visible()
    assert fits(page)
    screenshot(page, f"merge-progress-{look}", full_page=True)
    assert axe(page) == []


@pytest.mark.parametrize("look", LOOKS_WITH_CHINESE_PHONE)
def test_a_composed_merge_is_accessible_and_fits_the_screen(
    open_page: OpenPage,
    line: Line,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    look: str,
) -> None:
    page = open_page(RIGHT, **LOOKS_WITH_CHINESE_PHONE[look])
    expect(page.locator("#submit")).to_be_enabled()
    page.locator("#more > summary").click()
    page.locator("#snippets > summary").click()
    assert fits(page)
    screenshot(page, f"merge-{look}", full_page=True)
    assert axe(page) == []
