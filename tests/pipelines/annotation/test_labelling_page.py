"""The labelling page in a real browser (Debian's chromium, headless), up to the pulled vote."""

import os
import shutil

import label_studio_server
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pipelines.annotation.campaign import CampaignPlan, Inline, Pair, plan_tasks
from pipelines.annotation.label_studio import LabelStudio
from pipelines.annotation.sync import pull, push
from pipelines.annotation.votes import read_votes
from pipelines.storage.images import encode_png

pytestmark = pytest.mark.labelstudio
PATIENCE = 90  # seconds: the page's script is large


@pytest.fixture
def browser(tmp_path):
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1180,980")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    service = webdriver.ChromeService(driver)
    window = webdriver.Chrome(options=options, service=service)
    yield window
    window.quit()


def picture(key: str) -> bytes:
    """A crop of a photograph of scikit-image (a stronger contrast for the changed one)."""
    from skimage.data import coffee

    pixels = coffee()[40:340:2, 100:500:2]
    if key == PAIR.key:
        pixels = np.clip((pixels.astype(float) - 110) * 1.6 + 128, 0, 255).astype(np.uint8)
    return encode_png(np.ascontiguousarray(pixels))


PAIR = Pair("a" * 16, "b" * 16)


def log_in(browser, url: str) -> None:
    browser.get(f"{url}/user/login/")
    browser.find_element(By.NAME, "email").send_keys(label_studio_server.EMAIL)
    field = browser.find_element(By.NAME, "password")
    field.send_keys(label_studio_server.PASSWORD)
    field.submit()
    WebDriverWait(browser, PATIENCE).until(lambda b: "/login" not in b.current_url)


def test_a_vote_in_the_browser_arrives(running, browser, tmp_path):
    server = LabelStudio(running.url, label_studio_server.TOKEN)
    plan = CampaignPlan("Browser", 3, 0, 0, ("colour", "exposure", "blur", "noise"), 0)
    project = push(server, plan, plan_tasks([PAIR], plan), picture, Inline())["project"]
    task = next(server.tasks(project, ("id",), votes=False))["id"]
    log_in(browser, running.url)
    browser.get(f"{running.url}/projects/{project}/data?task={task}")
    wait = WebDriverWait(browser, PATIENCE)

    def shown(window) -> list:
        """Boxes of the task's pictures, of one layout, once both are decoded and stand still.

        The page moves them while it builds: boxes read one by one belong to different moments.
        """
        found = window.execute_script(
            "return [...document.querySelectorAll('img')].filter(i => i.naturalWidth === 200)"
            ".map(i => i.getBoundingClientRect().toJSON()).filter(box => box.width > 200)"
        )
        still = found == seen
        seen[:] = found
        return found if still and len(found) == 2 else []

    seen: list = []
    one, two = wait.until(shown)
    assert abs(one["y"] - two["y"]) < 5  # side by side
    assert one["x"] + one["width"] <= two["x"] + 1
    titles = browser.find_element(By.TAG_NAME, "body").text
    assert "ORIGINAL" in titles
    assert "CHANGED" in titles

    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    slider.send_keys(*[Keys.ARROW_RIGHT] * 5)  # from the middle, half a point each
    for label in ("enhanced", "colour"):
        path = f"//label[starts-with(normalize-space(.), '{label}')]"
        browser.find_element(By.XPATH, path).click()
    target = os.environ.get("VENEER_SCREENSHOT")  # how docs/annotation.png is made
    if target:
        browser.save_screenshot(target)
    browser.find_element(By.XPATH, "//button[normalize-space(.)='Submit']").click()
    wait.until(lambda _: pull(server, plan.name, tmp_path / "votes.parquet")["valid"] == 1)
    (row,) = read_votes(tmp_path / "votes.parquet").to_pylist()
    assert (row["key"], row["score"], row["verdict"]) == (PAIR.key, 7.5, "enhanced")
    assert row["artefacts"] == ["colour"]
    assert row["reason"] is None
    assert row["seconds"] > 0
