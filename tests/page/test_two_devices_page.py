"""The page with two devices, in a real headless Chromium: `make test-page`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.page
ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "examples" / "chat_service" / "side_by_side.py"
PATIENCE = 30
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1200,820"
).split()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """Open the page of two new devices in a new browser."""
    browser_path, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser_path, "install Debian's packages chromium and chromium-driver"
    assert driver_path, "install Debian's package chromium-driver"
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as serving:
        try:
            assert serving.stdout is not None
            address = serving.stdout.readline().split()[-1]
            options = webdriver.ChromeOptions()
            options.binary_location = browser_path
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]:
                options.add_argument(flag)
            service = webdriver.ChromeService(driver_path)
            browser = webdriver.Chrome(options=options, service=service)
            try:
                browser.get(address)
                yield browser
                assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
            finally:
                browser.quit()
        finally:
            serving.terminate()


def wait_until(page: Any, holds: Any) -> None:
    """Wait for a state that another process produces."""
    WebDriverWait(page, PATIENCE, poll_frequency=0.1).until(lambda _: holds())


def shown_messages(page: Any, device: str) -> list[str]:
    """Return the messages on one device, read together."""
    script = "return [...document.querySelectorAll(arguments[0])].map(row => row.textContent)"
    found: list[str] = page.execute_script(script, f"#{device} .messages li")
    return [text.removesuffix(" (not sent yet)") for text in found]


def pending(page: Any, device: str) -> int:
    """Return the pending count on one device."""
    return int(page.find_element(By.CSS_SELECTOR, f"#{device} .count").text)


def state(page: Any, device: str) -> str:
    """Return the server state that a device shows."""
    return str(page.find_element(By.CSS_SELECTOR, f"#{device} .state").text)


def type_message(page: Any, device: str, text: str) -> None:
    """Type and press Enter, as a person does."""
    page.find_element(By.CSS_SELECTOR, f"#{device} input").send_keys(text, Keys.ENTER)
    wait_until(
        page, lambda: any(f"You said “{text}”" in line for line in shown_messages(page, device))
    )


def toggle_network(page: Any, device: str) -> None:
    """Toggle the network switch with the keyboard."""
    toggle = page.find_element(By.CSS_SELECTOR, f"#{device} .switch")
    before = toggle.get_attribute("aria-checked")
    toggle.send_keys(Keys.SPACE)
    wait_until(page, lambda: toggle.get_attribute("aria-checked") != before)


def save_screenshot(page: Any, name: str) -> None:
    """Save a picture for the documentation in the directory `SCREENS`, if it is set."""
    if os.environ.get("SCREENS"):
        assert page.save_screenshot(str(Path(os.environ["SCREENS"]) / f"{name}.png"))


def test_two_devices_disconnect_and_converge(page: Any) -> None:
    """A disconnected device works and counts its pending items, and after the reconnect both show
    one history."""
    type_message(page, "phone", "We go to Oslo.")
    wait_until(page, lambda: len(shown_messages(page, "laptop")) == 2)
    wait_until(page, lambda: pending(page, "phone") == 0 and state(page, "phone") == "online")

    toggle_network(page, "phone")
    type_message(page, "phone", "By train.")
    type_message(page, "laptop", "On Friday.")
    wait_until(page, lambda: state(page, "phone") == "offline")
    assert pending(page, "phone") == 2
    assert not any("By train" in text for text in shown_messages(page, "laptop"))
    assert not any("On Friday" in text for text in shown_messages(page, "phone"))
    save_screenshot(page, "page-apart")

    toggle_network(page, "phone")
    wait_until(page, lambda: pending(page, "phone") == 0 and pending(page, "laptop") == 0)
    wait_until(
        page, lambda: len(shown_messages(page, "phone")) == len(shown_messages(page, "laptop")) == 6
    )
    assert shown_messages(page, "phone") == shown_messages(page, "laptop")
    assert shown_messages(page, "phone")[0] == "We go to Oslo."


def test_html_in_a_message_is_shown_as_text(page: Any) -> None:
    """Text that looks like HTML is shown literally on both devices."""
    type_message(page, "phone", "<img src=x onerror=alert(1)>")
    wait_until(page, lambda: len(shown_messages(page, "laptop")) == 2)
    assert page.find_elements(By.CSS_SELECTOR, ".messages img") == []
    assert shown_messages(page, "laptop")[0] == "<img src=x onerror=alert(1)>"


def test_every_control_has_an_accessible_name(page: Any) -> None:
    """Inputs, buttons and lists have a name for a screen reader, with their device."""
    for element in page.find_elements(By.CSS_SELECTOR, "input, button, ol"):
        assert element.accessible_name, element.get_attribute("outerHTML")
    names = [e.accessible_name for e in page.find_elements(By.CSS_SELECTOR, "[role=switch]")]
    assert names == ["Network of the phone", "Network of the laptop"]
