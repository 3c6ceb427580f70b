"""The page in a browser: nothing fetched, nothing complained of, everything seen and reached by keyboard."""

import shutil

import pages
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(pages.page(), encoding="utf-8")
    return path


@pytest.fixture
def visit(browser, file):
    """Open the page on a screen of some width; what it asks of the network or complains of fails the test."""
    contexts, trouble, asked = [], [], []

    def visit(width=1280, scheme="light", **options):
        screen = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        contexts.append(browser.new_context(**screen, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(f"a name was run: {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert trouble == []
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}


def column(page, place):
    return page.locator(f"#scores tbody tr td:nth-child({place})").all_inner_texts()


@pytest.mark.parametrize("width", [375, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_seen_and_the_page_never_scrolls_sideways(visit, width, scheme):
    page = visit(width, scheme)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    shown = page.locator("figure .chart, figure .picture")
    assert shown.count() == 3
    for box in (figure.bounding_box() for figure in shown.all()):
        assert min(box["width"] / 200, box["height"] / 50) > 1
    picture = page.locator("img")
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 1600
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_tables_are_sorted_by_click_and_by_keyboard(visit):
    page = visit()
    head = page.locator("#scores th").nth(2)
    for order, names in (("ascending", "floor conv mlp cnn"), ("descending", "cnn mlp conv floor")):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        assert column(page, 1) == names.split()
    page.keyboard.press("Tab")
    for key, seconds in (("Enter", ["25", "275", "1,640"]), ("Space", ["1,640", "275", "25"])):
        page.keyboard.press(key)
        assert page.locator("#scores [aria-sort]").all_inner_texts() == ["seconds"]
        assert column(page, 4) == [*seconds, ""]
    page.locator("#scores th button").first.click()
    assert column(page, 1) == ["cnn", "conv", "floor", "mlp"]
    assert page.locator("#other [aria-sort]").count() == 0


def test_a_figure_opens_large_and_gives_the_focus_back(visit):
    page = visit()
    small = page.locator("#curves .chart").bounding_box()
    button = page.locator("#curves .open")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert "Loss by epoch" in page.locator("#large-title").inner_text()
    large = dialog.locator(".chart")
    width = large.bounding_box()["width"]
    assert width > 1.3 * small["width"]
    assert page.evaluate("document.activeElement.textContent") == "Close"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    for key, times in (("+", 1.4), ("0", 1)):
        page.keyboard.press(key)
        assert large.bounding_box()["width"] == pytest.approx(times * width, rel=0.01)
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("button => button === document.activeElement")
    assert dialog.locator(".chart").count() == 0


def test_a_figure_opens_by_touch_and_closes_by_its_button(visit):
    page = visit(375, has_touch=True, is_mobile=True)
    page.locator("#samples .frame").tap()
    picture = page.locator("dialog .picture")
    assert picture.bounding_box()["width"] > 375
    assert page.locator("dialog .stage").evaluate("stage => stage.scrollWidth > stage.clientWidth")
    page.get_by_role("button", name="Close").tap()
    assert not page.locator("dialog").is_visible()


def colours(page):
    ground, text = (
        "getComputedStyle(document.body)",
        "getComputedStyle(document.querySelector('text'))",
    )
    return page.evaluate(f"[{ground}.backgroundColor, {text}.fill]")


def test_light_and_dark_follow_the_system_and_then_the_reader(visit):
    light, dark = colours(visit(scheme="light")), colours(visit(scheme="dark"))
    assert light == ["rgb(255, 255, 255)", "rgb(31, 36, 40)"]
    assert dark == ["rgb(21, 24, 28)", "rgb(228, 231, 234)"]
    page = visit(scheme="light")
    toggle = page.get_by_role("button", name="Dark")
    assert toggle.get_attribute("aria-pressed") == "false"
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "true"
    assert colours(page) == dark
    page.reload()
    assert colours(page) == dark
    toggle.click()
    assert colours(page) == light


def test_the_keyboard_reaches_what_scrolls_and_the_focus_is_seen(visit):
    page = visit(375)
    page.keyboard.press("Tab")
    skip = page.locator("a.skip")
    assert skip.evaluate("link => link === document.activeElement")
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"
    box = page.locator("#wide .scroll")
    assert box.get_attribute("tabindex") == "0"
    assert box.evaluate("box => box.scrollWidth > 2 * box.clientWidth")
    assert visit(1280).locator("#scores .scroll").get_attribute("tabindex") == "-1"


def test_without_its_script_and_on_paper_the_page_is_whole_and_has_no_buttons(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("figure .chart").count() == 2
    assert page.locator("#theme, .open").filter(visible=True).count() == 0
    page = visit(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert colours(page)[1] == "rgb(31, 36, 40)"  # as in light
    assert not page.locator("nav, #theme").filter(visible=True).count()
    assert page.locator("#scores th").first.inner_text() == "model"


def test_tables_are_whole_on_paper(browser, tmp_path):
    digests = {f"digest {i}": f"{i}" * 64 for i in range(4)}
    rows = [{"model": "floor", "split": "grouped"} | digests] * 200
    part = pages.Part("sources", "Sources", "Of two.", rows)
    path = tmp_path / "index.html"
    path.write_text(pages.render("T", "", [pages.Section("All", [part])], {}, ""), encoding="utf-8")
    page = browser.new_page(viewport={"width": 680, "height": 900})
    page.goto(path.as_uri())
    page.emulate_media(media="print")
    box, table, text = (
        page.locator(what).bounding_box() for what in (".scroll", "table", ".caption")
    )
    lines = page.locator("tbody tr:first-child td:nth-child(2)").evaluate(
        "cell => { const range = document.createRange(); range.selectNodeContents(cell); "
        "return range.getClientRects().length }"
    )
    page.close()
    assert table["x"] + table["width"] <= 680
    assert table["y"] + table["height"] <= box["y"] + box["height"] + 1 <= text["y"] + 1
    assert lines == 1  # a short word is not broken
