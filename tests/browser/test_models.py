"""The page Models as people use it: bringing models in every way, and the page of each model."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.dropping import drop
from tests.browser.looks import LOOKS, fits
from tests.e2e.conftest import Line
from tests.e2e.product import Product
from tests.hub_server import HubServer, Repo
from tests.miniature import ADAPTERS, MINIATURE

# ---- list ---------------------------------------------------------------------------------------------


def test_the_list_is_searched_while_typing_and_filtered_by_kind(open_page: OpenPage, line: Line) -> None:
    page = open_page("/")
    search = page.get_by_role("searchbox", name="Search by name").first
    search.focus()
    page.keyboard.type("llama")
    expect(page.locator(".model[data-name=llama-hf]")).to_be_visible()
    expect(page.locator(".model[data-name=merged]")).to_have_count(0)
    expect(search).to_be_focused()
    page.get_by_role("link", name=re.compile("^Original checkpoint")).click()
    expect(page.locator(".model[data-name=llama]")).to_be_visible()
    expect(page.locator(".model[data-name=llama-hf]")).to_have_count(0)
    assert "search=llama&kind=original" in page.url
    page.reload()
    expect(page.locator(".model[data-name=llama-hf]")).to_have_count(0)
    expect(page.locator(".model[data-name=llama]")).to_be_visible()


def test_a_model_that_another_client_makes_appears_by_itself(
    open_page: OpenPage, product: Product, line: Line
) -> None:
    page = open_page("/")
    expect(page.locator(".model[data-name=llama]")).to_be_visible()
    product.run(kind="convert", source="llama-hf", target="made-elsewhere", dtype="float32")
    expect(page.locator(".model[data-name=made-elsewhere][data-new]")).to_be_visible()


# ---- uploads ------------------------------------------------------------------------------------------


def test_two_dropped_archives_become_two_models_with_chosen_names(
    open_page: OpenPage, product: Product, screenshot: Callable[..., None]
) -> None:
    page = open_page("/")
    drop(page, {f"{name}.zip": MINIATURE / f"{name}.zip" for name in ADAPTERS})
    names = page.get_by_role("textbox", name="Name of the model")
    expect(names).to_have_count(2)
    assert [names.nth(n).input_value() for n in range(2)] == ["chinese-llama-lora", "chinese-alpaca-lora"]
    names.nth(0).fill("first-adapter")
    screenshot(page, "models-upload")
    page.get_by_role("button", name="Upload and import").click()
    for name in ("first-adapter", "chinese-alpaca-lora"):
        expect(page.get_by_role("link", name=f"Open {name}")).to_be_visible()
        expect(page.locator(f".model[data-name={name}]")).to_be_visible()
        assert product.get(f"/api/models/{name}")["kind"] == "adapter"


def test_a_folder_becomes_a_model_with_its_paths(open_page: OpenPage, product: Product) -> None:
    page = open_page("/")
    page.locator("#folder").set_input_files(MINIATURE / "llama" / "7B")
    page.get_by_role("button", name="Upload and import").click()
    page.get_by_role("link", name="Open 7B").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("7B")
    files = {file["path"] for file in product.get("/api/models/7B")["files"]}
    assert {"consolidated.00.pth", "params.json"} <= files


def test_a_name_that_is_taken_gets_a_number(open_page: OpenPage, line: Line) -> None:
    page = open_page("/")
    drop(page, {"zh.zip": MINIATURE / f"{ADAPTERS[0]}.zip"})
    expect(page.get_by_role("textbox", name="Name of the model")).to_have_value("zh-2")


def test_a_refused_import_keeps_the_upload_for_another_name(open_page: OpenPage, line: Line) -> None:
    page = open_page("/")
    drop(page, {"new.zip": MINIATURE / f"{ADAPTERS[0]}.zip"})
    name = page.get_by_role("textbox", name="Name of the model")
    name.fill("zh")
    page.get_by_role("button", name="Upload and import").click()
    expect(page.get_by_role("alert")).to_contain_text("A model named 'zh' exists already")
    name.fill("zh-renamed")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("link", name="Open zh-renamed")).to_be_visible()


def test_an_upload_continues_after_a_broken_connection(open_page: OpenPage) -> None:
    # a page whose failed requests are part of the test
    page = open_page("/").context.new_page()
    page.goto("/")
    failed: list[str] = []

    def fail_once(route: Route) -> None:
        if route.request.method == "PATCH" and not failed:
            failed.append(route.request.url)
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/api/uploads/*", fail_once)
    drop(page, {"broken.zip": MINIATURE / f"{ADAPTERS[0]}.zip"})
    page.get_by_role("button", name="Upload and import").click()
    expect(page.get_by_text("The connection broke. It continues in 1 s.")).to_be_visible()
    expect(page.get_by_role("link", name="Open broken")).to_be_visible()


def test_an_upload_continues_after_the_page_was_closed(open_page: OpenPage) -> None:
    page = open_page("/").context.new_page()
    page.goto("/")
    page.route(
        "**/api/uploads/*",
        lambda route: route.abort() if route.request.method == "PATCH" else route.continue_(),
    )
    drop(page, {"later.zip": MINIATURE / f"{ADAPTERS[0]}.zip"})
    page.get_by_role("button", name="Upload and import").click()
    expect(page.get_by_text("The connection broke.")).to_be_visible()
    page.close(run_before_unload=False)

    page = page.context.new_page()
    created: list[str] = []
    page.on(
        "request",
        lambda request: (
            created.append(request.url)
            if request.method == "POST" and request.url.endswith("/uploads")
            else None
        ),
    )
    page.goto("/")
    expect(page.get_by_text("An upload was interrupted: later.zip, 0 B of")).to_be_visible()
    drop(page, {"later.zip": MINIATURE / f"{ADAPTERS[0]}.zip"})
    page.get_by_role("button", name="Upload and import").click()
    expect(page.get_by_role("link", name="Open later")).to_be_visible()
    assert created == []
    page.reload()
    expect(page.locator(".model[data-name=later]")).to_be_visible()
    expect(page.get_by_text("An upload was interrupted")).to_have_count(0)


def test_a_removed_upload_is_removed_from_the_service(open_page: OpenPage, product: Product) -> None:
    page = open_page("/")
    page.route(
        "**/api/uploads/*",
        lambda route: (
            route.fulfill(status=423, body="{}") if route.request.method == "PATCH" else route.continue_()
        ),
    )
    drop(page, {"unwanted.zip": MINIATURE / f"{ADAPTERS[0]}.zip"})
    with page.expect_response(lambda response: response.status == 201) as creation:
        page.get_by_role("button", name="Upload and import").click()
    address = creation.value.headers["location"]
    expect(page.get_by_text("The connection broke.")).to_be_visible()
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.get_by_role("button", name="Remove unwanted").click()
    assert product.http.get(address).status_code == 404
    expect(page.locator(".upload")).to_have_count(0)


# ---- volume and Hub -----------------------------------------------------------------------------------


def test_an_archive_of_the_volume_is_chosen_and_imported(
    open_page: OpenPage, product: Product, screenshot: Callable[..., None]
) -> None:
    path = product.volume.put_incoming(MINIATURE / f"{ADAPTERS[0]}.zip", "by-path.zip")
    page = open_page("/")
    page.get_by_role("tab", name="Upload").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name=re.compile("^by-path.zip .*Zip archive Adapter")).press("Enter")
    expect(page.get_by_label("Path on the volume")).to_have_value(path)
    expect(page.locator("#volume-target")).to_have_value("by-path")
    expect(page.locator("#volume-target")).to_be_focused()
    expect(page.locator("#volume-plan")).to_contain_text(re.compile(r"Output .* kB, memory .* disk .* free"))
    screenshot(page, "models-volume")
    page.locator("#volume-target").press("Enter")
    expect(page.get_by_role("link", name="Open by-path")).to_be_visible()


def test_a_model_of_the_hub_is_found_looked_at_and_imported(
    open_page: OpenPage, product: Product, hub: HubServer, screenshot: Callable[..., None]
) -> None:
    files = {
        path.name: path.read_bytes()
        for path in (*(MINIATURE / "llama" / "7B").iterdir(), MINIATURE / "llama" / "tokenizer.model")
    }
    hub.repos["pages/tiny-llama"] = Repo()
    hub.repos["pages/tiny-llama"].commit(files | {"README.md": b"# Tiny", "notes.pdf": bytes(5000)})
    page = open_page("/")
    page.get_by_role("tab", name="Hub").click()
    page.get_by_role("searchbox", name="Search the Hub").fill("tiny-ll")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_role("button", name="pages/tiny-llama").click()
    expect(page.get_by_role("radio", name="What the model needs")).to_be_checked()
    expect(page.locator("#hub-repository [role=status]")).to_contain_text("1.16 MB in 4 files")
    page.get_by_role("radio", name="Choose files").check()
    page.get_by_role("checkbox", name="notes.pdf").check()
    expect(page.get_by_role("checkbox", name="consolidated.00.pth")).to_be_checked()
    screenshot(page, "models-hub")
    page.get_by_role("radio", name="What the model needs").check()
    page.get_by_role("button", name="Check first").click()
    expect(page.locator("#hub-repository")).to_contain_text(
        re.compile(r"Output 1\.16 MB, memory .* disk .* free")
    )
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("link", name="Open tiny-llama")).to_be_visible()
    assert "notes.pdf" not in {file["path"] for file in product.get("/api/models/tiny-llama")["files"]}


def test_a_repository_that_does_not_exist_is_said_in_words(open_page: OpenPage) -> None:
    page = open_page("/")
    page.get_by_role("tab", name="Hub").click()
    page.get_by_role("searchbox", name="Search the Hub").fill("pages/absent")
    page.keyboard.press("Enter")
    expect(page.locator("#hub-repository [role=alert]")).to_contain_text("pages/absent")


# ---- one model ----------------------------------------------------------------------------------------


def test_a_verification_shows_its_progress_and_its_outcome(open_page: OpenPage, line: Line) -> None:
    page = open_page("/models/merged")
    expect(page.get_by_label("Also compute it again from llama-hf + zh + alpaca")).to_be_checked()
    page.get_by_role("button", name="Verify").click()
    expect(page.locator("#verification")).to_contain_text("last verification")
    expect(page.locator("#verification .notice").first).to_have_attribute("data-kind", "ok")
    expect(page.locator("#verification")).to_contain_text("Same most likely token")


def test_a_conversion_is_planned_made_and_linked(open_page: OpenPage, product: Product, line: Line) -> None:
    page = open_page("/models/merged")
    page.get_by_label("Dtype").select_option("q8_0")
    expect(page.get_by_label("Name of the new model")).to_have_value("merged-gguf-q8_0")
    page.get_by_role("button", name="Check first").click()
    expect(page.locator("#convert-plan")).to_contain_text(re.compile(r"Output 1\.\d+ MB, memory .* free"))
    page.get_by_label("Task").select_option("convert")
    expect(page.locator("#snippet")).to_contain_text("convert")
    expect(page.locator("#snippet")).to_contain_text(
        "merged merged-gguf-q8_0 --output-format gguf --dtype q8_0"
    )
    page.get_by_role("button", name="Convert", exact=True).click()
    page.get_by_role("link", name="Open merged-gguf-q8_0").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("merged-gguf-q8_0")
    expect(page.locator("svg a[href='/models/merged']")).to_be_visible()


def test_a_model_is_published_to_the_hub(open_page: OpenPage, line: Line, hub: HubServer) -> None:
    page = open_page("/models/merged")
    page.get_by_label("Repository", exact=True).fill("pages/merged")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator("#publish-job")).to_contain_text("Succeeded")
    expect(page.locator("#publish-job a").last).to_have_attribute("href", re.compile("/pages/merged"))
    assert hub.repos["pages/merged"].private


def test_the_tensors_are_searched(open_page: OpenPage, line: Line) -> None:
    page = open_page("/models/merged")
    expect(page.locator("#tensors")).to_contain_text("30 tensors")
    page.locator("#tensor-search").fill("q_proj")
    expect(page.locator("#tensors")).to_contain_text("3 of 30 tensors")
    expect(page.locator("#tensors tbody tr")).to_have_count(3)


def test_a_deletion_names_what_was_made_of_the_model_and_is_confirmed(
    open_page: OpenPage, product: Product, line: Line
) -> None:
    product.run(kind="convert", source="llama", target="doomed")
    product.run(kind="convert", source="doomed", target="heir", dtype="float32")
    page = open_page("/models/doomed")
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("1 model was made of it")
    expect(dialog.get_by_role("listitem")).to_have_text("heir (convert)")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert product.get("/api/models/doomed")["name"] == "doomed"
    page.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Models")
    assert product.http.get("/api/models/doomed").status_code == 404
    page.goto("/models/heir")
    expect(page.locator("svg [data-model=gone]")).to_contain_text("doomed")
    product.http.delete("/api/models/heir")


def test_an_adapter_leads_to_its_merge(open_page: OpenPage, line: Line) -> None:
    page = open_page("/models/alpaca")
    link = page.get_by_role("link", name=re.compile("^Merge with"))
    expect(link).to_have_attribute("href", re.compile(r"/merge\?base=llama[\w-]*&adapters=zh%2Calpaca"))


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["merged", "alpaca"])
def test_the_page_of_a_model_is_accessible_and_fits(
    open_page: OpenPage,
    line: Line,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    look: str,
    name: str,
) -> None:
    page = open_page(f"/models/{name}", **LOOKS[look])
    expect(page.locator("#tensors table")).to_be_visible()
    screenshot(page, f"model-{name}-{look}", full_page=True)
    assert axe(page) == []
    assert fits(page)


@pytest.mark.parametrize("look", LOOKS)
def test_the_list_is_accessible_with_every_way_to_bring_a_model(
    open_page: OpenPage,
    line: Line,
    axe: Callable[[Page], list[str]],
    screenshot: Callable[..., None],
    look: str,
) -> None:
    page = open_page("/", **LOOKS[look])
    drop(page, {"some.zip": MINIATURE / f"{ADAPTERS[0]}.zip"})
    expect(page.locator(".upload")).to_be_visible()
    screenshot(page, f"models-{look}", full_page=True)
    for tab in page.get_by_role("tab").all():
        tab.click()
        assert axe(page) == []
    assert fits(page)
