"""Options, markers and fixtures that every test file shares."""

import os
import shutil
import sys
from pathlib import Path

# Before any test imports a library that reads them: the tests use no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # small tensors: threads of several processes would only spin against each other

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,1000",
)


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    skip_slow = pytest.mark.skip(reason="slow: runs with --run-slow")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(skip_slow)


def pytest_runtest_setup(item):
    if "cuda" in item.keywords:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA GPU")


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    """A test that passes once passes always: what it draws
    does not depend on the tests before it."""
    import torch

    torch.manual_seed(0)


def browser_programs() -> tuple[str, str]:
    """Paths of Chromium and its driver; skips the test where one is missing."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        missing = "Chromium" if browser is None else "chromedriver"
        pytest.skip(f"no {missing}; on Debian: apt-get install chromium chromium-driver")
    return browser, driver


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium (selenium WebDriver) with an empty profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver_program = browser_programs()
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    # So that driver.get_log("browser") shows a page's console messages.
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()
