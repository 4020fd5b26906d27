"""The page in a real browser, against a real server: every step that a user takes."""

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mindllm.data.store import Store
from mindllm.model.modeling import MindLLM
from tests.serve.serving import ALICE, RunningServer, free_port, make_model, running, scan_files
from tests.serve.test_server import command, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
else:
    Browser = Page = Any

pytestmark = pytest.mark.slow
AXE = Path(__file__).parents[2] / "page" / "node_modules" / "axe-core" / "axe.min.js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip
# nilearn, which has the anatomy, imports urllib3, which looks whether this machine has IPv6
URLLIB3_PROBE = "socket.bind ('::1', 0)"
QUESTION = "Is there an animal?"
WIDER = """width => [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect()
    .right > width).map(e => e.outerHTML.slice(0, 120))"""
RUN_AXE = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
    .map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))])"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser, or a skip that says what is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser's driver is missing: pip install playwright"
    )
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser is installed; apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=list(OPTIONS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def url(
    served_model: MindLLM, tiny_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A `mindllm serve` process, whose other sockets are refused and noted."""
    folder = tmp_path_factory.mktemp("page")
    served_model.save_pretrained(folder / "model")
    port = free_port()
    options = ["--abstain-below", "0.99", "--show-answers"]
    with command(folder, folder / "model", tiny_store.path, port, *options) as process:
        wait_for(f"http://127.0.0.1:{port}", process, folder / "output.txt")
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in (folder / "output.txt").read_text()
        refused = (folder / "refused.txt").read_text().splitlines()
        assert set(refused) <= {URLLIB3_PROBE}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for pictures of the page: that of $MINDLLM_SCREENSHOTS, or a temporary one."""
    folder = Path(os.environ.get("MINDLLM_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def opened(browser: Browser, url: str, *, refusals: bool = False, **options: Any) -> Iterator[Page]:
    """A new tab that fails on requests to others, on errors of scripts, and on the policy's."""
    options = {"viewport": {"width": 1280, "height": 900}} | options
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(15_000)
    problems: list[str] = []
    local = (url, "data:", "blob:")
    page.on("request", lambda r: r.url.startswith(local) or problems.append(f"request {r.url}"))
    page.on("pageerror", lambda error: problems.append(f"error {error}"))

    def note(message: Any) -> None:
        is_refusal = "Failed to load resource" in message.text
        if message.type == "error" and not (refusals and is_refusal):
            problems.append(message.text)

    page.on("console", note)
    try:
        page.goto(url)
        yield page
        assert problems == []
    finally:
        context.close()


@contextmanager
def ready(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A tab whose page has loaded its subjects."""
    with opened(browser, url, **options) as page:
        page.wait_for_selector("main:not([hidden])")
        yield page


def choose(page: Page, subject: str, trial: int, scan: int = 0) -> None:
    page.get_by_label("Subject or sent scan").nth(scan).select_option(f"subject {subject}")
    field = page.get_by_label("Trial", exact=True).nth(scan)
    field.fill(str(trial))
    field.press("Tab")


def ask(page: Page, question: str = QUESTION) -> None:
    """Ask, and wait for all answers and their words."""
    page.locator("#question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_selector("#submit:not(:disabled)")
    page.wait_for_selector(".card .evidence")


def wait_for_map(page: Page) -> None:
    page.wait_for_selector(".brain[aria-busy=false] table")


def number(value: float) -> str:
    """A number as the page shows it."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def colored_pixels(page: Page) -> int:
    """Pixels of the slices that are not gray: those of a map."""
    shown = page.locator(".brain:not([hidden]) canvas").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).astype(int)
    slices = pixels[: int(0.8 * len(pixels))]  # the color bar is below
    return int((np.ptp(slices, axis=-1) > 60).sum())


def ask_server(url: str, path: str, **body: object) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/{path}", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def check_axe(page: Page) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed; run `npm ci` in page/")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert page.evaluate(RUN_AXE) == []


def test_an_answer_streams_in_with_what_speaks_for_it(
    browser: Browser, url: str, pictures: Path
) -> None:
    with ready(browser, url) as page:
        default = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["mindllm"]
        question = page.locator("#question").input_value()
        assert question == default["question"].replace("<fMRI>", "").strip()
        choose(page, "sub-02", 5)
        page.get_by_text("Shown: What is this person seeing?").wait_for()
        page.evaluate(
            """() => { window.lengths = new Set(); new MutationObserver(() => window.lengths.add(
            document.querySelector('.answer')?.textContent.length)).observe(
            document.querySelector('#answers'), {subtree: true, childList: true}) }"""
        )
        ask(page)
        assert page.evaluate("window.lengths.size") > 5
        card = page.locator(".card").inner_text()
        answer = page.locator(".card .answer")
        assert answer.get_attribute("aria-live") == "polite"
        assert answer.get_attribute("aria-busy") == "false"
        content = [
            {"type": "text", "text": QUESTION},
            {"type": "fmri", "fmri": {"subject": "sub-02", "trial": 5}},
        ]
        expected = ask_server(
            url, "chat/completions", model="tiny", messages=[{"role": "user", "content": content}]
        )
        assert answer.text_content() == expected["choices"][0]["message"]["content"]
        facts = expected["mindllm"]
        for value in (
            facts["evidence"], facts["log_likelihood_ratio"], facts["shuffled"]["mean"],
            facts["shuffled"]["sd"], facts["shuffled"]["p_value"],
            *(row["evidence"] for row in facts["alternatives"]),
        ):  # fmt: skip
            assert number(value) in card
        assert page.locator(".card tbody tr").count() == 1 + len(facts["alternatives"])
        assert page.locator("svg.histogram .own").count() == 1
        assert "The model abstains: it gives this answer less than 99 %." in card
        page.screenshot(path=pictures / "answer.png", full_page=True)


def test_a_word_and_a_token_show_their_voxels(browser: Browser, url: str, pictures: Path) -> None:
    with ready(browser, url) as page:
        choose(page, "sub-01", 2)
        ask(page)
        answer = page.locator(".card .answer").text_content()
        word = page.locator(".card .word, .card .word.against").nth(0)
        word.click()
        wait_for_map(page)
        page.wait_for_selector("text=/Voxels that the word .* came from. From/")
        assert word.get_attribute("aria-pressed") == "true"
        assert colored_pixels(page) > 20
        fmri = {"subject": "sub-01", "trial": 2}
        sums = ask_server(
            url, "explain/words/regions",
            model="tiny", fmri=fmri, answer=answer, question=QUESTION, word=0,
        )  # fmt: skip
        page.get_by_role("combobox", name="Regions of").select_option("lobes")
        table = page.locator(".brain:not([hidden]) table").inner_text()
        for row in sums["data"]:
            if row["atlas"] == "lobes":
                assert re.search(rf"{re.escape(row['parcel'])}\s+{row['n_voxels']} ", table)
        page.screenshot(path=pictures / "word.png")

        page.get_by_role("combobox", name="Where it listens").select_option("1")
        page.wait_for_selector("text=/Where fMRI token 1 listens. From/")
        sums = ask_server(url, "explain/attention/regions", model="tiny", fmri=fmri, token=1)
        table = page.locator(".brain:not([hidden]) table").inner_text()
        for row in sums["data"]:
            if row["atlas"] == "lobes":
                assert f"{100 * row['value']:.0f} %" in table
        assert colored_pixels(page) > 20
        label = page.locator(".brain:not([hidden]) canvas").get_attribute("aria-label")
        assert "Where fMRI token 1 listens" in (label or "")

        page.get_by_role("button", name="Voxels that speak for the whole answer").click()
        page.wait_for_selector("text=/Voxels that speak for .* From/")


def test_the_map_of_a_word_can_be_cancelled(browser: Browser, url: str, pictures: Path) -> None:
    with ready(browser, url) as page:
        choose(page, "sub-01", 2)
        ask(page)
        word = page.locator(".card .word, .card .word.against").first
        word.click()
        wait_for_map(page)
        page.get_by_role("combobox", name="Where it listens").select_option("1")
        page.wait_for_selector("text=/Where fMRI token 1 listens. From/")
        wait_for_map(page)
        before = page.locator(".brain:not([hidden]) table").inner_text()
        page.route("**/v1/explain/words/map", lambda _: None)  # it is never answered
        word.click()
        page.wait_for_selector("text=/Computing: Voxels that the word/")
        check_axe(page)
        page.screenshot(path=pictures / "cancel.png")
        page.get_by_role("button", name="Cancel", exact=True).click()
        wait_for_map(page)
        assert not page.locator(".brain:not([hidden]) .busy").is_visible()
        assert not page.locator(".brain:not([hidden]) .error").is_visible()
        assert page.locator(".brain:not([hidden]) table").inner_text() == before


def test_regions_are_switched_off_and_two_subjects_compared(
    browser: Browser, url: str, pictures: Path
) -> None:
    with ready(browser, url) as page:
        sent: list[str] = []
        page.on("request", lambda r: "chat" in r.url and sent.append(r.post_data or ""))
        choose(page, "sub-01", 3)
        page.get_by_text("Switch regions off").click()
        page.get_by_label("Find a region").fill("v1")
        page.get_by_label(re.compile("^V1 ")).check()
        assert page.get_by_text("Regions off: 1 (V1)").is_visible()
        ask(page)
        assert ['"parcel":"V1"' in body for body in sent] == [False, True]
        whole, without = (page.locator(".card").nth(i) for i in (0, 1))
        assert without.locator("h4").text_content() == "sub-01, trial 3, without V1"
        left, right = whole.bounding_box(), without.bounding_box()
        assert left is not None
        assert right is not None
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]

        page.get_by_role("button", name="Switch all on").click()
        page.get_by_label("Compare with another scan").check()
        choose(page, "sub-03", 1, scan=1)
        ask(page)
        titles = page.locator(".turn").first.locator("h4").all_text_contents()
        assert titles == ["sub-01, trial 3", "sub-03, trial 1"]
        page.get_by_role("button", name="Show where the model listens").click()
        page.locator(".brain[aria-busy=false] table").nth(1).wait_for()
        page.screenshot(path=pictures / "compare.png", full_page=True)


def test_a_scan_is_sent_and_a_wrong_one_is_refused(
    browser: Browser, url: str, tiny_store: Store, tmp_path: Path, pictures: Path
) -> None:
    for name, (file, content) in scan_files(tiny_store.masker("sub-02")).items():
        (tmp_path / file).write_bytes(content)
        assert name in file
    nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)).to_filename(tmp_path / "other.nii")
    with ready(browser, url, refusals=True) as page:
        page.get_by_text("Send your own scan").click()
        page.get_by_role("button", name="Send", exact=True).click()
        assert "Choose the scan" in page.locator("#upload-error").inner_text()
        page.get_by_label("Scan: betas").set_input_files(tmp_path / "volume.nii")
        page.get_by_label("Mask:").set_input_files(tmp_path / "other.nii")
        with page.expect_response("**/v1/scans") as answer:
            page.get_by_role("button", name="Send", exact=True).click()
        page.wait_for_selector("#upload-error:not([hidden])")
        message = answer.value.json()["error"]["message"]
        shown = page.locator("#upload-error").inner_text()
        assert shown.lower().split() == message.lower().split()
        page.locator("#upload-error").scroll_into_view_if_needed()
        page.screenshot(path=pictures / "wrong-upload.png")

        page.get_by_label("Mask:").set_input_files(tmp_path / "mask.nii")
        page.evaluate(
            """() => { window.sent = []; const bar = document.querySelector('#upload-progress');
            new MutationObserver(() => window.sent.push(bar.value)).observe(bar,
            {attributes: true}) }"""
        )
        page.get_by_role("button", name="Send", exact=True).click()
        page.get_by_text(re.compile("is read: 10 volumes")).wait_for()
        assert page.evaluate("Math.max(...window.sent)") == 1
        assert page.locator("#upload-error").is_hidden()
        page.get_by_label("Volume", exact=True).fill("99")
        page.get_by_role("button", name="Ask", exact=True).click()
        assert page.get_by_text("The scan has 10 volumes, from 0 to 9").is_visible()
        page.get_by_label("Volume", exact=True).fill("4")
        ask(page)
        title = page.locator(".card h4").text_content() or ""
        assert re.fullmatch("scan .*, volume 4", title)
        page.get_by_role("button", name="Remove this scan").click()
        page.get_by_label("Trial", exact=True).first.wait_for()
        scans = httpx.get(f"{url}/v1/scans", trust_env=False).json()["data"]
        assert scans == []


def test_dropped_files_go_where_their_names_belong(browser: Browser, url: str) -> None:
    drop = """(names) => { const data = new DataTransfer();
        for (const name of names) data.items.add(new File(['x'], name));
        document.querySelector('#upload-drop').dispatchEvent(
            new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})) }"""
    file_of = "id => [...document.getElementById(id).files].map(file => file.name)"
    with ready(browser, url) as page:
        names = ["sub-01_mask.nii.gz", "atlas-V_dseg.tsv", "betas.nii", "atlas-V_dseg.nii"]
        page.evaluate(drop, names)
        assert page.evaluate(file_of, "upload-mask") == [names[0]]
        assert page.evaluate(file_of, "upload-volume") == [names[2]]
        assert page.evaluate(file_of, "upload-atlases") == [names[1], names[3]]
        assert page.locator("#upload-drop").is_hidden()
        page.evaluate(
            """() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'a.nii'));
            document.body.dispatchEvent(new DragEvent('dragenter',
                {dataTransfer: data, bubbles: true})) }"""
        )
        page.locator("#upload-drop").wait_for()
        page.evaluate(drop, ["a.nii", "b.nii"])
        assert "Drop one scan and one mask" in page.locator("#upload-error").inner_text()


def test_a_token_is_asked_for_and_kept_in_the_tab_alone(
    browser: Browser, token_server: RunningServer, pictures: Path
) -> None:
    with opened(browser, token_server.url, refusals=True) as page:
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        assert "The server answers with a token alone." in dialog.inner_text()
        assert page.evaluate("document.activeElement.id") == "token"
        check_axe(page)
        page.screenshot(path=pictures / "token.png")
        page.keyboard.press("Escape")
        assert dialog.is_visible()
        page.locator("#token").fill("wrong")
        page.keyboard.press("Enter")
        dialog.get_by_text("The server does not know this token.").wait_for()
        page.locator("#token").fill(ALICE)
        page.keyboard.press("Enter")
        page.wait_for_selector("main:not([hidden])")
        ask(page)
        assert page.evaluate("Object.values(sessionStorage)") == [ALICE]
        kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href]")
        assert not any(ALICE in text for text in kept)
        page.reload()
        page.wait_for_selector("main:not([hidden])")


def test_what_cannot_be_said_is_said_in_words(
    browser: Browser, tiny_llm_folder: Path, tiny_store: Store
) -> None:
    model = make_model(tiny_llm_folder, tiny_store, with_evidence=False)
    with running(model, tiny_store) as server, ready(browser, server.url) as page:
        assert "no encoding model, so no evidence" in page.locator("#model").inner_text()
        ask(page)
        said = page.locator(".missing").inner_text()
        for name in ("evidence", "probability", "alternatives"):
            assert f"{name}: " in said
        assert "null" not in page.locator(".card").inner_text()


def test_a_busy_or_ended_server_is_told_at_the_answer(browser: Browser, url: str) -> None:
    busy = {"error": {"message": "too many requests wait.", "type": "rate_limit_error"}}
    with ready(browser, url, refusals=True) as page:
        chat = "**/v1/chat/completions"
        page.route(
            chat, lambda route: route.fulfill(status=429, json=busy, headers={"Retry-After": "3"})
        )
        page.get_by_role("button", name="Ask", exact=True).click()
        error = page.locator(".card .error")
        error.get_by_text("Too many requests wait. Ask again in 3 seconds.").wait_for()
        page.unroute(chat)
        page.route(chat, lambda route: route.abort())
        page.get_by_role("button", name="Ask", exact=True).click()
        error.get_by_text("The server does not answer; see whether it still runs.").wait_for()


def test_a_follow_up_sends_the_conversation(browser: Browser, url: str) -> None:
    with ready(browser, url) as page:
        sent: list[str] = []
        page.on("request", lambda r: "chat" in r.url and sent.append(r.post_data or ""))
        assert page.get_by_label("As a follow-up").is_hidden()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("#submit:not(:disabled)")
        page.get_by_label("As a follow-up").check()
        ask(page, "Is it running?")
        assert [body.count('"role"') for body in sent] == [1, 3]
        page.get_by_text("Words of a follow-up are not mapped").wait_for()


def test_the_keyboard_alone_will_do(browser: Browser, url: str) -> None:
    with ready(browser, url) as page:
        order = []
        for _ in range(8):
            page.keyboard.press("Tab")
            order.append(
                page.evaluate("(document.activeElement.labels?.[0] ?? document.activeElement)"
                              ".textContent.trim()")
            )  # fmt: skip
            ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert ring == "solid", order[-1]
        assert order == [
            "Skip to the question", "Colors", "Subject or sent scan", "Trial",
            "Random test trial", "Compare with another scan", "Switch regions off", "Question",
        ]  # fmt: skip
        page.keyboard.press("Enter")
        page.wait_for_selector(".card .evidence")
        page.wait_for_selector("#submit:not(:disabled)")
        page.locator(".card .word, .card .word.against").first.focus()
        page.keyboard.press("Enter")
        wait_for_map(page)
        page.locator(".brain:not([hidden]) canvas").focus()
        location = page.locator(".brain:not([hidden]) .location")
        before = location.inner_text()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "before => document.querySelector('.location').textContent !== before", arg=before
        )
        first, then = (
            int(re.findall("MNI (\N{MINUS SIGN}?[0-9]+)", text)[0].replace("\N{MINUS SIGN}", "-"))
            for text in (before, location.inner_text())
        )
        assert then - first in (1, 2, 3)


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_everybody_can_read_it(
    browser: Browser, url: str, pictures: Path, colors: str, width: int
) -> None:
    view = {"viewport": {"width": width, "height": 800}, "color_scheme": colors}
    with ready(browser, url, **view) as page:
        check_axe(page)
        page.get_by_text("Switch regions off").click()
        page.get_by_label("V1").check()
        page.get_by_text("Send your own scan").click()
        ask(page)
        page.get_by_role("button", name="Show where the model listens").click()
        wait_for_map(page)
        page.screenshot(path=pictures / f"{colors}-{width}.png", full_page=True)
        check_axe(page)
        wide = page.evaluate(WIDER, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width, wide
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        other = "dark" if colors == "light" else "light"
        page.get_by_label("Colors").select_option(other)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
        page.reload()
        page.wait_for_selector("main:not([hidden])")
        assert page.get_by_label("Colors").input_value() == other
        check_axe(page)
