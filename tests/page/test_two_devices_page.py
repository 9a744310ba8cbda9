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
    """The page of two new devices, open in a new browser."""
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


def until(page: Any, holds: Any) -> None:
    """Wait for what another process does."""
    WebDriverWait(page, PATIENCE, poll_frequency=0.1).until(lambda _: holds())


def shown(page: Any, device: str) -> list[str]:
    """The messages on one device, read at one moment."""
    script = "return [...document.querySelectorAll(arguments[0])].map(row => row.textContent)"
    found: list[str] = page.execute_script(script, f"#{device} .messages li")
    return [text.removesuffix(" (not sent yet)") for text in found]


def pending(page: Any, device: str) -> int:
    """The pending count on one device."""
    return int(page.find_element(By.CSS_SELECTOR, f"#{device} .count").text)


def state(page: Any, device: str) -> str:
    """What a device says about its server."""
    return str(page.find_element(By.CSS_SELECTOR, f"#{device} .state").text)


def say(page: Any, device: str, text: str) -> None:
    """Type and press Enter, as a person does."""
    page.find_element(By.CSS_SELECTOR, f"#{device} input").send_keys(text, Keys.ENTER)
    until(page, lambda: any(f"You said “{text}”" in line for line in shown(page, device)))


def switch(page: Any, device: str) -> None:
    """Turn the network switch with the keyboard."""
    toggle = page.find_element(By.CSS_SELECTOR, f"#{device} .switch")
    before = toggle.get_attribute("aria-checked")
    toggle.send_keys(Keys.SPACE)
    until(page, lambda: toggle.get_attribute("aria-checked") != before)


def keep(page: Any, name: str) -> None:
    """A picture for the documentation, where `SCREENS` says where to."""
    if os.environ.get("SCREENS"):
        assert page.save_screenshot(str(Path(os.environ["SCREENS"]) / f"{name}.png"))


def test_two_devices_follow_each_other_part_and_meet(page: Any) -> None:
    """A cut device goes on and counts what waits; once connected both show one history."""
    say(page, "phone", "We go to Oslo.")
    until(page, lambda: len(shown(page, "laptop")) == 2)
    until(page, lambda: pending(page, "phone") == 0 and state(page, "phone") == "online")

    switch(page, "phone")
    say(page, "phone", "By train.")
    say(page, "laptop", "On Friday.")
    until(page, lambda: state(page, "phone") == "offline")
    assert pending(page, "phone") == 2
    assert not any("By train" in text for text in shown(page, "laptop"))
    assert not any("On Friday" in text for text in shown(page, "phone"))
    keep(page, "page-apart")

    switch(page, "phone")
    until(page, lambda: pending(page, "phone") == 0 and pending(page, "laptop") == 0)
    until(page, lambda: len(shown(page, "phone")) == len(shown(page, "laptop")) == 6)
    assert shown(page, "phone") == shown(page, "laptop")
    assert shown(page, "phone")[0] == "We go to Oslo."


def test_words_are_shown_as_words(page: Any) -> None:
    """What looks like HTML is text, on both devices."""
    say(page, "phone", "<img src=x onerror=alert(1)>")
    until(page, lambda: len(shown(page, "laptop")) == 2)
    assert page.find_elements(By.CSS_SELECTOR, ".messages img") == []
    assert shown(page, "laptop")[0] == "<img src=x onerror=alert(1)>"


def test_every_control_has_a_name(page: Any) -> None:
    """Inputs, buttons and lists tell a screen reader what they are, and of which device."""
    for element in page.find_elements(By.CSS_SELECTOR, "input, button, ol"):
        assert element.accessible_name, element.get_attribute("outerHTML")
    names = [e.accessible_name for e in page.find_elements(By.CSS_SELECTOR, "[role=switch]")]
    assert names == ["Network of the phone", "Network of the laptop"]
