"""Reports as Chromium shows them: no error, no request, at a desk, on a phone, in the dark and on paper."""

import re
import shutil

import pytest

from tests.reporting.pages import contents

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
NAMES = ("binary", "three_classes", "large", "hostile", "undefined")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        # Root, as in a container, may not use Chromium's sandbox; these pages are our own.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def show(browser, tmp_path):
    """show(name, viewport, scheme): the page, its faults (console, exceptions) and its requests."""
    contexts = []

    def opened(name, viewport=DESK, scheme="light"):
        file = tmp_path / f"{name}.html"
        file.write_text(contents(name)["report.html"], "utf-8")
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page, faults, requests = context.new_page(), [], []
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page, faults, requests

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", NAMES)
def test_no_fault_no_request_and_nothing_sticks_out(name, show):
    page, faults, requests = show(name, PHONE)
    title = page.title()
    widths = "[document.scrollingElement.scrollWidth, innerWidth]"
    for viewport in (PHONE, {"width": 700, "height": 800}, DESK):
        page.set_viewport_size(viewport)
        content, window = page.evaluate(widths)
        assert content <= window == viewport["width"]
    # Buttons on all sortable tables: the script ran to its end.
    assert page.locator("table.sortable").count() >= 5
    assert page.locator("table.sortable th[scope=col]:not(:has(button))").count() == 0
    page.locator("thead button").first.click()
    assert title != "taken"
    assert (page.title(), faults) == (title, [])
    assert len(requests) == 1, requests


def _column(page, table, column):
    return page.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.map(row => row.cells[{column}].dataset.value)"
    )


def test_a_click_sorts_a_table(show):
    page, faults, _ = show("binary")
    button = page.locator("#table-ladder thead button", has_text="AUC")
    heading = page.locator("#table-ladder thead th:has(button)", has_text="AUC")
    names, values = _column(page, "table-ladder", 0), [float(value) for value in _column(page, "table-ladder", 1)]
    assert values != sorted(values, reverse=True)
    button.click()
    assert [float(value) for value in _column(page, "table-ladder", 1)] == sorted(values, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    button.click()
    assert [float(value) for value in _column(page, "table-ladder", 1)] == sorted(values)
    assert heading.get_attribute("aria-sort") == "ascending"
    button.click()
    assert _column(page, "table-ladder", 0) == names
    assert heading.get_attribute("aria-sort") is None
    assert faults == []


def test_the_keyboard_sorts_a_table_by_name(show):
    page, *_ = show("binary")
    names = _column(page, "table-ladder", 0)
    page.locator("#table-ladder thead button").first.focus()
    page.keyboard.press("Enter")
    assert _column(page, "table-ladder", 0) == sorted(names, key=str.lower)
    # The same keys reach the next heading, and the table itself, which scrolls on a phone.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "AUC"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "scroll"


def test_undefined_values_come_last_in_both_orders(show):
    page, *_ = show("undefined")
    table = "table-calibration"
    page.evaluate(f"delete document.querySelector('#{table} tbody tr').cells[1].dataset.value")
    button = page.locator(f"#{table} thead button").nth(1)
    for _ in range(2):
        button.click()
        assert [value is None for value in _column(page, table, 1)][-1]
        assert sum(value is None for value in _column(page, table, 1)) == 1


COLOURS = """() => {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const names = ["--page", "--card", "--ink", "--muted", "--accent", "--good", "--bad", "--warning",
    "--series-0", "--series-1", "--series-2", "--series-3"];
  return Object.fromEntries(names.map((name) => [name, colour(name)]));
}"""


def _luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a, b):
    low, high = sorted(map(_luminance, (a, b)))
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark(show):
    """Text has WCAG 2's contrast of 4.5, curves that of 3, and plots follow the page."""
    backgrounds = {}
    for scheme in ("light", "dark"):
        page, *_ = show("binary", DESK, scheme)
        colours = page.evaluate(COLOURS)
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours.values()), colours
        backgrounds[scheme] = colours["--page"]
        for text in ("--ink", "--muted", "--accent", "--good", "--bad"):
            for ground in ("--page", "--card"):
                assert _contrast(colours[text], colours[ground]) >= 4.5, (scheme, text, ground)
        assert _contrast(colours["--ink"], colours["--warning"]) >= 4.5
        for number in range(4):
            assert _contrast(colours[f"--series-{number}"], colours["--page"]) >= 3
        red, green, blue = (int(colours["--ink"][at : at + 2], 16) for at in (1, 3, 5))
        label = page.locator("figure.wide svg text", has_text="minus").first
        assert label.evaluate("each => getComputedStyle(each).fill") == f"rgb({red}, {green}, {blue})"
    assert _luminance(backgrounds["light"]) > 0.9
    assert _luminance(backgrounds["dark"]) < 0.02


def test_on_paper(show):
    """Black on white, from a dark screen too; no contents, and no table wider than the sheet."""
    page, *_ = show("binary", {"width": 703, "height": 1000}, "dark")  # 186 mm, what A4 leaves between the margins
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("nav").is_hidden()
    assert page.evaluate(COLOURS)["--page"] == "#ffffff"
    right = "tables => Math.max(...tables.map((table) => table.getBoundingClientRect().right))"
    assert page.eval_on_selector_all("table", right) <= 703
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12


def test_plots_have_names_for_readers_who_do_not_see_them(show):
    page, *_ = show("binary")
    plots = page.locator("svg[role=img]:visible")
    names = plots.evaluate_all("plots => plots.map(plot => plot.getAttribute('aria-label'))")
    assert len(names) == 11
    assert all(len(name) > 20 for name in names)
    assert len(set(names)) == len(names)
    # Each has its size from the page, and is seen.
    for box in plots.evaluate_all("plots => plots.map(plot => [plot.clientWidth, plot.clientHeight])"):
        assert min(box) > 100
