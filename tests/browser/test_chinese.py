"""The main walk on Chinese pages: refusals, plans, progress and failures say what they say in English, in Chinese."""

import re
from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage
from tests.e2e.conftest import Line
from tests.e2e.product import LocalStack, Product

CHINESE = {"locale": "zh-CN"}
ENGLISH = re.compile(r"[A-Za-z]+ [a-z]+ [a-z]+ [a-z]+")
"""Four words: more than names and options."""


def expect_chinese(place: Locator, *texts: str) -> None:
    """Expects these texts, and no English sentence next to them."""
    for text in texts:
        expect(place).to_contain_text(text)
    assert not ENGLISH.search(place.inner_text()), place.inner_text()


def open_chinese(open_page: OpenPage, path: str) -> Page:
    return open_page(path, **CHINESE)


def test_a_wrong_order_and_its_plan_are_chinese(
    open_page: OpenPage, line: Line, screenshot: Callable[..., None]
) -> None:
    page = open_chinese(open_page, "/merge?base=llama&adapters=alpaca,zh")
    refusal = page.locator('[data-place="adapters"]')
    expect_chinese(
        refusal.get_by_role("alert"),
        "适配器不能按 alpaca, zh 的顺序合并：适配器 zh 的嵌入有 1104 行；在它之前已有 1105 行，词表会因此缩小。",
        "正确的顺序是：zh, alpaca。",
    )
    screenshot(page, "chinese-wrong-order", full_page=True)
    refusal.get_by_role("button", name="使用此顺序").click()
    expect(page.locator("#plan-state")).to_have_text("可以合并")


def test_the_problem_of_a_model_is_chinese(
    open_page: OpenPage, line: Line, stack: LocalStack, screenshot: Callable[..., None]
) -> None:
    folder = stack.models_dir / "incomplete"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "adapter_config.json").write_text("{}")
    page = open_chinese(open_page, "/models/incomplete")
    expect(page.locator('main .notice[data-kind="error"]').first).to_contain_text(
        re.compile("[\u4e00-\u9fff]{3}")
    )
    assert page.locator("main").locator('.notice [lang="en"]').count() == 0
    screenshot(page, "chinese-problem", full_page=True)


def test_a_chat_that_does_not_fit_is_refused_in_chinese(
    open_page: OpenPage, line: Line, product: Product
) -> None:
    job = product.submit(
        kind="generate", model="llama-hf", prompt="你好", sampling={"max_new_tokens": 100_000}
    )
    product.wait(job["id"])
    page = open_chinese(open_page, f"/jobs/{job['id']}")
    expect_chinese(page.get_by_role("alert"), "请求生成 100000 个新词元")
