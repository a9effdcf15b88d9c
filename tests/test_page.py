"""`exposure ui` as people meet it: the real command, the real server, a real Chromium."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from exposure.client import command
from exposure.client.sample import make_sample
from exposure.client.triton import Client

# What Python reaches for by itself, beside what the browser does: each address that is connected to, or looked up.
LISTENER = """
import os, sys
def told(event, values):
    host = None
    if event == "socket.connect" and isinstance(values[1], tuple):  # others are files
        host = values[1][0]
    if event == "socket.getaddrinfo":
        host = values[0]
    if host is not None:
        with open(os.environ["REACHED"], "a") as log:
            log.write(f"{host}\\n")
sys.addaudithook(told)
"""
HERE = {"127.0.0.1", "localhost", "::1"}
PATIENCE_S = 30

in_a_browser = pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="chromium and chromium-driver are not here: the page is not tried",
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample")).dark


@dataclass
class Page:
    """A running `exposure ui`. folder: its TMPDIR; reached: the addresses that it has spoken to."""

    url: str
    process: subprocess.Popen[bytes]
    folder: Path
    reached: Path

    def end(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One for all tests; the last one ends it."""
    around = tmp_path_factory.mktemp("around")
    folder, reached = tmp_path_factory.mktemp("temporary"), around / "reached"
    (around / "sitecustomize.py").write_text(LISTENER)
    environment = {"TMPDIR": str(folder), "PYTHONPATH": str(around), "REACHED": str(reached)}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://192.0.2.1:9")  # nobody is there
    with begun(address, "127.0.0.1", environment | proxies) as (url, process):
        yield Page(url, process, folder, reached)


@contextlib.contextmanager
def begun(server: str, host: str, environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`exposure ui` on a free port of `host`, and where the page is."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    flags = ["--server", server, "--host", host, "--port", str(port)]
    arguments = [sys.executable, "-m", "exposure.client.command", "ui", *flags]
    with subprocess.Popen(arguments, env=os.environ | environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
            assert process.stdout.readline().decode() == f"the page is at {url}; stop with Ctrl-C\n"
            yield url, process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)  # leaves no temporary files behind
            finally:
                process.kill()


def asked(url: str, headers: dict[str, str], path: str = "", body: bytes | None = None) -> tuple[int, Message, str]:
    """Status, headers and text of an answer, whichever it is."""
    request = urllib.request.Request(url + path, body, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


class Browser:
    """Chromium without a screen, on the page."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def until(self, what: Callable[[], Any]) -> Any:
        """The first answer that is something."""
        return WebDriverWait(self.driver, PATIENCE_S, 0.1).until(lambda _: what())

    def all(self, selector: str) -> Any:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.until(lambda: self.all(selector))[0]

    def drop(self, path: Path) -> str:
        """Give it a file; what is told of it."""
        for remove in self.all("#upload button[aria-label='Clear']"):
            remove.click()
            self.until(lambda: not self.told())
        self.one("#upload input[type=file]").send_keys(str(path))
        return str(self.until(self.told))

    def enter(self, selector: str, number: str) -> None:
        """Type into a field that is there to be seen."""
        field = self.one(selector)
        self.until(field.is_displayed)
        field.clear()
        field.send_keys(number)

    def told(self) -> str:
        return str(self.one("#told textarea").get_property("value"))

    def script(self, body: str) -> Any:
        return self.driver.execute_script(body)

    def requests(self) -> list[str]:
        """The addresses of all requests so far that went over a network."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [event["params"] for event in events if event["method"].startswith("Network.")]
        found = [one["request"]["url"] for one in asked if "request" in one]
        found += [one["url"] for one in asked if "url" in one]  # sockets
        return [url for url in found if not url.startswith(("data:", "blob:"))]


@pytest.fixture(scope="module")
def browser(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1100,600"):
        options.add_argument(f"--{argument}")
    downloads = tmp_path_factory.mktemp("downloads")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        driver.get(page.url)
        yield Browser(driver, downloads)
    finally:
        driver.quit()


def test_other_sites_are_refused(page: Page) -> None:
    """By the name that a browser asks for, and by the one whose page has it ask."""
    port = page.url.rstrip("/").rpartition(":")[2]
    status, headers, _ = asked(page.url, {})
    assert status == 200
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    for own in ("127.0.0.1", "localhost", "[::1]", "192.168.0.7", socket.gethostname()):
        assert asked(page.url, {"Host": f"{own}:{port}", "Origin": f"http://{own}:{port}"})[0] == 200
    for other in ("evil.example", "127.0.0.1.evil.example", "[::1", "", "127.1"):
        assert asked(page.url, {"Host": f"{other}:{port}"})[0] == 403
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        status, _, told = asked(page.url, {"Origin": origin}, "gradio_api/upload", b"")
        assert (status, told) == (403, "the page answers only where it was opened: see exposure ui --host\n")


def test_uploads_have_an_end(page: Page) -> None:
    """What the page was told when it was loaded; Gradio refuses more."""
    config = json.loads(asked(page.url, {}, "config")[2])
    assert config["max_file_size"] == 1 << 30
    assert asked(page.url, {"Content-Length": str(1100 << 20)}, "gradio_api/upload", b"")[0] == 413


def test_uploads_that_broke_off_are_removed(page: Page) -> None:
    """When the next one begins: not those that may still go on."""
    (folder,) = (place for place in page.folder.iterdir() if place.is_dir() and "exposure" in place.name)
    broken, going_on = folder / "tmpbroken", folder / "tmpgoing"
    for part in (broken, going_on):
        part.write_bytes(b"half")
    os.utime(broken, (time.time() - 3600,) * 2)
    asked(page.url, {}, "gradio_api/upload", b"")
    assert not broken.exists()
    assert going_on.exists()
    going_on.unlink()


def test_a_page_in_ipv6(address: str) -> None:
    with socket.socket(socket.AF_INET6) as trial:
        try:
            trial.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    with begun(address, "::1", {}) as (url, _):
        assert asked(url, {})[0] == 200


@pytest.mark.parametrize("port", ["0", "-1", "99999"])
def test_ports_that_are_none_are_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any server is waited for."""
    assert command.main(["ui", "--server", "127.0.0.1:1", "--port", port]) == 1
    assert capsys.readouterr().err == f"exposure: --port is {port}; it is a number from 1 to 65535\n"


def test_hosts_that_are_none_are_refused(address: str) -> None:
    arguments = [sys.executable, "-m", "exposure.client.command", "ui", "--server", address, "--host", "192.0.2.1"]
    ended = subprocess.run(arguments, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.endswith("exposure: cannot listen on 192.0.2.1:7860; try another --port or --host\n")
    assert "Traceback" not in ended.stderr


def test_what_else_is_odd_about_an_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio lets through what its libraries raise, of any kind; proxies are what they were."""
    import gradio as gr  # here, for it takes seconds

    from exposure.client import page

    def launch(*_: object, **__: object) -> None:
        assert os.environ["no_proxy"] == "*"
        raise RuntimeError("it is odd")

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    monkeypatch.setenv("no_proxy", "example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(OSError, match=r"^cannot listen on \[::2\]:7860 \(it is odd\); try another --port or --host$"):
        page.show(None, tmp_path, "::2", 7860)  # type: ignore[arg-type]
    assert os.environ["no_proxy"] == "example"
    assert "NO_PROXY" not in os.environ


@in_a_browser
def test_what_is_refused_is_one_sentence(page: Page, browser: Browser, sample: Path, tmp_path: Path) -> None:
    half, text = tmp_path / "half.dng", tmp_path / "notes--1.dng"
    half.write_bytes(sample.read_bytes()[: sample.stat().st_size // 2])
    text.write_text("<b>not a picture</b>")
    assert browser.drop(half) == "half.dng: LibRaw cannot read it (Input/output error; it may be truncated)"
    refused = "notes--1.dng: it does not begin like a RAW file"
    assert browser.drop(text) == refused
    browser.one("#expose").click()
    time.sleep(0.5)
    browser.until(lambda: browser.told() == refused)

    browser.drop(sample)
    browser.enter("#gain input", "-2")
    browser.one("#expose").click()
    browser.until(lambda: browser.told() == "sample.dng: gain is -2; it must be positive, in DN per electron")
    assert not browser.all("#pair img")
    assert not browser.all("#results a[download]")
    assert page.process.poll() is None


@in_a_browser
def test_a_file_is_exposed_on_the_page(
    page: Page, browser: Browser, sample: Path, address: str, tmp_path: Path
) -> None:
    by_command = tmp_path / "by_command"
    flags = ["--ratio", "50", "--passes", "1", "--strength", "1", "--format", "dng,tiff", "--out", str(by_command)]
    assert command.main(["denoise", "--server", address, str(sample), *flags]) == 0

    assert "(noise profile of the file)" in browser.drop(sample)
    browser.one("#target input[value=ratio]").click()
    browser.enter("#ratio input", "50")
    browser.enter("#gain input", "0")
    browser.one("#passes input[value='1']").click()
    browser.one("#expose").click()
    browser.until(lambda: browser.all("#results a[download]"))
    assert "ratio 50 (as given), gain 3.01 DN/e- (noise profile of the file)" in browser.told()
    _check_pictures(browser)
    assert browser.until(lambda: browser.all("#histogram canvas, #histogram svg.marks"))
    timings = browser.one("#timings").text
    for stage in ("read the RAW file", "request, 1 pass ", "of which denoiser", "write the DNG", "write the TIFF"):
        assert stage in timings

    _download(browser, by_command, "sample_exposed.dng", "sample_exposed.tiff")

    with Client(address) as client:
        computed = client.stage_seconds()["denoiser"]
        browser.enter("#strength input[type=number]", "0.5")
        browser.one("#expose").click()
        browser.until(
            lambda: "request" not in browser.one("#timings").text and "write the" in browser.one("#timings").text
        )
        assert client.stage_seconds()["denoiser"] == computed  # the answer was there
    flags[flags.index("--strength") + 1] = "0.5"
    assert command.main(["denoise", "--server", address, str(sample), *flags]) == 0
    _download(browser, by_command, "sample_exposed.dng", "sample_exposed.tiff")

    assert {url.split("/")[2] for url in browser.requests()} == {page.url.split("/")[2]}
    assert page.end() == 130
    assert list(page.folder.iterdir()) == []
    assert set(page.reached.read_text().split()) <= HERE


def _download(browser: Browser, by_command: Path, *names: str) -> None:
    """The results on the page are those of the command, byte for byte."""
    for name in names:
        (browser.downloads / name).unlink(missing_ok=True)
    for link in browser.all("#results a[download]"):
        browser.script("window.scrollTo(0, document.body.scrollHeight)")
        link.click()
    for name in names:
        browser.until((browser.downloads / name).is_file)
        assert (browser.downloads / name).read_bytes() == (by_command / name).read_bytes()


def test_a_refused_setting_throws_nothing_away(address: str, sample: Path, tmp_path: Path) -> None:
    """The answer is there for the next try, and the files that the tab shows until there are others."""
    from exposure.client import page
    from exposure.client.reader import readers

    with Client(address) as client, readers(1) as reading:
        desk = page.Desk(client, reading, tmp_path)

        def press(gain: float, formats: list[str], earlier: page.Kept | None) -> page.Shown:
            return page.Shown(*desk.expose(str(sample), page.RATIO, 20, None, gain, 1, 1.0, True, formats, earlier))

        first = press(3, ["dng"], None)
        assert first.kept is not None
        assert "request" in first.timings
        assert first.kept.answer.checkpoint == client.checkpoint()
        refused = press(-2, ["dng"], first.kept)
        assert "gain is -2" in refused.told
        assert all(Path(path).is_file() for path in first.results or ())
        again = press(3, ["jpg"], refused.kept)
        assert "request" not in again.timings
        assert not first.kept.folder.exists()


def _check_pictures(browser: Browser) -> None:
    """Both are there and differ; the slider moves the border; a click shows each pixel as one of the screen."""
    browser.until(lambda: browser.script("return document.querySelector('#pair .before').naturalWidth") == 512)
    width = "document.querySelector('#pair .pair').clientWidth"
    assert browser.script(f"return {width}") < 512
    browser.script("document.querySelector('#pair .pair').scrollIntoView({block: 'center'})")
    for split in (0, 25, 100):
        browser.script(
            "const slider = document.querySelector('#pair input');"
            f"slider.value = {split}; slider.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )
        for percent in (2, 23, 27, 98):
            seen = browser.script(
                "const box = document.querySelector('#pair .pair').getBoundingClientRect();"
                f"const x = box.left + box.width * {percent} / 100;"
                "return document.elementFromPoint(x, box.top + box.height / 2).className"
            )
            assert seen == ("before" if percent < split else "after")
    browser.one("#pair .pair").click()
    assert browser.script(f"return {width} * devicePixelRatio") == 512
    noise = [np.abs(np.diff(_pixels(browser, name), axis=1)).mean() for name in ("before", "after")]
    assert noise[0] > 2 * noise[1] > 0


def _pixels(browser: Browser, name: str) -> NDArray[np.int16]:
    """A picture of the pair as the browser decoded it, [h, w, 3]."""
    picture = f"document.querySelector('#pair .{name}')"
    browser.until(lambda: browser.script(f"return {picture}.naturalWidth"))
    encoded = browser.script(
        f"const picture = {picture}, canvas = document.createElement('canvas');"
        "canvas.width = picture.naturalWidth; canvas.height = picture.naturalHeight;"
        "canvas.getContext('2d').drawImage(picture, 0, 0);"
        "return canvas.toDataURL().split(',')[1]"
    )
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return np.asarray(image.convert("RGB"), np.int16)
