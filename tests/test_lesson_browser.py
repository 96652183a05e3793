"""The lesson in a headless Chromium: sliders moved, the quiz answered, the keyboard, small screens, nothing foreign."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
from playwright.sync_api import expect

from browser import chromium, needs_chromium, served

pytestmark = [needs_chromium, pytest.mark.long]  # a browser is several processes


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page that has opened the address with its token; `page.asked` and `page.wrong` hold what went on."""
    with served("lesson", "--port", "18500") as address, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.asked, page.wrong, page.home = [], [], address.rsplit("/", 1)[0]
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(address)
        yield page
        assert page.wrong == []
        assert all(url.startswith((page.home, "data:")) for url in page.asked)


def value(page: Any, figure: str, name: str) -> str:
    text: str = page.locator(f"#figure-{figure} .values div", has_text=name).locator("dd").inner_text()
    return text


def settle(page: Any) -> None:
    """Wait until every figure has been drawn for the width of the screen."""
    expect(page.locator("figure.play:not([data-shown])")).to_have_count(0)


def test_the_token_leaves_the_address(page: Any) -> None:
    expect(page).to_have_url(f"{page.home}/")
    assert page.locator("math").first.bounding_box()["height"] > 10


def test_a_slider_changes_the_numbers_and_the_curve(page: Any) -> None:
    page.goto(f"{page.home}/cliff")
    settle(page)
    assert value(page, "cliff", "after the steps, clipped") == "5.43"
    before = page.locator("#figure-cliff svg.plot").first.inner_html()
    page.locator("#cliff-epsilon").fill("1")
    expect(page.locator("#figure-cliff .says")).to_contain_text("with ε = 1 it fell")
    assert value(page, "cliff", "after the steps, clipped").startswith("−")
    assert page.locator("#figure-cliff svg.plot").first.inner_html() != before
    assert page.locator("output[for=cliff-epsilon]").inner_text() == "1"


def test_a_slider_is_moved_with_the_keyboard(page: Any) -> None:
    page.goto(f"{page.home}/clipped")
    settle(page)
    page.locator("#clipped-ratio").focus()
    page.keyboard.press("Home")
    expect(page.locator("#figure-clipped .says")).to_contain_text("Rarer")
    assert value(page, "clipped", "slope, A = +1") == "1"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "epsilon"


def test_a_button_plays_other_games(page: Any) -> None:
    page.goto(f"{page.home}/reinforce")
    settle(page)
    before = page.locator("#figure-one-game .pictures").inner_html()
    with page.expect_response("**/figure/one-game?*seed=2*"):
        page.get_by_role("button", name="play another game").click()
    page.wait_for_selector("#figure-one-game[data-shown*='seed=2']")
    assert page.locator("#figure-one-game .pictures").inner_html() != before


def test_the_quiz_tells_right_from_wrong(page: Any) -> None:
    page.goto(f"{page.home}/credit")
    page.get_by_label("Future rewards R").fill("2, 1, 1")
    page.get_by_label("Gradient of this game").fill("-2")
    page.get_by_label("The same with the total").fill("-4")
    page.keyboard.press("Enter")
    page.wait_for_selector("#quiz-total-says.right")
    assert "Not yet" in page.locator("#quiz-future-says.wrong").inner_text()
    page.get_by_label("Gradient of this game").fill("-4")
    page.get_by_role("button", name="check").click()
    page.wait_for_selector("#quiz-future-says.right")
    page.get_by_role("button", name="another game").last.click()
    page.wait_for_selector("form.quiz[data-seed='1']")
    assert page.evaluate("document.activeElement.name") == "returns"


def test_a_note_lights_its_line(page: Any) -> None:
    page.goto(f"{page.home}/loop")
    page.locator("#note-1").hover()
    page.wait_for_selector("#line-1.lit")


def test_an_exercise_is_written_and_judged(page: Any) -> None:
    page.goto(f"{page.home}/exercises")
    form = page.locator("form[data-exercise=normalize]")
    editor = form.get_by_label("normalize")
    editor.fill("def normalize(advantage):")
    editor.press("End")
    editor.press("Enter")
    editor.press_sequentially(
        "return (advantage - advantage.mean(1, True)) / advantage.std(1, keepdim=True, correction=0)"
    )
    assert "\n    return" in editor.input_value()
    form.get_by_role("button", name="check").click()
    expect(form.locator(".verdicts .wrong").first).to_contain_text("normalising where sigma is 0")
    page.reload()
    assert editor.input_value().startswith("def normalize")  # kept
    form.get_by_role("button", name="begin anew").click()
    assert editor.input_value().startswith("import torch")


def test_a_training_runs_live(page: Any) -> None:
    page.goto(f"{page.home}/live")
    page.locator("#live-seeds").fill("1")
    page.get_by_role("button", name="start").click()
    page.wait_for_selector("form.live svg.plot path.thin")
    page.get_by_role("button", name="pause").click()
    expect(page.get_by_role("button", name="go on")).to_have_attribute("aria-pressed", "true")


def test_no_page_is_wider_than_a_small_screen(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{page.home}/reinforce")
    for name in page.eval_on_selector_all("header nav a", "links => links.map(a => a.getAttribute('href'))"):
        page.goto(page.home + name)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
