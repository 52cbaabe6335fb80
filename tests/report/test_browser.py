"""The page in a real browser: it opens from disk, asks the network for nothing, and its controls
do what they say.
"""

import base64
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feathide.report import About, Run, render
from feathide.report.results import Scale

pytestmark = pytest.mark.browser
selenium = pytest.importorskip(
    "selenium.webdriver", reason="needs selenium: pip install selenium"
)

FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, server = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or server is None:
        pytest.skip("needs chromium and chromedriver, which are not installed")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(server))
    yield driver
    driver.quit()


class Page:
    """A report that is open in the browser."""

    def __init__(self, driver: Any, path: Path, run: Run, *, hash: str = "") -> None:
        self.driver, self.path = driver, path
        path.write_text(render(run), encoding="utf-8")
        self.show(hash)

    def show(self, hash: str = "") -> None:
        self.size(1400)
        for log in ("browser", "performance"):
            self.driver.get_log(log)  # forget what came before
        self.driver.get(self.path.as_uri() + hash)
        self.wait(
            "return !document.getElementById('browser') || "
            "document.getElementById('case').dataset.ready"
        )

    def size(self, width: int, *, dark: bool = False) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def press(self, key: str) -> None:
        """Press a key where the focus is, as a user would."""
        self.driver.switch_to.active_element.send_keys(key)

    def focused(self) -> str:
        """The id, or the text, of what has the focus."""
        return str(
            self.js("const e = document.activeElement; return e.id || e.textContent")
        )

    def js(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def wait(self, condition: str) -> Any:
        for _ in range(150):
            if found := self.js(condition):
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {condition}")

    def choose(self, control: str, value: str) -> None:
        """Set a select, slider or text field as a user would, by its id."""
        event = "new Event(e.tagName === 'SELECT' ? 'change' : 'input')"
        self.js(
            (
                "const e = document.getElementById(arguments[0]); e.value = arguments[1]; "
                f"e.dispatchEvent({event})"
            ),
            control,
            value,
        )

    def option(self, control: str, text: str) -> None:
        values = (
            f"return [...document.getElementById('{control}').options].map((o) => "
            "[o.textContent, o.value])"
        )
        self.choose(control, dict(self.js(values))[text])

    def pixels(self, view: str) -> np.ndarray:
        """The RGB of a canvas, (H, W, 3)."""
        read = """const c = document.getElementById(arguments[0]), d = c.getContext('2d').getImageData(0, 0, c.width, c.height);
            return [c.height, c.width, [...d.data]]"""
        height, width, values = self.js(read, f"view-{view}")
        return np.array(values).reshape(height, width, 4)[..., :3]

    def complaints(self) -> list[str]:
        """What the console holds against the page; reading back a canvas so often is the test's
        own doing.
        """
        return [
            e["message"]
            for e in self.driver.get_log("browser")
            if "getImageData" not in e["message"]
        ]

    def ready(self, name: str) -> None:
        self.wait(
            f"return document.getElementById('case').dataset.ready === {json.dumps(name)}"
        )


@pytest.fixture(scope="module")
def opened(driver: Any, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(driver, tmp_path_factory.mktemp("report") / "report.html", run)


@pytest.fixture
def page(opened: Page) -> Page:
    """The report of ``run``; opened again if another test has left it."""
    if opened.driver.current_url.partition("#")[0] != opened.path.as_uri():
        opened.show()
    return opened


def test_opens_without_errors_and_without_the_network(page: Page) -> None:
    assert page.js("return window.scrollY") == 0, "the page opens at the verdict"
    page.js("document.querySelectorAll('.plot').forEach((p) => p.scrollIntoView())")
    for y in range(0, int(page.js("return document.documentElement.scrollHeight")), 700):
        page.js("window.scrollTo(0, arguments[0])", y)
        time.sleep(0.05)
    page.wait(
        "return [...document.querySelectorAll('.plot')].every((p) => "
        "p.querySelector('.main-svg'))"
    )
    assert page.complaints() == []
    events = [
        json.loads(e["message"])["message"] for e in page.driver.get_log("performance")
    ]
    asked = [
        e["params"]["request"]["url"]
        for e in events
        if e["method"] == "Network.requestWillBeSent"
    ]
    assert {address.partition(":")[0] for address in asked} <= {"file", "data"}
    assert sum(address.startswith("file:") for address in asked) == 1


def test_policy_stops_a_script_that_was_slipped_in(page: Page) -> None:
    page.js(
        "const s = document.createElement('script'); s.textContent = 'window.slipped = 1'; "
        "document.body.append(s)"
    )
    assert page.js("return window.slipped === undefined")
    assert "Content Security Policy" in page.driver.get_log("browser")[0]["message"]


def test_tables_sort_both_ways_and_say_so(page: Page) -> None:
    column = (
        "return [...document.querySelectorAll('#findings tbody tr')].map((r) => "
        "+r.cells[2].dataset.key)"
    )
    head = "document.querySelectorAll('#findings thead th')[2]"
    for order, name in ((1, "ascending"), (-1, "descending")):
        page.js(f"{head}.querySelector('button').click()")
        values = page.js(column)
        assert values == sorted(values, reverse=order < 0) and len(set(values)) > 3
        assert page.js(f"return {head}.getAttribute('aria-sort')") == name


def test_one_metric_at_a_time(page: Page) -> None:
    shown = (
        "return [...document.querySelectorAll('.matrix')].filter((m) => !m.hidden).map((m) => "
        "m.dataset.title)"
    )
    assert page.js(shown) == ["Slips through at 10 % false alarms"]
    page.js(
        "[...document.querySelectorAll('#metrics button')].find((b) => b.textContent === "
        "'AUC').click()"
    )
    assert page.js(shown) == ["AUC"]


def test_legend_hides_a_curve(page: Page) -> None:
    page.js("document.getElementById('figure-roc').scrollIntoView()")
    curves = "return document.querySelectorAll('#figure-roc .scatterlayer .trace').length"
    before = page.wait(curves)
    page.js("document.querySelector('#figure-roc .legend button').click()")
    page.wait(f"{curves} < {before}")
    assert (
        page.js(
            "return document.querySelector('#figure-roc .legend "
            "button').getAttribute('aria-pressed')"
        )
        == "false"
    )
    page.js("document.querySelector('#figure-roc .legend button').click()")
    page.wait(f"{curves} === {before}")


def test_numbers_of_a_figure_can_be_read_and_saved(page: Page) -> None:
    page.js("document.querySelector('#figure-transfer details').open = true")
    page.wait(
        "return document.querySelectorAll('#figure-transfer details tbody tr').length === 18"
    )
    page.js(
        "window.saved = []; URL.createObjectURL = (blob) => { window.saved.push(blob); "
        "return 'blob:none'; }"
    )
    page.js(
        "HTMLAnchorElement.prototype.click = function () { window.saved.push(this.download); }"
    )
    page.js("document.querySelector('[data-csv=transfer]').click()")
    blob = page.driver.execute_async_script("window.saved[0].text().then(arguments[0])")
    assert (
        blob.splitlines()[0] == "condition,substitute,victim,value"
        and len(blob.splitlines()) == 19
    )
    assert page.js("return window.saved[1]") == "transfer.csv"


def test_filters_agree_with_the_scores(page: Page, run: Run) -> None:
    listed = (
        "return [...document.querySelectorAll('#case-list button')].map((b) => "
        "b.firstChild.textContent)"
    )
    cases = run.cases["pgd+hfc"]
    page.option("case-attack", "PGD + HFC")
    for level in ("fpr10", "fpr1"):
        page.choose("case-level", level)
        limit = run.thresholds["kd"][level]
        page.option("case-filter", "slipped through KD")
        assert sorted(page.js(listed)) == sorted(
            c.id for c in cases if c.fooled and c.scores["kd"] <= limit
        )
        page.option("case-filter", "caught by KD")
        assert sorted(page.js(listed)) == sorted(
            c.id for c in cases if c.scores["kd"] > limit
        )
    page.option("case-filter", "classifier not fooled")
    assert sorted(page.js(listed)) == sorted(c.id for c in cases if not c.fooled)
    page.option("case-filter", "all cases")
    page.choose("case-search", "PATIENT003")
    assert page.js(listed) == ["patient003/view0.png", "patient003/view1.png"]
    assert (
        page.js("return document.getElementById('case-count').textContent")
        == "2 of 80 cases"
    )
    page.choose("case-search", "")
    page.choose("case-level", "fpr10")


def test_a_case_shows_its_exact_pixels(page: Page, run: Run) -> None:
    case = run.cases["pgd+hfc"][3]
    page.option("case-attack", "PGD + HFC")
    page.js(
        (
            "[...document.querySelectorAll('#case-list button')].find((b) => "
            "b.textContent.startsWith(arguments[0])).click()"
        ),
        case.id,
    )
    page.ready(case.id)
    for view, image in (("clean", case.clean), ("adversarial", case.adversarial)):
        np.testing.assert_array_equal(
            page.pixels(view)[..., 0], run.scale.quantise(image)[0]
        )
    assert case.id in page.js("return document.getElementById('case-title').textContent")
    flagged = page.js(
        "return [...document.querySelectorAll('#case-scores tbody tr')].map((r) => "
        "r.cells[4].textContent)"
    )
    assert flagged == [
        "alarm" if s > run.thresholds[d]["fpr10"] else "no alarm"
        for d, s in case.scores.items()
    ]
    assert page.js(
        "return document.querySelectorAll('#case-energies tbody tr').length"
    ) == len(case.energies)


def test_sliders_change_what_is_seen(page: Page, run: Run) -> None:
    case = run.cases["pgd+hfc"][3]
    page.choose("amplify", "0")
    faint = np.abs(page.pixels("difference") - 255).max()
    page.choose("amplify", "10")
    strong = page.pixels("difference")
    assert faint < 8
    change = (case.adversarial - case.clean)[0]
    assert (strong[change > 0.001] == [150, 60, 150]).all() and (
        strong[change < -0.001] == [0, 114, 178]
    ).all()
    page.choose("window", "51")
    page.choose("level", "127.5")
    levels = run.scale.quantise(case.clean)[0].astype(float)
    np.testing.assert_allclose(
        page.pixels("clean")[..., 0], np.clip((levels - 102) * 5, 0, 255), atol=1
    )


def test_arrow_keys_walk_through_the_cases(page: Page) -> None:
    page.js(
        "document.querySelector('#case-list button').click(); "
        "document.querySelector('#case-list button').focus()"
    )
    second = page.js(
        "return document.querySelectorAll('#case-list button')[1].firstChild.textContent"
    )
    page.js(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: "
        "'ArrowDown', bubbles: true }))"
    )
    page.ready(second)
    assert page.js("return document.activeElement.getAttribute('aria-current')") == "true"
    page.js("document.querySelector('#case-list').scrollTop = 0")
    page.js("document.querySelectorAll('#case-list button')[30].click()")
    seen = """const [b, l] = [document.querySelectorAll('#case-list button')[30], document.getElementById('case-list')]
        .map((e) => e.getBoundingClientRect()); return b.top >= l.top - 1 && b.bottom <= l.bottom + 1"""
    assert page.js(seen)


def test_theme_button_turns_dark_and_back(page: Page) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    seen = [page.js(paper)]
    for _ in range(3):
        page.js("document.getElementById('theme').click()")
        seen.append(page.js(paper))
    assert seen[0] == seen[1] == seen[3] != seen[2]
    page.size(1400, dark=True)
    assert page.js(paper) == seen[2]
    page.size(1400)


@pytest.mark.parametrize("width", [420, 800, 1400])
def test_page_does_not_scroll_sideways(page: Page, width: int) -> None:
    page.size(width)
    time.sleep(0.5)
    assert page.js("return document.documentElement.scrollWidth") <= width
    page.size(1400)


def test_every_control_has_a_name(page: Page) -> None:
    nameless = """return [...document.querySelectorAll('button, select, input, canvas, [role=img], [role=region], img, table')].filter((e) =>
        !e.textContent.trim() && !e.getAttribute('aria-label') && !e.alt && !(e.labels && e.labels.length)).map((e) => e.outerHTML)"""
    assert page.js(nameless) == []
    assert (
        page.js(
            "return [...document.querySelectorAll('main table')].filter((t) => !t.caption "
            "&& !t.closest('.rows')).length"
        )
        == 0
    )


def test_volumes_slice_along_every_axis(driver: Any, volumes: Run, tmp_path: Path) -> None:
    page = Page(driver, tmp_path / "volumes.html", volumes)
    case = volumes.cases["pgd+plain"][0]
    levels = volumes.scale.quantise(case.adversarial)[0]
    for axis, name in enumerate(("axis 1", "axis 2", "axis 3")):
        page.option("axis", name)
        page.choose("slice", "3")
        np.testing.assert_array_equal(
            page.pixels("adversarial")[..., 0], np.take(levels, 3, axis)
        )
    assert page.complaints() == []


def test_sixteen_bits_and_window_presets(
    driver: Any, make: Callable[..., Run], tmp_path: Path
) -> None:
    run = make((16, 20), 2)
    scale = Scale(-1024.0, 3071.0, 4096, -1024.0, 3071.0, "HU")
    hu = np.random.default_rng(0).integers(-1024, 3072, (2, 1, 16, 20)).astype(np.float32)
    case = replace(run.cases["pgd+plain"][0], clean=hu[0], adversarial=hu[1])
    threat = {
        **run.threat,
        "box": (-1024.0, 3071.0),
        "step": 1.0,
        "unit": "HU",
        "native_box": (-1024, 3071),
        "eps": 8.0,
    }
    table = run.table.assign(
        eps=np.where(np.isclose(run.table["eps"], run.threat["eps"]), 8.0, 0.0)
    )
    run = replace(run, threat=threat, table=table, cases={"pgd+plain": [case]}, curves={})
    assert run.scale == scale
    page = Page(driver, tmp_path / "ct.html", run)
    page.js(
        "[...document.querySelectorAll('#presets button')].find((b) => b.textContent === "
        "'Lung').click()"
    )
    for view, image in (("clean", hu[0]), ("adversarial", hu[1])):
        seen = np.clip((image[0] + 600 + 750) / 1500 * 255, 0, 255)
        np.testing.assert_allclose(page.pixels(view)[..., 0], seen, atol=0.6)


def test_hostile_names_are_shown(
    driver: Any, make: Callable[..., Run], tmp_path: Path
) -> None:
    run = make(count=4, title=HOSTILE, class_names=(HOSTILE, "b"))
    cases = {
        "pgd+plain": [
            replace(c, id=f"{HOSTILE}{i}") for i, c in enumerate(run.cases["pgd+plain"])
        ]
    }
    stress = run.curves["stress"].replace(
        {"layer": {"stem": HOSTILE}, "group": {"chest": HOSTILE}}
    )
    page = Page(
        driver,
        tmp_path / "hostile.html",
        replace(run, cases=cases, curves={"stress": stress}),
    )
    page.js("document.getElementById('figure-stress').scrollIntoView()")
    page.wait(
        "return document.querySelector('#figure-stress "
        f".plot').textContent.includes({json.dumps(HOSTILE)})"
    )
    assert page.js("return document.querySelector('h1').textContent") == HOSTILE
    assert (
        page.js(
            "return document.querySelector('#figure-stress .legend button').textContent"
        )
        == HOSTILE
    )
    assert HOSTILE in page.js("return document.getElementById('case-outcome').textContent")
    assert page.complaints() == []


def test_pictures_of_figures_are_saved_as_svg(
    driver: Any, run: Run, tmp_path: Path
) -> None:
    fresh = Page(driver, tmp_path / "again.html", run)
    fresh.js("document.getElementById('figure-eps').scrollIntoView()")
    fresh.wait("return document.querySelector('#figure-eps .main-svg')")
    picture = driver.execute_async_script(
        "Plotly.toImage(document.querySelector('#figure-eps .plot'), { format: 'svg' "
        "}).then(arguments[0])"
    )
    assert "svg" in picture[:40] and len(base64.b64encode(picture.encode())) > 5000
    assert fresh.complaints() == []


# --- the list of cases --------------------------------------------------------------------------

NAMES = "return [...document.querySelectorAll('#case-list button')].map((b) => b.firstChild.textContent)"


def test_the_list_of_cases_is_one_stop_of_the_tab_key(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.option("case-attack", "all")
    names = page.js(NAMES)
    stops = "return document.querySelectorAll('#case-list button[tabindex=\"0\"]').length"
    assert len(names) > 50 and page.js(stops) == 1
    page.js("document.getElementById('case-search').focus()")
    page.press(Keys.TAB)
    assert page.focused().startswith(names[0])
    for key, at in ((Keys.ARROW_DOWN, 1), (Keys.END, -1), (Keys.HOME, 0)):
        page.press(key)
        page.ready(names[at])
        assert page.focused().startswith(names[at]) and page.js(stops) == 1
    page.press(Keys.TAB)
    assert page.focused() == "amplify"


def test_an_address_leads_to_a_case_and_a_case_to_its_address(
    driver: Any, make: Callable[..., Run], tmp_path: Path
) -> None:
    run = make(count=6)
    case = run.cases["pgd+hfc"][3]
    title = "return document.getElementById('case-title').textContent"
    outcome = "return document.getElementById('case-outcome').textContent"
    for hash in (
        "#case=pgd+hfc/patient001/view1.png",
        "#case=pgd%2Bhfc%2Fpatient001%2Fview1.png",
    ):
        page = Page(driver, tmp_path / "address.html", run, hash=hash)
        page.ready(case.id)
        assert page.js(title) == case.id and page.js(outcome).startswith("PGD + HFC.")
        assert (
            page.js("return document.getElementById('cases').getBoundingClientRect().top")
            < 400
        )
        driver.get("about:blank")
    page = Page(driver, tmp_path / "address.html", run)
    assert page.js("return location.hash") == "", "nobody chose a case yet"
    page.js("document.querySelectorAll('#case-list button')[2].click()")
    chosen = page.js(NAMES)[2]
    page.ready(chosen)
    assert chosen in page.js("return decodeURIComponent(location.hash)")
    page.js("location.hash = '#case=nobody'")
    page.wait(
        "return document.getElementById('case-count').textContent.includes('no case nobody')"
    )
    page.js("document.querySelector('.visible a[href^=\"#case=\"]').click()")
    page.wait(f"return ({title.removeprefix('return ')}) === document.querySelector("
              "'.visible > figcaption').textContent.split(', ')[1].split(':')[0]")  # fmt: skip
    assert page.complaints() == []


def test_no_case_fits_is_said(page: Page) -> None:
    page.option("case-attack", "all")
    page.choose("case-search", "nobody is called so")
    hidden = "return ['case-list', 'case-shown', 'case-none'].map((i) => document.getElementById(i).hidden)"
    assert page.js(hidden) == [True, True, False]
    assert page.js("return document.getElementById('case-count').textContent").startswith(
        "no case fits"
    )
    page.js("document.getElementById('case-all').click()")
    assert page.js(hidden) == [False, False, True] and len(page.js(NAMES)) == 80


def test_two_cases_stand_side_by_side(driver: Any, run: Run, tmp_path: Path) -> None:
    page = Page(driver, tmp_path / "beside.html", run)
    page.option("case-attack", "PGD + HFC")
    first, second = page.js(NAMES)[:2]
    page.js("document.querySelectorAll('#case-list button')[0].click()")
    page.ready(first)
    page.js("document.getElementById('case-keep').click()")
    page.wait("return document.getElementById('case-beside').dataset.ready")
    page.js("document.querySelectorAll('#case-list button')[1].click()")
    page.ready(second)
    cases = {c.id: c for c in run.cases["pgd+hfc"]}
    for suffix, name in (("", second), ("-beside", first)):
        assert (
            page.js(f"return document.getElementById('case-title{suffix}').textContent")
            == name
        )
        np.testing.assert_array_equal(
            page.pixels(f"adversarial{suffix}")[..., 0],
            run.scale.quantise(cases[name].adversarial)[0],
        )
    tops = "return ['case', 'case-beside'].map((i) => document.getElementById(i).getBoundingClientRect().top)"
    left, right = page.js(tops)
    assert left == right, "side by side"
    address = page.js("return document.getElementById('case-link').href")
    driver.get("about:blank")
    again = Page(
        driver, tmp_path / "beside.html", run, hash="#" + address.partition("#")[2]
    )
    again.wait("return document.getElementById('case-beside').dataset.ready")
    assert (
        again.js("return document.getElementById('case-title-beside').textContent") == first
    )
    again.js("document.getElementById('case-drop').click()")
    assert again.js("return document.getElementById('case-beside').hidden")


# --- reading ------------------------------------------------------------------------------------


def test_a_word_is_explained_to_pointer_keyboard_and_screen_reader(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    tip = "return [document.getElementById('tip').hidden, document.getElementById('tip').textContent]"
    link = "document.querySelector('#findings tbody th a.term')"
    name = page.js(f"return {link}.textContent")
    page.js(f"{link}.focus()")
    hidden, text = page.js(tip)
    assert not hidden and text.startswith(name) and "A guard." in text
    page.press(Keys.ESCAPE)
    assert page.js(tip)[0]
    says = page.js(
        f"return document.getElementById({link}.getAttribute('aria-describedby')).textContent"
    )
    assert says in text
    lost = """return [...document.querySelectorAll('[aria-describedby]')].flatMap((e) => e.getAttribute('aria-describedby').split(' '))
        .filter((id) => !document.getElementById(id))"""
    assert page.js(lost) == []
    page.js("document.querySelector('#tables th button[aria-describedby]').focus()")
    assert not page.js(tip)[0]
    page.press(Keys.ESCAPE)


def axe() -> str:
    """axe-core as text: from ``AXE_CORE``, or from node_modules of the repository."""
    root = Path(__file__).resolve().parents[2]
    path = Path(os.environ.get("AXE_CORE") or root / "node_modules/axe-core/axe.min.js")
    if not path.is_file():
        pytest.skip(
            "needs axe-core: npm install --no-save axe-core, or AXE_CORE=axe.min.js"
        )
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(
    driver: Any, make: Callable[..., Run], tmp_path: Path, dark: bool
) -> None:
    script = axe()
    about = About(
        "2026-05-31", "Audit office", "Radiology", "resnet18", "ab" * 8, "chest", "cd" * 32
    )
    budgets = tuple(4 / 255 * scale for scale in (0.25, 1.0, 2.0))
    page = Page(driver, tmp_path / "axe.html", make(count=6, about=about, budgets=budgets))
    page.size(1280, dark=dark)
    page.js("for (const d of document.querySelectorAll('details')) d.open = true")
    page.js("document.getElementById('case-keep').click()")
    page.wait("return document.getElementById('case-beside').dataset.ready")
    for y in range(0, int(page.js("return document.documentElement.scrollHeight")), 700):
        page.js("window.scrollTo(0, arguments[0])", y)
        time.sleep(0.05)
    driver.execute_script(script)
    found = driver.execute_async_script("axe.run().then(arguments[0])")
    wrong = [
        f"{v['id']}: {n['target']} {n['failureSummary']}"
        for v in found["violations"]
        for n in v["nodes"]
    ]
    assert wrong == [] and len(found["passes"]) > 20
    page.size(1400)
