"""The app in a real browser: compare, cancel, look inside, train, download, bring a solver."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.browser


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of a running app with an empty folder of runs."""
    pytest.importorskip("selenium.webdriver")
    from conftest import browser_programs

    browser_programs()
    port, folder = free_port(), tmp_path_factory.mktemp("app")
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    with open(folder / "log", "w") as log:
        command = [
            sys.executable,
            "-m",
            "gas_nb.app",
            "--port",
            str(port),
            "--runs",
            str(folder / "runs"),
            "--device",
            "cpu",
        ]
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield address
        server.terminate()
        server.wait(20)
    assert "Traceback" not in (folder / "log").read_text()


class Page:
    """A few verbs for what a visitor does."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def wait(self, condition, what, seconds=90):
        if not self.soon(condition, seconds):
            raise AssertionError(
                f"waited {seconds} s for {what}; the page says: {self.text('body')[:1500]}"
            )

    def wait_for(self, selector, words, seconds=90):
        self.wait(lambda: words in self.text(selector), f"{words!r} in {selector}", seconds)

    def click(self, selector):
        self.wait(
            lambda: self.js("return !!document.querySelector(arguments[0])", selector), selector, 20
        )
        self.js("document.querySelector(arguments[0]).click()", selector)

    def tab(self, name):
        self.js(
            "for (const b of document.querySelectorAll('.tab-container "
            "button[role=tab], .overflow-dropdown button')) if "
            "(b.innerText.trim() == arguments[0]) { b.click(); break; }",
            name,
        )

    def choose(self, label, value):
        """Pick an entry of the visible menu that carries this label, by keyboard.

        A menu reads its keys a frame late: Enter before the typed text
        has been read, or Tab before Enter has been, leaves the old
        entry. So each key waits for what it does, as a person's does.
        """
        from selenium.webdriver.common.keys import Keys

        field = next(
            e
            for e in self.driver.find_elements("css selector", f'input[aria-label="{label}"]')
            if e.is_displayed()
        )
        marked = (
            "const id = arguments[0].getAttribute('aria-activedescendant'); "
            "return id && document.getElementById(id)?.ariaLabel"
        )
        chosen = "return [arguments[0].value, arguments[0].getAttribute('aria-expanded')]"
        end = time.monotonic() + 30
        while self.js(chosen, field) != [value, "false"]:
            assert time.monotonic() < end, (
                f"{label} stays at {self.js(chosen, field)}, {value!r} is not to be had"
            )
            field.click()
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(value)
            if self.soon(lambda: self.js(marked, field) == value):
                field.send_keys(Keys.ENTER)
                self.soon(lambda: self.js(chosen, field) == [value, "false"])
            else:
                field.send_keys(Keys.ESCAPE, Keys.TAB)

    def soon(self, condition, seconds=2):
        end = time.monotonic() + seconds
        while not (met := condition()) and time.monotonic() < end:
            time.sleep(0.02)
        return met

    def number(self, label, value):
        from selenium.webdriver.common.keys import Keys

        field = next(
            e
            for e in self.driver.find_elements("css selector", f'input[aria-label="{label}"]')
            if e.is_displayed()
        )
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value))
        field.send_keys(Keys.TAB)

    def pictures(self):
        return self.js("return [...document.querySelectorAll('#grid button img')].map(i => i.src)")


def first_answer(driver, site):
    page = Page(driver, site)
    page.wait_for("#status", "pictures in")
    return page


def test_first_picture_and_then_the_grid(browser, site):
    page = Page(browser, site)
    page.wait(lambda: page.pictures(), "a picture", 20)
    page.wait_for("#status", "pictures in")
    labels = page.js(
        "return [...document.querySelectorAll('#grid "
        "button')].map(b => b.getAttribute('aria-label'))"
    )
    assert len(labels) >= 9 and all(
        re.search(r"evaluations, L1 \d\.\d+ · \d+ ms", text) for text in labels
    )
    assert "Teacher, 20 evaluations" in page.text("#grid")
    assert page.js(
        "return [...document.querySelectorAll('#grid "
        "img')].every(i => i.complete && i.naturalWidth > 30)"
    )
    elsewhere = [
        u
        for u in page.js("return performance.getEntriesByType('resource').map(r => r.name)")
        if not u.startswith((site, "data:", "blob:"))
    ]
    assert elsewhere == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_choose_generate_and_repeat(browser, site):
    page = first_answer(browser, site)
    page.choose("Teacher", "Digits (8 x 8)")
    page.number("Seed", 41)
    page.click("#generate")
    page.wait(
        lambda: page.js("return document.querySelector('#grid .goal img')?.naturalWidth") == 35,
        "digits",
    )
    page.wait_for("#status", "pictures in")
    once = page.pictures()
    page.number("Seed", 42)
    page.click("#generate")
    page.wait(
        lambda: (
            page.pictures() and page.pictures() != once and "pictures in" in page.text("#status")
        ),
        "other pictures",
    )
    page.number("Seed", 41)
    page.click("#generate")
    page.wait(lambda: page.pictures() == once, "the same pictures again")


def test_look_closer_with_the_keyboard_and_blend(browser, site):
    from selenium.webdriver.common.keys import Keys

    page = first_answer(browser, site)
    button = browser.find_element("css selector", '#grid button[data-cell="unipc|4"]')
    button.send_keys(Keys.ENTER)
    page.wait_for("#detail", "UniPC, 4 evaluations", 20)
    assert page.js("return document.querySelectorAll('#detail img').length") == 3
    opacity = "return getComputedStyle(document.querySelector('#detail .stack img + img')).opacity"
    assert float(page.js(opacity)) == 0
    slider = browser.find_element("css selector", "#detail input[type=range]")
    slider.send_keys(Keys.END)
    assert float(page.js(opacity)) == 1


def test_the_tradeoff_opens_on_results_that_ship(browser, site):
    page = first_answer(browser, site)
    page.tab("Trade-off")
    page.wait_for("body", "results that ship with the package", 60)
    drawn = "return [...document.querySelectorAll('.legendtext')].map(t => t.textContent)"
    page.wait(lambda: {"UniPC", "GS"} <= set(page.js(drawn)), "lines of the solvers", 60)


def test_cancel_keeps_what_is_there(browser, site):
    page = first_answer(browser, site)
    page.number("Seed", 1234)
    page.click("#generate")
    page.wait_for("#status", "of 16 pictures", 30)
    page.click("#cancel")
    page.wait_for("#status", "cancelled", 20)
    assert 0 < len(page.pictures()) < 9
    page.number("Seed", 0)
    page.click("#generate")
    page.wait_for("#status", "pictures in")


def test_errors_are_words_in_the_page(browser, site):
    page = first_answer(browser, site)
    page.number("Seed", 2**31)
    page.click("#generate")
    page.wait_for("#status", "give a whole number from 0", 20)
    assert page.js("return document.querySelector('#status [role=alert]') !== null")
    assert "Traceback" not in page.text("body")


def test_two_visitors_get_their_own(browser, site, tmp_path):
    from selenium import webdriver
    from conftest import CHROMIUM_FLAGS, browser_programs

    program, driver_program = browser_programs()
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path / 'second'}"):
        options.add_argument(flag)
    other = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    try:
        pages = [first_answer(browser, site), first_answer(other, site)]
        assert pages[0].pictures() == pages[1].pictures()
        for page, seed in zip(pages, (7, 8)):
            page.choose("Teacher", "Digits (8 x 8)")
            page.number("Seed", seed)
        for page in pages:
            page.click("#generate")
        for page in pages:
            page.wait(
                lambda: (
                    page.js("return document.querySelector('#grid .goal img')?.naturalWidth") == 35
                    and "pictures in" in page.text("#status")
                ),
                "digits",
            )
        noise = [page.js("return document.querySelector('#grid .noise img').src") for page in pages]
        assert noise[0] != noise[1] and not set(pages[0].pictures()) & set(pages[1].pictures())
    finally:
        other.quit()


def test_train_download_and_bring_back(browser, site, tmp_path):
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", dict(behavior="allow", downloadPath=str(tmp_path))
    )
    page = first_answer(browser, site)
    page.tab("Train")
    page.click("#train")
    page.wait_for("#train-status", "kept in digits-nfe4")
    page.wait(
        lambda: page.js("return !!document.querySelector('.js-plotly-plot .scatterlayer')"),
        "live curves",
        20,
    )
    page.tab("Compare")
    page.choose("Teacher", "Digits (8 x 8)")
    page.click("#generate")
    page.wait(
        lambda: (
            page.js("return document.querySelectorAll('#grid button[data-cell=\"gas|4\"]').length")
            == 1
        ),
        "the trained solver in the grid",
    )
    page.tab("Download")
    page.choose("Teacher", "Digits (8 x 8)")
    page.choose("Solver", "GAS")
    page.click("#prepare")
    page.wait_for("#download-status", "ready", 30)
    page.js(
        'document.querySelector(\'#files a[href*=".json"], #files a[download*=".json"]\').click()'
    )
    page.wait(lambda: list(tmp_path.glob("*.json")), "the downloaded file", 20)
    solver = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert solver["format"] == "gas_nb.tableau" and solver["nfe"] == 4
    browser.find_element("css selector", "#upload input[type=file]").send_keys(
        str(next(tmp_path.glob("*.json")))
    )
    page.wait_for("#download-status", "now among the solvers", 30)


def test_a_bad_upload_is_refused_in_words(browser, site, tmp_path):
    page = first_answer(browser, site)
    page.tab("Download")
    bad = tmp_path / "bad.json"
    bad.write_text('{"format": "gas_nb.tableau", "version": 1, "nfe": 2, "times": [1, 0.5, 0.7]}')
    page.wait(
        lambda: browser.find_elements("css selector", "#upload input[type=file]"),
        "the upload field",
        20,
    )
    browser.find_element("css selector", "#upload input[type=file]").send_keys(str(bad))
    page.wait_for("#download-status", "bad.json: offsets must be a list of 2 numbers", 30)
    assert "Traceback" not in page.text("body")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_only(browser, site, theme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        dict(width=390, height=844, deviceScaleFactor=1, mobile=True),
    )
    page = first_answer(browser, f"{site}/?__theme={theme}")
    assert page.js("return document.documentElement.scrollWidth") <= 390
    assert (
        page.js("return document.querySelector('#grid .goal').getBoundingClientRect().right") <= 390
    )
    assert page.js("return document.body.classList.contains('dark')") == (theme == "dark")


def test_nothing_outside_the_runs_can_be_read(site):
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../etc/passwd",
        f"/gradio_api/file={ROOT}/settings.ini",
        "/file=/etc/hostname",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(site + path, timeout=10)
        assert refused.value.code in (403, 404)


@pytest.mark.slow
def test_the_right_password_opens_the_page_and_a_wrong_one_does_not(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from app_hour import start_server

    process, address = start_server(tmp_path, "--user", "ada", GAS_NB_PASSWORD="open sesame")
    try:
        page = Page(browser, address)
        fields = "return document.querySelectorAll('input').length"
        page.wait(lambda: page.js(fields) == 2, "name and password")

        def come_in(user, password):
            name, secret = browser.find_elements("css selector", "input")
            assert secret.get_attribute("type") == "password"
            for field, text in ((name, user), (secret, password)):
                field.send_keys(Keys.CONTROL, "a")
                field.send_keys(text)
            page.js("[...document.querySelectorAll('button')].at(-1).click()")

        for user, password in (("ada", "open"), ("bob", "open sesame")):
            come_in(user, password)
            page.wait_for("body", "Incorrect", 20)
            assert "DPM-Solver" not in page.text("body") and page.js(fields) == 2
            browser.get(f"{address}/config")
            assert "DPM-Solver" not in page.text("body")
            browser.get(address)
            page.wait(lambda: page.js(fields) == 2, "name and password")
        come_in("ada", "open sesame")
        page.wait_for("#status", "pictures in")
        assert page.pictures() and "sesame" not in browser.page_source
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in (tmp_path / "log").read_text()
