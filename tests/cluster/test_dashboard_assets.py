"""The live page's files: what is served, and that nothing in them needs anything else."""

from __future__ import annotations

import re

import pytest

from cluster.endpoint.dashboard import GROUPS, MOST_VIEWERS, WINDOWS
from cluster.endpoint.dashboard_assets import FOLDER
from cluster.endpoint.dashboard_view import SHOWN_REPLICAS
from cluster.endpoint.routes import EVENTS, INSIGHTS, SNAPSHOT
from cluster.summary import ORDERS_SOMEWHAT, ORDERS_WELL
from tests.cluster.dashboards import get


async def test_every_file_of_the_page_is_served_and_nothing_else() -> None:
    page = await get("/dashboard")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in FOLDER.iterdir():
        told = await get(f"/dashboard/{path.name}")
        assert (told.status_code, told.content) == (200, path.read_bytes())
    for wrong in ("/dashboard/../../config.py", "/dashboard/%2e%2e/x", "/dashboard/none.js"):
        assert (await get(wrong)).status_code in (404, 418)


async def test_an_unchanged_file_is_not_sent_again() -> None:
    tag = (await get("/dashboard/app.js")).headers["etag"]
    again = await get("/dashboard/app.js", **{"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert (await get("/dashboard/base.css", **{"if-none-match": tag})).status_code == 200


def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline() -> None:
    """What the policy in its headers forbids would silently not work."""
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" + "://" not in text, path
        assert "https://" not in text, path
        assert "eval(" not in text, path
        assert "innerHTML" not in text, path
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert "style=" not in page
    assert " on" + "click" not in page
    assert page.count("<script") == page.count('<script type="module" src=') == 1


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'])
def test_texts_have_the_contrast_that_wcag_asks_for(theme: str) -> None:
    css = (FOLDER / "base.css").read_text(encoding="utf-8")
    block = css.split(theme, 1)[1].split("}", 1)[0]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    pairs = [(text, on) for text in ("ink", "soft") for on in ("page", "surface", "raised")]
    pairs += [(text, "surface") for text in ("accent", "used", "plot-2", "plot-3")]
    for level in ("good", "busy", "bad"):
        pairs += [(level, "surface"), (level, f"{level}-bg")]
    for text, on in pairs:
        lighter, darker = sorted((luminance(colours[text]), luminance(colours[on])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, on)


async def test_a_slash_too_many_and_other_methods() -> None:
    assert (await get("/dashboard/")).headers["location"] == "../dashboard"
    assert (await get("/dashboard", method="HEAD")).status_code == 200
    wrong = await get(SNAPSHOT, method="DELETE")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
    assert (await get(EVENTS, method="HEAD")).status_code == 405  # it would never end


async def test_all_other_paths_are_passed_on() -> None:
    for path in ("/v1/models", "/dashboards", "/tiebreak", "/"):
        assert (await get(path)).status_code == 418


def test_the_document_says_what_the_code_does() -> None:
    text = " ".join((FOLDER.parents[2] / "docs" / "dashboard.md").read_text("utf-8").split())
    assert f"the {SHOWN_REPLICAS} fullest replicas" in text
    assert f"at most {MOST_VIEWERS} such streams" in text
    assert f"good from tau {ORDERS_WELL} and poor below {ORDERS_SOMEWHAT}" in text
    for path in INSIGHTS:
        assert path in text
    assert all(window in text for window in WINDOWS)
    assert all(f"`{by}`" in text for by in GROUPS if by != "all")
