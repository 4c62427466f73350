"""The page in a real Chromium: what a user types, sees, corrects, and finds again in training."""

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from finetune.data import corrections
from finetune.run_directory import RECIPE, REPORT, Run
from finetune.serving import page
from finetune.serving.app import create_app
from finetune.serving.service import Service
from tests.conftest import WORDS, train
from tests.serving.conftest import language_model

playwright = pytest.importorskip("playwright.sync_api")

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=OPTIONS)
        yield opened
        opened.close()


@contextmanager
def answering(run: Run, token: str | None = None) -> Iterator[str]:
    """A service of a run at an address of its own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = uvicorn.Server(
            uvicorn.Config(create_app(Service(run), token=token), log_level="warning", ws="none")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens the page of a run; no request may leave the service, and no script may fail."""
    problems: list[str] = []
    with ExitStack() as stack:

        def start(run: Run, token: str | None = None, **options: Any) -> Any:
            address = stack.enter_context(answering(run, token))
            context = browser.new_context(base_url=address, **options)
            stack.callback(context.close)
            opened = context.new_page()
            opened.set_default_timeout(20_000)
            opened.on("pageerror", lambda error: problems.append(str(error)))
            opened.on("console", lambda said: said.type == "error" and problems.append(said.text))
            opened.on(
                "request",
                lambda sent: (
                    sent.url.startswith((address, "blob:", "data:")) or problems.append(sent.url)
                ),
            )
            opened.goto("/")
            return opened

        yield start
    assert problems == []


@pytest.fixture(autouse=True)
def without_corrections(texts: Run, images: Run) -> Iterator[None]:
    """The runs are shared by tests."""
    yield
    for run in (texts, images):
        (run.folder / corrections.FILE).unlink(missing_ok=True)


def kept(run: Run) -> list[dict[str, Any]]:
    text = (run.folder / corrections.FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_review_is_typed_corrected_and_learned(texts: Run, visit: Open, workdir: Path) -> None:
    opened = visit(texts)
    opened.get_by_label("Text").fill("a great film")
    opened.get_by_role("button", name="Predict").click()
    said = opened.get_by_role("heading", name="The model says")
    predicted = said.locator("b").inner_text()
    assert opened.locator(".bars .predicted .name").inner_text() == predicted
    shares = [float(s.split()[0]) for s in opened.locator(".bars .share").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)

    (other,) = {"negative", "positive"} - {predicted}
    button = opened.get_by_role("button", name=f"This is right: {other}")
    button.click()
    opened.get_by_text(f"“{other}” is kept in {texts.folder / corrections.FILE}").wait_for()
    assert button.get_attribute("aria-pressed") == "true"
    (line,) = kept(texts)
    assert (line["text"], line["label"], line["prediction"]) == ("a great film", other, predicted)
    assert "nowhere else" in opened.locator("footer").inner_text()

    again = train(
        texts.folder / RECIPE,
        *("--add_feedback", str(texts), "--max_steps", "2", "--output_dir", str(workdir / "new")),
    )
    results = again.results()
    assert (results["steps"], results["data"]["corrections"]) == (2, 1)


def test_the_keyboard_is_enough(texts: Run, visit: Open) -> None:
    opened = visit(texts)
    assert opened.locator("textarea:focus").count() == 1
    opened.keyboard.type("a poor plot")
    opened.keyboard.press("Control+Enter")
    opened.locator(".bars").wait_for()
    assert opened.locator("#status").inner_text().startswith("The model says")
    # Predict, then the first of the labels.
    opened.keyboard.press("Tab")
    opened.keyboard.press("Tab")
    focused = opened.locator("button:focus")
    assert focused.inner_text().startswith("This is right")
    opened.keyboard.press("Enter")
    opened.locator("button[aria-pressed=true]:focus").wait_for()
    assert len(kept(texts)) == 1


def test_pairs_with_a_number(pairs: Run, visit: Open) -> None:
    opened = visit(pairs)
    opened.get_by_label("Text", exact=True).fill("a film")
    opened.get_by_label("Second text").fill("a plot")
    opened.get_by_role("button", name="Predict").click()
    opened.get_by_label("The right number").fill("4.5")
    opened.get_by_role("button", name="Keep the correction").click()
    opened.get_by_text("“4.5” is kept").wait_for()
    (line,) = kept(pairs)
    (pairs.folder / corrections.FILE).unlink()
    assert (line["text_pair"], line["label"]) == ("a plot", 4.5)


def test_entities_and_an_answer_are_marked_in_their_text(
    entities: Run, questions: Run, visit: Open
) -> None:
    opened = visit(entities)
    opened.get_by_label("Text").fill("💥 the film")
    opened.get_by_role("button", name="Predict").click()
    opened.get_by_role("heading", name="The model finds 3 entities").wait_for()
    marks = opened.locator(".marked mark")
    assert [mark.removesuffix("WORD") for mark in marks.all_inner_texts()] == ["💥", "the", "film"]

    opened = visit(questions)
    opened.get_by_label("Question").fill("the film was")
    opened.get_by_label("Text with the answer").fill("a plot was poor")
    opened.get_by_role("button", name="Predict").click()
    said = opened.get_by_role("heading", name="The model finds")
    answer = said.locator("b").inner_text()
    assert answer in "a plot was poor"
    assert opened.locator(".marked").inner_text() == "a plot was poor"
    assert opened.locator(".marked mark").inner_text() == answer


def test_a_target_is_written(speller: Run, visit: Open) -> None:
    opened = visit(speller)
    opened.get_by_label("Text").fill("bad")
    opened.get_by_role("button", name="Predict").click()
    opened.get_by_role("heading", name="The model says").wait_for()
    assert opened.get_by_role("button").all_inner_texts() == ["Predict"]


def test_an_image(images: Run, visit: Open) -> None:
    opened = visit(images)
    file = next((images.folder.parent / "photos" / "dog").iterdir())
    opened.get_by_label("Drop an image").set_input_files(file)
    opened.get_by_role("button", name="This is right: dog").click()
    opened.get_by_text("“dog” is kept").wait_for()
    (line,) = kept(images)
    assert (images.folder / line["image"]).read_bytes() == file.read_bytes()


def test_a_text_is_continued_and_nothing_of_it_is_html(visit: Open, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{word} film {i}"}) for i in range(4) for word in WORDS]
    opened = visit(language_model(tmp_path, "text: text", rows))
    text = "<img src=x onerror=alert(1)><b>film</b>"
    opened.get_by_label("The beginning of a text").fill(text)
    opened.keyboard.press("Enter")
    opened.locator(".log[aria-busy=false]").wait_for()
    shown = opened.locator(".log .assistant")
    assert shown.inner_text().startswith(text)
    assert len(shown.inner_text()) > len(text)
    assert opened.locator(".log b, .log img").count() == 0


def test_an_error_is_shown_and_the_next_request_works(texts: Run, visit: Open) -> None:
    opened = visit(texts)
    opened.get_by_label("Text").fill("  ")
    opened.get_by_role("button", name="Predict").click()
    opened.get_by_role("alert").filter(has_text="The text is empty.").wait_for()
    opened.get_by_label("Text").fill("a film")
    opened.get_by_role("button", name="Predict").click()
    opened.locator(".bars").wait_for()
    assert opened.get_by_role("alert").inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(texts: Run, visit: Open, scheme: str) -> None:
    opened = visit(texts, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    opened.get_by_label("Text").fill("a film " * 60)
    opened.get_by_role("button", name="Predict").click()
    opened.locator(".bars").wait_for()
    assert opened.evaluate("document.documentElement.scrollWidth") == 390
    faint = opened.evaluate(CONTRAST)
    assert faint == []


# Texts whose contrast is below 4.5, the least of WCAG 2.2 AA, with that number.
CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parse(color).slice(0, 3)
    .map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (parse(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.body.querySelectorAll("*")].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())
    && !["SCRIPT", "NOSCRIPT"].includes(e.tagName));
  return texts.map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.textContent.trim().slice(0, 40)];
  }).filter(([contrast]) => contrast < 4.5);
}"""


def test_a_browser_sends_the_token_as_password(texts: Run, visit: Open) -> None:
    opened = visit(texts, "secret", http_credentials={"username": "", "password": "secret"})
    opened.get_by_label("Text").fill("a film")
    opened.get_by_role("button", name="Predict").click()
    opened.locator(".bars").wait_for()
    assert opened.request.get("report").status in {200, 404}


# --- without a browser -------------------------------------------------------------------------


def test_the_page_runs_its_own_script_only(texts: Run, serve: Callable[..., TestClient]) -> None:
    answer = serve(texts).get("/")
    allowed = answer.headers["content-security-policy"]
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in allowed
    assert allowed.startswith("default-src 'none'")
    assert "unsafe" not in allowed
    assert "connect-src 'self'" in allowed
    assert "frame-ancestors 'none'" in allowed


def test_the_page_names_no_other_place_and_writes_no_html() -> None:
    assert re.findall(r"(?:https?:)?//\w[^\s\"'`]*", page.PAGE.partition("<script>")[0]) == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page.PAGE)


def test_the_report_is_one_click_away(texts: Run, serve: Callable[..., TestClient]) -> None:
    client = serve(texts)
    file = texts.folder / REPORT
    assert client.get("/report").status_code == 404
    file.write_text("<!DOCTYPE html><p>good</p>", encoding="utf-8")
    answer = client.get("/report")
    file.unlink()
    assert answer.text.endswith("<p>good</p>")
    assert "script-src" not in answer.headers["content-security-policy"]
    assert 'href="report"' in client.get("/").text
