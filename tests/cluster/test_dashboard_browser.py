"""The live page in a browser, over a real cluster of simulated engines behind a real gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from policies.request import RequestClass
from tests.cluster.endpoint import Endpoint, endpoint, keys_file

CHROMIUM = "/usr/bin/chromium"

pytestmark = pytest.mark.skipif(
    not os.path.exists(CHROMIUM), reason=f"needs a browser: {CHROMIUM} (Debian's chromium)"
)

KEY = "alice-key-0123456789"

# Memory for a handful of requests, so that there is a bottleneck and a queue.
SCARCE = {
    "count": 2,
    "max_num_seqs": 8,
    "max_model_len": 1024,
    "block_size": 16,
    "engine_args": {"kv_blocks": 96, "output_median_tokens": 120.0},
}
POWER = {"idle_w": 50.0, "max_w": 300.0, "peak_flops_per_s": 1e14, "flops_per_token": 1e10}

PATIENCE_MS = 60_000
"""How long anything on the page may take: browser, cluster and gateway share a few slow cores."""

DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@contextlib.contextmanager
def load(controller: Any) -> Iterator[None]:
    """Online and offline requests, always more than run."""
    stop = threading.Event()

    async def keep_busy() -> None:
        async with ClusterClient(controller) as client:
            number = 0
            running: set[asyncio.Task[Any]] = set()
            while not stop.is_set():
                while len(running) < 48:
                    number += 1
                    request = GenerationRequest(
                        request_id=f"load-{number}",
                        prompt_token_ids=list(range(40)),
                        max_tokens=600,
                        request_class=RequestClass(number % 3 == 0),
                        tenant="alice" if number % 2 else "bob",
                    )
                    running.add(asyncio.create_task(client.complete(request)))
                _, running = await asyncio.wait(running, timeout=0.1, return_when="FIRST_COMPLETED")
            for task in running:
                task.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(keep_busy()))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    keys = keys_file(tmp_path_factory.mktemp("keys"), alice=KEY)
    with (
        endpoint(
            SCARCE,
            {"api_keys": keys, "operators": ["alice"]},
            energy={"meter": "model", "power_model": POWER},
        ) as running,
        load(running.controller),
    ):
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu"],
            timeout=PATIENCE_MS,
        )
        yield launched
        launched.close()


class Watched:
    """A page whose complaints and requests are kept."""

    def __init__(self, browser: Browser, served: Endpoint, viewport: Any, **options: Any) -> None:
        self.context = browser.new_context(viewport=viewport, **options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[Request] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("request", lambda request: self.requests.append(request))
        self.url = served.url

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "401" not in text:  # before there is a key
            self.complaints.append(text)

    def open(self, fragment: str = "", key: str = KEY) -> Page:
        """The page once it shows a snapshot."""
        self.page.goto(f"{self.url}/dashboard{fragment}")
        self.page.locator("#key-value").fill(key)
        self.page.locator("#key-form button").click()
        expect(self.page.locator("#main")).to_be_visible()
        return self.page


@contextlib.contextmanager
def watched(browser: Browser, served: Endpoint, viewport: Any, **options: Any) -> Iterator[Watched]:
    """A page that must not have complained or asked anybody else."""
    page = Watched(browser, served, viewport, **options)
    try:
        yield page
        assert page.complaints == []
        assert {
            request.url for request in page.requests if not request.url.startswith(served.url)
        } == set()
    finally:
        page.context.close()


def last_shown(page: Page) -> Any:
    """The snapshot that the page shows now, as it got it."""
    return page.evaluate("() => JSON.parse(JSON.stringify(window.tiebreak))")


def test_the_page_says_what_the_snapshot_says(
    served: Endpoint, browser: Browser, tmp_path: Path
) -> None:
    with watched(browser, served, DESK) as window:
        page = window.open()
        expect(page.locator("#queue-rows tr").first).to_be_visible()
        expect(page.locator("#forecast-facts")).to_contain_text("Kendall")
        expect(page.locator("#energy-facts")).to_contain_text("W")
        page.locator("#pause").click()
        expect(page.locator("#live")).to_have_text("paused")
        told = last_shown(page)
        for name in ("bottleneck", "queue", "forecasts"):
            card = page.locator(f"#verdict-{name}")
            expect(card.locator(".short")).to_have_text(told["summary"][name]["short"])
            expect(card.locator(".text")).to_have_text(told["summary"][name]["text"])
        rows = page.locator("#replica-rows tr")
        expect(rows).to_have_count(2)
        for number, view in enumerate(told["replicas"]):
            status = view["status"]
            row = rows.nth(number)
            expect(row.locator(".name")).to_have_text(status["replica_id"])
            expect(row.locator(".figures")).to_contain_text(
                f"{status['used_blocks']:,} of {status['kv_blocks']:,}"
            )
            expect(row).to_contain_text(f"{status['running']:,} of {status['slots']:,}")
            width = row.locator(".used").evaluate("bar => bar.style.width")
            # Requests that were evicted there need their memory, too: it may be more than there is.
            share = min(100, 100 * status["used_blocks"] / status["kv_blocks"])
            assert float(width.rstrip("%")) == pytest.approx(share, abs=0.01)
        for number, item in enumerate(told["head"][:5]):
            row = page.locator("#queue-rows tr").nth(number)
            expect(row).to_contain_text(item["request_id"])
            expect(row.locator(".why")).to_have_text(item["reason"])
        online = next(q for q in told["queues"] if q["request_class"] == "online")
        expect(page.locator("#tiles")).to_contain_text(f"online waiting{online['requests']:,}")
        expect(page.locator("#energy-source")).to_contain_text("modelled, not measured")
        expect(page.locator("#tiles")).to_contain_text("W modelled")
        # Two counts of one memory: whose each figure is stands beside it.
        expect(page.locator("#tiles")).to_contain_text("by the engines")
        expect(page.locator(".replicas thead")).to_contain_text("by the ledger")
        expect(page.locator("#kv-note")).to_be_visible()
        curve = page.locator("#curves path.curve").first
        assert "M" in (curve.get_attribute("d") or "")
        assert told["coverage"] is not None
        expect(page.locator("#forecast-facts")).to_contain_text(
            f"tau {told['rank_correlation']:.2f}"
        )
        page.screenshot(path=tmp_path / "desk.png", full_page=True)


def test_why_a_request_waits_is_found_by_its_id(
    served: Endpoint, browser: Browser, tmp_path: Path
) -> None:
    with watched(browser, served, DESK) as window:
        page = window.open()
        link = page.locator("#queue-rows button.link").last
        expect(link).to_be_visible()
        asked = link.text_content()
        page.locator("#find-id").fill(str(asked))
        page.keyboard.press("Enter")
        expect(page.locator("#why-title")).to_have_text(str(asked))
        expect(page.locator("#why-body .timeline")).to_contain_text("arrived")
        expect(page.locator("#why-body .waited")).to_contain_text(
            re.compile("waited .* in the queue")
        )
        expect(page.locator("#why-body .asof")).to_contain_text("As of ")
        assert page.url.endswith(f"#request={asked}")
        page.screenshot(path=tmp_path / "why.png")
        page.keyboard.press("Escape")
        expect(page.locator("#why")).to_be_hidden()
        page.locator("#find-id").fill("no-such")
        page.locator("#find button").click()
        expect(page.locator("#why-body")).to_contain_text("nothing is known of request 'no-such'")
        window.complaints = [said for said in window.complaints if "404" not in said]


def test_the_box_of_a_request_is_paused_with_the_page(served: Endpoint, browser: Browser) -> None:
    with watched(browser, served, DESK) as window:
        page = window.open()
        link = page.locator("#queue-rows button.link").last
        expect(link).to_be_visible()
        page.locator("#pause").click()
        link.click()
        note = page.locator("#why-body .asof")
        expect(note).to_contain_text("paused")
        before = note.text_content()
        page.wait_for_timeout(2500)
        assert note.text_content() == before
        page.keyboard.press("Escape")
        page.locator("#pause").click()
        link.click()
        expect(note).not_to_contain_text("paused")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(
    served: Endpoint, browser: Browser, tmp_path: Path, scheme: Any
) -> None:
    with watched(browser, served, PHONE, color_scheme=scheme) as window:
        page = window.open()
        expect(page.locator("#queue-rows tr").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        page.locator("#theme").click()
        assert page.evaluate("document.documentElement.dataset.theme") != scheme
        page.screenshot(path=tmp_path / f"phone-{scheme}.png", full_page=True)


def test_old_figures_are_not_taken_for_new_ones(served: Endpoint, browser: Browser) -> None:
    with watched(browser, served, DESK) as window:
        page = window.open()
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("#banner")).to_be_hidden()
        window.context.set_offline(True)
        page.evaluate("window.dispatchEvent(new Event('offline'))")
        page.route("**/tiebreak/**", lambda route: route.abort())
        page.locator("#pause").click()
        page.locator("#pause").click()
        expect(page.locator("#banner")).to_contain_text("the endpoint cannot be reached")
        expect(page.locator("#live")).to_have_text("stale")
        page.unroute("**/tiebreak/**")
        window.context.set_offline(False)
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("#banner")).to_be_hidden()
        window.complaints = [said for said in window.complaints if "ERR_" not in said]


def test_a_wrong_key_is_asked_for_again(served: Endpoint, browser: Browser) -> None:
    with watched(browser, served, DESK) as window:
        page = window.page
        page.goto(f"{served.url}/dashboard")
        page.locator("#key-value").fill("wrong-key-0123456789")
        page.keyboard.press("Enter")
        expect(page.locator("#key-wrong")).to_be_visible()
        expect(page.locator("#main")).to_be_hidden()
        page.locator("#key-value").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_visible()
        assert page.evaluate("Object.keys(localStorage).length") == 0


def test_everything_can_be_reached_by_keyboard(served: Endpoint, browser: Browser) -> None:
    with watched(browser, served, DESK) as window:
        page = window.open()
        page.locator("#pause").click()
        second = page.locator("#replica-rows .name").nth(1)
        second.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#detail-name")).to_have_text(str(second.text_content()))
        unnamed = page.evaluate(
            "() => [...document.querySelectorAll('button, input, select, [role=img]')]"
            ".filter(e => !e.textContent.trim() && !e.getAttribute('aria-label'))"
            ".filter(e => !e.labels?.length)"
            ".map(e => e.outerHTML)"
        )
        assert unnamed == []


def test_the_documented_events_reach_a_plain_client(served: Endpoint) -> None:
    with (
        served.client(headers={"authorization": f"Bearer {KEY}"}) as http,
        http.stream("GET", "/tiebreak/events") as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == "event: snapshot"
        first = json.loads(next(lines).removeprefix("data: "))
        assert next(lines) == ""
        assert next(lines) == "event: snapshot"
        second = json.loads(next(lines).removeprefix("data: "))
    assert second["unix_s"] > first["unix_s"]
    assert [r["status"]["state"] for r in first["replicas"]] == ["ready", "ready"]
