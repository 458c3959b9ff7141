"""The report's page in a real browser: offline, without JavaScript, at two widths, on paper, and under axe.

`make browser-setup` installs what these tests need; without it, or without Chromium, they are skipped.
"""

import copy
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_sample import audit, facts, sample_report

from dp.report import MethodResult, build_report
from dp.report_html import render_html

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: make browser-setup")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: make browser-setup")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; Debian, Ubuntu: apt install chromium"),
]
WIDTHS = {"desk": (1280, 900), "phone": (360, 740)}
SHOTS = os.environ.get("REPORT_SHOTS")  # a folder to look at


def failed_audit() -> dict[str, Any]:
    broken = copy.deepcopy(audit())
    broken["passed"] = broken["checks"][0]["passed"] = False
    broken["checks"][0]["measure"]["value"] = "6.71"
    return broken


def reports() -> dict[str, dict[str, Any]]:
    bare = facts(utility=(), audit=None, governance={}, evaluation_people="no-evaluation", statements=(), rounds=())
    bad = facts(
        audit=failed_audit(),
        statements=facts().statements[:2],
        utility=[MethodResult("federated-dp", ((30, 5, 5), (4, 25, 1), (3, 3, 24)), 20)],
        evaluation_people="inside-the-unit",
    )
    return {"whole": sample_report(), "bare": build_report(bare, prv=False), "bad": build_report(bad, prv=False)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    paths = {}
    for name, report in reports().items():
        paths[name] = folder / f"{name}.html"
        paths[name].write_text(render_html(report), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Inside a container as root there is no user namespace for Chromium's own sandbox; the file is ours.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.mark.parametrize("width", list(WIDTHS))
@pytest.mark.parametrize("name", ["whole", "bare", "bad"])
def test_the_page_stands_alone(browser: Any, pages: dict[str, Path], name: str, width: str) -> None:
    size = {"width": WIDTHS[width][0], "height": WIDTHS[width][1]}
    context = browser.new_context(offline=True, java_script_enabled=False, viewport=size)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    assert said == [] and asked == [pages[name].as_uri()]
    assert pages[name].stat().st_size <= 200 * 1024
    assert page.get_by_role("heading", level=1).is_visible()
    assert page.get_by_role("heading", level=2).count() == 18  # three on page 1 and contents, fifteen groups
    for image in page.get_by_role("img").all():
        assert image.bounding_box()["width"] > 250
    body = page.locator("body").bounding_box()
    assert body["width"] <= size["width"]
    for table in page.locator("h1, h2, h3, p, svg, .scroll, .claim").all():
        box = table.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"] + 0.5, table.inner_text()[:60]
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}-{width}.png"), full_page=True)
    context.close()


@pytest.mark.parametrize("width", list(WIDTHS))
@pytest.mark.parametrize("name", ["whole", "bare", "bad"])
def test_axe_finds_nothing(browser: Any, pages: dict[str, Path], name: str, width: str) -> None:
    size = {"width": WIDTHS[width][0], "height": WIDTHS[width][1]}
    context = browser.new_context(offline=True, bypass_csp=True, viewport=size)  # axe is a script
    page = context.new_page()
    page.goto(pages[name].as_uri())
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert len(results.response["passes"]) > 20  # it did look
    context.close()


def test_axe_would_find_something(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    broken = (
        pages["whole"]
        .read_text(encoding="utf-8")
        .replace('<html lang="en">', "<html>")
        .replace("--soft: #4d5965", "--soft: #ccc")
    )
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    context = browser.new_context(offline=True, bypass_csp=True)
    page = context.new_page()
    page.goto((tmp_path / "broken.html").as_uri())
    found = {violation["id"] for violation in axe.Axe().run(page).response["violations"]}
    assert {"html-has-lang", "color-contrast"} <= found
    context.close()


def test_the_page_prints(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["whole"].as_uri())
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    target = Path(SHOTS) / "whole.pdf" if SHOTS else tmp_path / "whole.pdf"
    page.pdf(path=str(target), prefer_css_page_size=True, print_background=True)
    body = target.read_bytes()
    assert body.startswith(b"%PDF-") and 5 <= len(re.findall(rb"/Type\s*/Page\b", body)) <= 40
    context.close()
