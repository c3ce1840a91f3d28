"""Take the pictures of the front page: results.png, app.png and app-phone.png in nbs/images.

results.png is the figure of the newest finished run of `make train` in --runs. The app is started,
photographed by a headless Chromium and stopped again.
"""

import argparse
import base64
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from gas_nb.runs import runs_in
from gas_nb.runtime.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
CELL = "#grid button[aria-label^='GS, 4 evaluations']"


@contextmanager
def browser(width: int, height: int, dark: bool = False):
    """A headless Chromium whose window is `width` x `height` CSS pixels."""
    from selenium import webdriver

    program, driver_program = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (program and driver_program):
        raise SystemExit(
            "no Chromium or chromedriver; on Debian: apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = program
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
        try:
            metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[scheme]))
            yield driver
        finally:
            driver.quit()


@contextmanager
def server(command: list[str]):
    """The address of the server that `command` starts, with {port} filled in."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        quiet = dict(os.environ, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
        process = subprocess.Popen(
            [part.format(port=port) for part in command],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=quiet,
        )
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=2).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        log.seek(0)
                        raise SystemExit(f"{command[2]} ended: {log.read()[-2000:]}") from None
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait(driver, condition: str, what: str, seconds: float = 180) -> None:
    """Until the script `condition` returns something true."""
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return {condition}"):
        if time.monotonic() > end:
            raise SystemExit(
                f"waited {seconds} s for {what}: "
                f"{driver.execute_script('return document.body.innerText')[:800]}"
            )
        time.sleep(0.2)
    time.sleep(1.0)  # fonts and transitions


def shot(driver, height: float | None = None, scale: float = 1) -> Image.Image:
    """The page from its top, as high as its content or
    `height`; `scale` pixels for each of its own."""
    width = driver.execute_script("return window.innerWidth")
    height = height or driver.execute_script(
        "return document.querySelector('main, body').getBoundingClientRect().bottom + scrollY"
    )
    clip = dict(x=0, y=0, width=width, height=height, scale=scale)
    data = driver.execute_cdp_cmd(
        "Page.captureScreenshot", dict(format="png", clip=clip, captureBeyondViewport=True)
    )["data"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def keep(picture: Image.Image, out: Path) -> None:
    with atomic_path(out) as temporary:
        picture.quantize(256, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)
    print(out.relative_to(ROOT) if out.is_relative_to(ROOT) else out, picture.size)


def results_picture(svg: Path, scale: float = 1) -> Image.Image:
    """An SVG drawn at `scale` times its own size."""
    with browser(1500, 900) as driver:
        driver.get(svg.resolve().as_uri())
        width, height = driver.execute_script(
            "const e = document.documentElement; return "
            "[e.width.baseVal.value, e.height.baseVal.value]"
        )
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            dict(width=int(width), height=int(height), deviceScaleFactor=1, mobile=False),
        )
        driver.get(svg.resolve().as_uri())
        return shot(driver, int(height), scale)


def app_wide(address: str) -> Image.Image:
    """The tab Compare with one cell in large."""
    with browser(1262, 900) as driver:
        driver.get(address)
        wait(
            driver,
            "document.querySelector('#status')?.innerText.includes('pictures in')",
            "the grid",
        )
        driver.execute_script(f'document.querySelector("{CELL}").click()')
        wait(
            driver, "document.body.innerText.includes('difference to the teacher')", "the error map"
        )
        return shot(driver)


def app_phone(address: str, height: int = 1540) -> Image.Image:
    """The tabs Compare and Look inside at the width of a phone, in dark colours, side by side."""
    pictures = []
    with browser(390, 844, dark=True) as driver:
        driver.get(address + "/?__theme=dark")
        wait(
            driver,
            "document.querySelector('#status')?.innerText.includes('pictures in')",
            "the grid",
        )
        pictures.append(shot(driver, height))
        tabs = "[...document.querySelectorAll('button[role=tab]')]"
        inside = f"{tabs}.find(b => b.innerText.trim() == 'Look inside')"
        driver.execute_script(f"{inside}.click()")
        wait(
            driver,
            "document.querySelectorAll('.js-plotly-plot .main-svg').length > 3",
            "the figures",
        )
        pictures.append(shot(driver, height))
    sheet = Image.new("RGB", (2 * 390 + 20, height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * 410, 0))
    return sheet


def newest(runs: Path, teacher: str, nfe: int) -> Path:
    """The picture of the newest finished run that has one."""
    named = [run for run in runs_in(runs) if run.folder.name.startswith(f"{teacher}-nfe{nfe}-")]
    pictures = [run.picture for run in named if run.finished and run.picture.is_file()]
    if not pictures:
        raise SystemExit(
            f"no finished run of {teacher} with {nfe} evaluations in {runs}: `make train` makes one"
        )
    return max(pictures, key=lambda picture: picture.stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=ROOT / "runs",
        help="where `make train` left its run (default: runs)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "nbs" / "images")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("results", "app", "app-phone"),
        default=["results", "app", "app-phone"],
    )
    a = parser.parse_args()
    if "results" in a.only:
        keep(results_picture(newest(a.runs, "fmnist", 4), 1.6), a.out / "results.png")
    if {"app", "app-phone"} & set(a.only):
        with (
            tempfile.TemporaryDirectory() as empty,
            server(
                [
                    sys.executable,
                    "-m",
                    "gas_nb.app",
                    "--port",
                    "{port}",
                    "--runs",
                    empty,
                    "--device",
                    "cpu",
                ]
            ) as address,
        ):
            for name, take in (("app", app_wide), ("app-phone", app_phone)):
                if name in a.only:
                    keep(take(address), a.out / f"{name}.png")


if __name__ == "__main__":
    main()
