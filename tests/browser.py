"""A headless Chromium, driven over its DevTools protocol: enough to load a page, type, click, read and photograph it."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket


def executable() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One process; `user()` opens a tab with cookies and storage of its own."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [executable(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            lines = wait(lambda: _read(folder / "DevToolsActivePort"), 30)
            self.port, path = lines[0], lines[1]
            self.root = Wire(f"ws://127.0.0.1:{self.port}{path}")
        except BaseException:
            self.process.kill()
            raise

    def user(self, width: int = 1280, height: int = 900) -> "Tab":
        context = self.root.send("Target.createBrowserContext")["browserContextId"]
        target = self.root.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        tab = Tab(f"ws://127.0.0.1:{self.port}/devtools/page/{target}")
        tab.resize(width, height)
        return tab

    def close(self) -> None:
        self.root.socket.close()
        self.process.terminate()
        self.process.wait(10)


class Wire:
    def __init__(self, url: str):
        self.socket, self.number = websocket.create_connection(url, timeout=30), 0

    def send(self, method: str, **parameters) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (reply := json.loads(self.socket.recv())).get("id") != self.number:
            pass
        assert "error" not in reply, reply
        return reply["result"]


class Tab(Wire):
    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def js(self, expression: str):
        """The value of a JavaScript expression."""
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait(self, expression: str, seconds: float = 20):
        """The value of an expression as soon as it is true."""
        return wait(lambda: self.js(expression), seconds, expression)

    def text(self, selector: str) -> str:
        return self.js(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''")

    def click(self, selector: str) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, text: str) -> None:
        """Type a text in place of what a field holds, as a person pastes."""
        self.js(f"(e => {{e.focus(); e.select()}})(document.querySelector({json.dumps(selector)}))")
        if text:
            self.send("Input.insertText", text=text)
        else:
            for kind in ("keyDown", "keyUp"):
                self.send("Input.dispatchKeyEvent", type=kind, key="Delete", code="Delete", windowsVirtualKeyCode=46)

    def photograph(self, file: Path) -> None:
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        Path(file).write_bytes(base64.b64decode(image))


def wait(look, seconds: float = 20, what: str = ""):
    """What `look()` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return seen


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False


def _read(file: Path) -> list[str] | None:
    lines = file.read_text().split("\n") if file.exists() else []
    return lines if len(lines) >= 2 else None
