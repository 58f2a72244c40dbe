"""Health, the OpenAPI document and its page."""

import re

from tests.e2e.product import Product


def test_the_service_is_alive_and_ready(product: Product) -> None:
    assert product.http.get("/healthz").status_code == 200
    assert product.http.get("/readyz").status_code == 200


def test_the_document_is_openapi_3_1_and_has_every_path(product: Product) -> None:
    document = product.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    for path in ("/api/jobs", "/api/jobs/{id}", "/api/jobs/{id}/events", "/api/models"):
        assert re.sub(r"\{\w+\}", "{id}", path) in {re.sub(r"\{\w+\}", "{id}", p) for p in document["paths"]}


def test_the_documentation_loads_nothing_from_other_hosts(product: Product) -> None:
    page = product.http.get("/docs", follow_redirects=True)
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    loaded = re.findall(r"""<(?:script|link|img)[^>]*?(?:src|href)=["']([^"']+)""", page.text)
    assert loaded
    for address in loaded:
        assert not re.match(r"(https?:)?//", address), address
        assert product.http.get(str(page.url.join(address))).status_code == 200
