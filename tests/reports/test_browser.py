"""A report in a real browser: headless Chromium, if it is installed."""

import base64
import itertools
import json
import re
import shutil

import pytest

from cifar_flax.reports.page import report
from tests.reports.made import make_run, write_metrics

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

# Returns the boxes of all texts in each chart, in pixels.
BOXES = """
return [...document.querySelectorAll("figure svg:not(.key)")].map(svg =>
  [...svg.querySelectorAll("text")].map(text => {
    const box = text.getBoundingClientRect();
    return [text.textContent, box.left, box.top, box.right, box.bottom];
  }).filter(box => box[3] > box[1]));
"""

# Returns the texts that a picture cuts off, of all pictures of the document.
CUT = """
return [...document.querySelectorAll("svg:not(.key)")].flatMap(svg => {
  const whole = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < whole.left - 2 || box.right > whole.right + 2
      || box.top < whole.top - 2 || box.bottom > whole.bottom + 2;
  }).map(text => text.textContent);
});
"""

# Returns the names of the parts that must be scrolled sideways to be seen as a whole.
WIDER = """
return [...document.querySelectorAll(".scroll, pre, table, figure")]
  .filter(one => one.scrollWidth > one.clientWidth + 1)
  .map(one => one.ariaLabel ?? one.tagName);
"""

# Returns the smallest contrast between a text and the background of the page.
CONTRAST = """
const light = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(value => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = light(getComputedStyle(document.body).backgroundColor);
return Math.min(...[...document.querySelectorAll("p, td, th, li, a, text")].map(one => {
  const style = getComputedStyle(one), svg = one.tagName === "text";
  const ink = light(svg ? style.fill : style.color);
  return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
}));
"""


@pytest.fixture(scope="module")
def driver():
    """A headless browser that keeps a log of its console and of its requests."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "there is no chromium and chromedriver (apt install chromium-driver)"
        )
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not here")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--window-size=1200,900"):
        options.add_argument(word)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(DRIVER)
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with seven entries, some with nearly the same accuracy and cost."""
    folder = tmp_path_factory.mktemp("runs")
    for n, accuracy in enumerate((0.5, 0.8, 0.805, 0.81, 0.6, 0.61, 0.3)):
        name = f"convnet{n}-with-a-name-that-is-rather-long" if n % 2 else f"net{n}"
        seeds = (accuracy, accuracy + 0.02, accuracy + 0.01)
        make_run(folder / str(n), name, seeds, val_accuracy=accuracy)
    make_run(folder / "7", "failing", (0.5, 0.5, 0.5), diverged=[1], val_accuracy=0.5)
    return (report(folder).folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def against(tmp_path_factory):
    """A page with a baseline and long names and values, and its figures as files."""
    folder = tmp_path_factory.mktemp("baseline")
    make_run(folder / "a", "simplenet", val_accuracy=0.6)
    for n in range(6):
        settings = {"weight_decay": 0.0001 * n, "label_smoothing": 0.05 * n}
        settings["optimizer_args"] = {"b1": 0.9, "b2": 0.9 + n / 100}
        run = make_run(folder / str(n), "convbn", val_accuracy=0.5, **settings)
        write_metrics(run, 2, epochs=1000 if n == 0 else 2)
    return report(folder, baseline="simplenet", figures=folder / "figures").folder


def test_it_asks_for_nothing_and_reports_no_error(driver, page):
    driver.get(page)
    assert driver.get_log("browser") == []
    events = [json.loads(line["message"]) for line in driver.get_log("performance")]
    urls = [
        event["message"]["params"]["request"]["url"]
        for event in events
        if event["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert page in urls
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


def test_a_heading_sorts_by_click_and_by_key(driver, page):
    driver.get(page)
    table = driver.find_element("css selector", "table.sortable")

    def column(number):
        cells = table.find_elements("css selector", f"tbody td:nth-child({number})")
        return [cell.text for cell in cells]

    names, buttons = column(2), table.find_elements("css selector", "th button")
    assert names[-1] == "failing"
    buttons[0].click()
    assert column(2) == sorted(names, reverse=True)
    buttons[0].click()
    assert column(2) == sorted(names)
    buttons[2].send_keys("\n")  # the accuracy
    shown = [float(text.split()[0]) for text in column(4)]
    assert shown == sorted(shown, reverse=True)
    assert buttons[2].find_element("xpath", "..").get_attribute("aria-sort")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_both_colour_schemes(driver, page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page)
    ground = driver.execute_script("return getComputedStyle(document.body).background")
    assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")
    assert driver.execute_script(CONTRAST) > 4.5  # of the guidelines, WCAG 2.1 AA


@pytest.mark.parametrize("width", [420, 1200])
def test_nothing_is_wider_than_the_page_and_no_texts_overlap(driver, page, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page)
    driver.execute_script(
        "document.querySelectorAll('details').forEach(d => d.open = 1)"
    )
    assert driver.execute_script("return document.body.scrollWidth") <= width
    charts = driver.execute_script(BOXES)
    assert len(charts) > 10
    for chart in charts:
        for one, other in itertools.combinations(chart, 2):
            across = min(one[3], other[3]) - max(one[1], other[1])
            down = min(one[4], other[4]) - max(one[2], other[2])
            assert min(across, down) < 1, (one, other)


def test_no_table_is_cut_at_1280_pixels_and_no_text_in_a_picture(driver, page, against):
    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for shown in (page, (against / "report.html").as_uri()):
        driver.get(shown)
        driver.execute_script(
            "document.querySelectorAll('details').forEach(d => d.open = 1)"
        )
        assert driver.execute_script(WIDER) == []
        assert driver.execute_script(CUT) == []
    files = sorted((against / "figures").iterdir())
    names = {file.stem for file in files}
    assert {"ranking", "train_accuracy"} <= names
    assert {file.name for file in files} == {
        f"{name}.{ending}" for name in names for ending in ("png", "svg", "pdf")
    }
    for file in files:
        if file.suffix == ".svg":
            driver.get(file.as_uri())
            assert driver.execute_script(CUT) == [], file.name


def test_four_bands_are_drawn_and_others_on_demand(driver, page):
    driver.get(page)
    figure = driver.find_element("css selector", "figure.curves")
    boxes = figure.find_elements("css selector", "input[data-band]")

    def drawn():
        bands = figure.find_elements("css selector", "[class^=band-]")
        shown = [
            band for band in bands if band.value_of_css_property("display") != "none"
        ]
        return [band.get_attribute("class") for band in shown]

    assert drawn() == ["band-1", "band-2", "band-3", "band-4"]
    boxes[6].click()
    assert drawn() == ["band-2", "band-3", "band-4", "band-7"]
    assert not boxes[0].is_selected()
    boxes[6].click()
    assert drawn() == ["band-2", "band-3", "band-4"]


def test_pictures_keep_their_proportions(driver, page):
    driver.get(page)
    driver.execute_script(
        "document.querySelectorAll('details').forEach(d => d.open = 1)"
    )
    sizes = driver.execute_script(
        "return [...document.images].map(i => [i.clientWidth, i.clientHeight])"
    )
    assert sizes
    assert all(width == height > 10 for width, height in sizes)


def test_it_prints_on_a4_with_all_details_open(driver, page):
    driver.get(page)
    settings = {"preferCSSPageSize": True, "printBackground": True}
    printed = driver.execute_cdp_cmd("Page.printToPDF", settings)
    document = base64.b64decode(printed["data"])
    boxes = re.findall(rb"/MediaBox ?\[([\d. ]+)\]", document)
    assert boxes
    for box in boxes:
        assert list(map(float, box.split()))[2:] == pytest.approx([595, 842], abs=1)
    # Four pages of overview, and one or two for each of the eight entries.
    assert 8 <= len(re.findall(rb"/Type ?/Page\b", document)) <= 24
