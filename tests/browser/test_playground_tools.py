"""The playground's JSON, tools and thinking: settings that are checked, calls that are drawn, results that are given back."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from playwright.sync_api import Locator, Page, expect

from services.kinds import parse_request
from tests.browser.conftest import OpenPage
from tests.browser.looks import LOOKS, fits
from tests.e2e.product import Product
from tests.e2e.test_tools import PARAMETERS, TOOLS, model

__all__ = ["model"]  # a fixture: the merged miniature with a chat template that takes tools

SCHEMA = {
    "type": "object",
    "properties": {"dry": {"type": "boolean"}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["dry", "days"],
    "additionalProperties": False,
}


def open_settings(page: Page) -> None:
    """Opens what is folded, by keyboard; on a phone that is the settings as a whole too."""
    for summary in (".settings > summary", "#answer-form > summary"):
        details = page.locator(summary).locator("..")
        if details.get_attribute("open") is None:
            page.locator(summary).focus()
            page.keyboard.press("Enter")


@pytest.fixture(scope="module", autouse=True)
def removed(product: Product, model: str) -> Iterator[None]:
    """Removes the model after the last test, so that no list of another test has it."""
    yield
    product.http.delete(f"/api/models/{model}")


@pytest.fixture
def opened(open_page: OpenPage, model: str) -> Callable[..., Page]:
    """Opens the playground with the model, the settings unfolded, 200 tokens from a fixed seed."""

    def open_with(**options: Any) -> Page:
        page = open_page(f"/playground?model={model}", **options)
        open_settings(page)
        page.locator("#max_new_tokens").fill("200")
        page.locator("#seed").fill("1")
        return page

    return open_with


def read(request: dict[str, Any]) -> Any:
    """Returns a request as the service reads it, where fields that were left out equal their defaults."""
    return parse_request(request)


def turns(page: Page, role: str) -> Locator:
    return page.locator(f'.turn[data-role="{role}"]')


def send(page: Page, text: str) -> None:
    """Sends a message by keyboard and waits until its reply has ended."""
    before = turns(page, "assistant").count()
    page.locator("#chat-text").fill(text)
    page.locator("#chat-text").press("Enter")
    expect(turns(page, "assistant")).to_have_count(before + 1)
    expect(page.locator("#chat-send")).to_be_enabled()


def sent(product: Product, page: Page) -> dict[str, Any]:
    """Returns the request of the last reply's job as the service has it."""
    address = turns(page, "assistant").last.locator("a.job").get_attribute("href") or ""
    found: dict[str, Any] = product.get(f"/api{address}")["request"]
    return found


@pytest.mark.parametrize("look", LOOKS)
def test_a_call_is_drawn_and_goes_on_with_its_result(
    opened: Callable[..., Page],
    product: Product,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    look: str,
) -> None:
    page = opened(**LOOKS[look])
    page.locator("#tools").fill(json.dumps(TOOLS))
    page.locator("#tool_choice").select_option("required")
    send(page, "Rain?")
    call = page.locator(".call")
    expect(call.locator("code.grow")).to_have_text("weather")
    arguments = json.loads(call.locator("pre").inner_text())
    jsonschema.validate(arguments, PARAMETERS)
    assert call.locator("pre").inner_text() == json.dumps(arguments, indent=2, ensure_ascii=False)
    screenshot(page, f"playground-call-{look}", full_page=look != "light")
    assert axe(page) == []
    page.locator("#tool_choice").select_option("none")
    result = page.locator(".results textarea")
    result.fill('{"rain": false}')
    result.press("Control+Enter")
    expect(page.locator("#chat-text")).to_be_focused()
    expect(turns(page, "assistant")).to_have_count(2)
    expect(page.locator("#chat-send")).to_be_enabled()
    expect(turns(page, "tool")).to_contain_text('{"rain": false}')
    expect(page.locator(".results")).to_have_count(0)
    request = sent(product, page)
    assert read(request).tools == read(request | {"tools": TOOLS}).tools
    assert request["tool_choice"] == "none"
    question, called, given = request["messages"]
    assert question == {"role": "user", "content": "Rain?"}
    (made,) = called["tool_calls"]
    assert made["function"]["name"] == "weather"
    assert json.loads(made["function"]["arguments"]) == arguments
    assert given == {
        "role": "tool",
        "tool_call_id": made["id"],
        "name": "weather",
        "content": '{"rain": false}',
    }
    screenshot(page, f"playground-result-{look}", full_page=look != "light")
    assert axe(page) == []
    assert fits(page)


def test_calls_and_results_are_kept_edited_exported_and_copied(
    opened: Callable[..., Page], product: Product
) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#tools").fill(json.dumps(TOOLS))
    page.locator("#tool_choice").select_option("function:weather")
    send(page, "Rain?")
    assert sent(product, page)["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    page.reload()
    expect(page.locator("#tool_choice")).to_have_value("function:weather")
    expect(page.locator(".call")).to_have_count(1)
    page.locator("#tool_choice").select_option("none")
    page.locator(".results textarea").fill("dry")
    page.get_by_role("button", name="Send the results").press("Enter")
    expect(turns(page, "assistant")).to_have_count(2)
    expect(page.locator("#chat-send")).to_be_enabled()
    turns(page, "tool").get_by_role("button", name="Edit").press("Enter")
    expect(page.locator(".results textarea")).to_be_focused()
    page.locator(".results textarea").fill("wet")
    page.locator(".results textarea").press("Control+Enter")
    expect(turns(page, "tool")).to_contain_text("2 of 2")
    expect(page.locator("#chat-send")).to_be_enabled()
    expected = sent(product, page)
    assert [message["role"] for message in expected["messages"]] == ["user", "assistant", "tool"]
    assert expected["messages"][-1]["content"] == "wet"
    with page.expect_download() as download:
        page.locator("#chat-json").press("Enter")
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert exported["messages"][:3] == expected["messages"]
    assert exported["tools"] == TOOLS
    page.locator("#chat-curl").press("Enter")
    expect(page.locator("#toasts .notice")).to_have_count(1)
    command = page.evaluate("navigator.clipboard.readText()")
    body = re.search(r"-d '(.*)'$", command, re.DOTALL)
    assert body
    assert read(json.loads(body[1])) == read(expected | {"metadata": {}})


def test_json_by_a_schema_and_without_thinking(opened: Callable[..., Page], product: Product) -> None:
    page = opened()
    page.locator("#response_format").select_option("json_schema")
    page.locator("#schema").fill(json.dumps(SCHEMA))
    page.locator("#enable_thinking").select_option("false")
    send(page, "Rain?")
    jsonschema.validate(json.loads(turns(page, "assistant").locator(".words").inner_text()), SCHEMA)
    request = sent(product, page)
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA
    assert request["chat_template_kwargs"] == {"enable_thinking": False}


def test_json_is_checked_while_one_types(
    opened: Callable[..., Page], axe: Callable[[Page], list[str]], screenshot: Callable[..., None]
) -> None:
    page = opened()
    page.locator("#tools").fill('[{"type": "function",\n"function" {}}]')
    expect(page.locator("#tools-problem")).to_have_text("This is not JSON: see line 2, column 12.")
    expect(page.locator("#tools")).to_have_attribute("aria-invalid", "true")
    page.locator("#tools").fill('[{"name": "weather"}]')
    expect(page.locator("#tools-problem")).to_have_text(
        'Tool 1 has another form than {"type": "function", "function": {"name": …}}.'
    )
    page.locator("#response_format").select_option("json_schema")
    page.locator("#schema").fill("[]")
    expect(page.locator("#schema-problem")).to_have_text("A JSON schema is an object.")
    assert axe(page) == []
    screenshot(page, "playground-json-problem", full_page=True)
    page.locator("#chat-text").fill("Rain?")
    page.locator("#chat-text").press("Enter")
    expect(page.locator("#schema")).to_be_focused()
    expect(page.locator("#chat-text")).to_have_value("Rain?")
    expect(page.locator(".turn")).to_have_count(0)
    page.locator("#response_format").select_option("")
    page.locator("#tools").fill("")
    expect(page.locator("#tools-problem")).to_be_empty()
    expect(page.locator("#tools")).to_have_attribute("aria-invalid", "false")
    page.locator("#tools-example").press("Enter")
    expect(page.locator("#tool_choice option")).to_have_text(
        ["the model decides", "no call", "a call of any tool", "a call of weather"]
    )


def test_a_model_without_a_form_for_tools_says_what_was_left_out(
    opened: Callable[..., Page],
) -> None:
    page = opened()
    page.locator("#template").select_option("alpaca")
    page.locator("#max_new_tokens").fill("5")
    page.locator("#tools").fill(json.dumps(TOOLS))
    send(page, "Rain?")
    expect(turns(page, "assistant").locator(".notice")).to_have_text(
        "Left out, because this model does not take it: tools"
    )
