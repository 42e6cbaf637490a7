"""The page in a real browser: its charts drawn and worked with, on a phone, in the dark, on paper; nothing asked for.

It holds for every chart, table and switch that the page has, so what is added to the page is tested here, too.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

import chromium
import pytest
from chromium import Tab
from fakes import HOSTILE, Fakes, make_qa
from fakes_why import whole_page

FOUND = chromium.find()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        FOUND is None,
        reason=f"no Chromium: none on the PATH is called {', '.join(chromium.NAMES)}, "
        f"and {chromium.VARIABLE} names none",
    ),
]

ATTACK = "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>"
LOST = "lora-rank2"
"""The arm of which every run failed, with the attack for a reason."""
FIGURES = "[...document.querySelectorAll('figure[data-chart]')]"
MARKS = """(figure) => [...figure.querySelectorAll(".drawing svg *")].map((node) => node.__data__?.datum?.arm)"""
"""Arms of the marks that a figure shows: Vega keeps beside each SVG element what it was drawn from."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    assert FOUND is not None
    with chromium.running(FOUND, tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of a study that generates text, with an attack wherever data or a model's messages are shown."""
    fakes = Fakes(make_qa(about=ATTACK), lost=(LOST,), notes=(ATTACK,))
    for run_id, record in fakes.records.items():
        if record.status == "infeasible":
            fakes.records[run_id] = record.model_copy(update={"reason": ATTACK})
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(whole_page(fakes), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def tab(browser: chromium.Browser, url: str) -> Iterator[Tab]:
    """The page, opened; at the end of each test it must have said and asked for nothing."""
    tab = Tab(browser, url)
    yield tab
    check_quiet(tab)
    tab.close()


def check_quiet(tab: Tab) -> None:
    """Refuse errors, warnings (through which the page's policy speaks), and requests beside the file itself."""
    assert tab.said("Runtime.exceptionThrown", "Log.entryAdded") == []
    assert [
        said for said in tab.said("Runtime.consoleAPICalled") if said["type"] in ("error", "warning", "assert")
    ] == []
    asked = {request["request"]["url"] for request in tab.said("Network.requestWillBeSent")}
    assert {address for address in asked if not address.startswith("data:")} == {tab.url}
    assert tab.value("window.attacked") is None


def num_marks(tab: Tab, arm: str | None = None) -> list[int]:
    """Return how many marks each figure shows, of one arm or of all."""
    is_counted = "(name) => name !== undefined" if arm is None else f"(name) => name === {json.dumps(arm)}"
    counts: list[int] = tab.value(f"{FIGURES}.map((figure) => ({MARKS})(figure).filter({is_counted}).length)")
    return counts


def test_every_chart_is_drawn(tab: Tab) -> None:
    drawn = tab.value(f"{FIGURES}.map((figure) => figure.querySelectorAll('.drawing.vega-embed svg').length)")
    assert len(drawn) >= 14  # of differences, when/why/how, learning, rates, costs and decoding
    assert set(drawn) == {1}
    for count, nodes in zip(
        num_marks(tab), tab.value(f"{FIGURES}.map((f) => f.querySelectorAll('svg path').length)"), strict=True
    ):
        assert nodes > 0
        assert count > 0
    assert "NaN" not in tab.value(f"{FIGURES}.map((figure) => figure.querySelector('svg').outerHTML).join()")


def test_the_legend_hides_an_arm_in_every_chart_and_shows_it_again(tab: Tab) -> None:
    arms = tab.value("[...new Set([...document.querySelectorAll('button[data-arm]')].map((b) => b.dataset.arm))]")
    assert len(arms) >= 4
    for arm in set(arms) - {LOST}:
        before, others = num_marks(tab, arm), num_marks(tab)
        assert any(before), arm
        press = f"document.querySelector('button[data-arm={json.dumps(arm)}]').click()"
        tab.value(press)
        tab.wait(f"{FIGURES}.every((figure) => !({MARKS})(figure).includes({json.dumps(arm)}))")
        shown = num_marks(tab)
        assert [count > own for count, own in zip(others, before, strict=True)] == [count > 0 for count in shown], arm
        pressed = tab.value(
            f"[...document.querySelectorAll('button[data-arm={json.dumps(arm)}]')].map((b) => b.ariaPressed)"
        )
        assert set(pressed) == {"false"}
        tab.value(press)
        tab.wait(
            f"JSON.stringify({FIGURES}.map((f) => ({MARKS})(f).filter((n) => n === {json.dumps(arm)}).length))"
            f" === {json.dumps(json.dumps(before, separators=(',', ':')))}"
        )


def test_the_legend_obeys_the_keyboard(tab: Tab) -> None:
    tab.value("document.querySelector('button[data-arm]').focus()")
    arm = tab.value("document.activeElement.dataset.arm")
    key = {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "}
    tab.call("Input.dispatchKeyEvent", type="keyDown", **key)
    tab.call("Input.dispatchKeyEvent", type="keyUp", **key)
    tab.wait(f"{FIGURES}.every((figure) => !({MARKS})(figure).includes({json.dumps(arm)}))")
    assert tab.value("document.activeElement.ariaPressed") == "false"


def test_every_choice_of_an_axis_redraws_its_chart(tab: Tab) -> None:
    choices = tab.value(
        "[...document.querySelectorAll('figure[data-chart] fieldset')].map((f) => f.querySelectorAll('input').length)"
    )
    assert choices
    for place, number in enumerate(choices):
        field = f"document.querySelectorAll('figure[data-chart] fieldset')[{place}]"
        # without the names of clips, which are new in every drawing
        picture = f"{field}.closest('figure').querySelector('.drawing svg').outerHTML.replace(/clip\\d+/g, '')"
        for choice in (*range(1, number), 0):
            tab.value(f"window.before = {picture}; {field}.querySelectorAll('input')[{choice}].click()")
            tab.wait(f"{picture} !== window.before")
        count = tab.value(f"({MARKS})({field}.closest('figure')).filter((arm) => arm !== undefined).length")
        assert count > 0


def test_tables_sort_by_every_column(tab: Tab) -> None:
    heads = tab.value("document.querySelectorAll('th button').length")
    assert heads > 5
    for place in range(heads):
        head = f"document.querySelectorAll('th button')[{place}]"
        for order in ("ascending", "descending"):
            tab.value(f"{head}.click()")
            assert tab.value(f"{head}.closest('th').ariaSort") == order
            cells: list[str] = tab.value(
                f"[...{head}.closest('table').tBodies[0].rows]"
                f".map((row) => row.cells[{head}.closest('th').cellIndex].dataset.value ?? '')"
            )
            check_order(cells, is_rising=order == "ascending")


def check_order(cells: list[str], *, is_rising: bool) -> None:
    """Hold cells to their order: empty ones last, whichever way the others go."""
    full = [cell for cell in cells if cell]
    assert cells == full + [""] * (len(cells) - len(full))
    try:
        numbers = [float(cell) for cell in full]
    except ValueError:
        return  # texts go by the browser's own order of words
    assert numbers == sorted(numbers, reverse=not is_rising)


def test_an_attack_is_shown_as_text(tab: Tab) -> None:
    text: str = tab.value("document.body.textContent")
    assert text.count(ATTACK) >= 2  # the study's words, and the data's notes
    assert ATTACK in tab.value("[...document.querySelectorAll('[title]')].map((node) => node.title).join('\\n')")
    assert tab.value("document.querySelectorAll('img, [onerror]').length") == 0


def test_an_attack_in_a_row_of_data_is_shown_as_text(tab: Tab) -> None:
    samples: str = tab.value("document.querySelector('#samples').closest('section').textContent")
    assert samples.count("<script>alert('x')</script>") >= 2  # in a prompt, and in what an arm wrote
    assert "<script>alert" in HOSTILE
    assert tab.value("[...document.scripts].filter((one) => one.textContent.startsWith('alert')).length") == 0


def test_the_policy_stops_what_is_not_ours(browser: chromium.Browser, url: str) -> None:
    """The same page with an attack that was let through: the browser itself refuses to run or fetch it."""
    tab = Tab(browser, url)
    tab.value(
        "document.body.insertAdjacentHTML('beforeend', \"<img src='data:image/png,x' onerror='window.attacked = 2'>\")"
    )
    tab.value(
        "const script = document.createElement('script'); script.textContent = 'window.attacked = 1';"
        "document.body.append(script);"
    )
    tab.value("{ const i = new Image(); i.src = 'https://example.org/x.png'; document.body.append(i); }")
    tab.wait("document.images[0].complete")
    refused = [said["entry"]["text"] for said in tab.said("Log.entryAdded")]
    assert len([text for text in refused if "Content Security Policy" in text]) >= 3
    assert tab.value("window.attacked") is None
    tab.close()


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_overflows(browser: chromium.Browser, url: str, width: int) -> None:
    tab = Tab(browser, url, width, is_phone=width < 500)
    assert tab.value("innerWidth") == width
    beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.value(beyond) == 0
    tab.value("for (const part of document.querySelectorAll('details')) part.open = true")
    assert tab.value(beyond) == 0
    check_quiet(tab)
    tab.close()


def brightness(tab: Tab) -> dict[str, float]:
    """Return the mean of red, green and blue, 0 to 255, of the page's ground and of its text."""
    colours: dict[str, str] = tab.value(
        "(({ backgroundColor, color }) => ({ ground: backgroundColor, text: color }))(getComputedStyle(document.body))"
    )
    channels = {name: colour.partition("(")[2].rstrip(")").split(",")[:3] for name, colour in colours.items()}
    return {name: sum(map(float, own)) / 3 for name, own in channels.items()}


def test_the_dark_scheme_is_dark(tab: Tab) -> None:
    tab.emulate(prefers_color_scheme="light")
    light = brightness(tab)
    tab.emulate(prefers_color_scheme="dark")
    dark = brightness(tab)
    assert light["ground"] > 200 > 100 > light["text"]
    assert dark["ground"] < 60 < 150 < dark["text"]


def test_paper_shows_everything(tab: Tab) -> None:
    closed = "document.querySelectorAll('details:not([open])').length"
    number = tab.value(closed)
    assert number > 0
    tab.value(f"addEventListener('beforeprint', () => {{ window.closedOnPaper = {closed}; }})")
    printed: dict[str, Any] = tab.call("Page.printToPDF")
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert tab.value("window.closedOnPaper") == 0
    tab.wait(f"{closed} === {number}")
    tab.emulate("print")
    hidden = tab.value(
        "[...document.querySelectorAll('main section, main figure, main .drawing, main table')]"
        ".filter((node) => !node.closest('details') && !node.getClientRects().length).length"
    )
    assert hidden == 0
