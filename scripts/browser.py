"""Looks at a page in a real Chromium, QtWebEngine's: pictures of it, and what the browser says of it.

    bash scripts/browser.sh page.html FOLDER

writes light.png, dark.png, phone.png (390 px wide), grey.png (printed, without colour) and page.pdf into FOLDER, and
prints as JSON what a picture does not tell: what was asked of the network, what was written to the console, how wide
the content is, and which images were drawn. The browser is steered by its DevTools protocol, which alone can pretend
to be a phone, a dark desktop or a printer.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from PySide6.QtCore import QTimer, QUrl
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication
from websocket import create_connection

# name: (width, pixels of the screen for each of the page, medium, colour scheme)
LOOKS = {
    "light": (1200, 1, "screen", "light"),
    "dark": (1200, 1, "screen", "dark"),
    "phone": (390, 2, "screen", "light"),
    "grey": (794, 1, "print", "light"),  # A4 at 96 dots an inch
}
STARTS_WITHIN_SECONDS = 60
FACTS = """({
    scroll_width: document.documentElement.scrollWidth,
    width: document.documentElement.clientWidth,
    background: getComputedStyle(document.body).backgroundColor,
    images: [...document.images].map(i => ({alt: i.alt, drawn: i.complete && i.naturalWidth > 0})),
    injected: String(window.injected),
    mode: document.compatMode,
})"""


class Tab:
    """A page of the browser, steered by the DevTools protocol.

    Args:
        port: Where the browser listens.
    """

    def __init__(self, port: int) -> None:
        self._socket = create_connection(_address(port), suppress_origin=True, timeout=STARTS_WITHIN_SECONDS)
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method; events that come meanwhile are kept.

        Args:
            method: Name of the method, such as `Page.captureScreenshot`.
            parameters: What it takes.

        Returns:
            Its result.

        Raises:
            RuntimeError: If the browser refuses.
        """
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                break
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, event: str) -> None:
        """Waits until an event has come.

        Args:
            event: Its name, such as `Page.loadEventFired`.
        """
        while event not in (seen.get("method") for seen in self.events):
            self.events.append(json.loads(self._socket.recv()))

    def seen(self, event: str) -> list[dict[str, Any]]:
        """The parameters of all events of a name."""
        return [each["params"] for each in self.events if each.get("method") == event]


def _address(port: int) -> str:
    """Where the one page of the browser takes its commands; the browser needs a moment to start."""
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                pages = [each for each in json.load(answer) if each["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
        except (OSError, IndexError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def look(tab: Tab, page: Path, folder: Path) -> dict[str, Any]:
    """Opens a page, and takes all pictures of it.

    Args:
        tab: Where to open it.
        page: The file.
        folder: Where the pictures go.

    Returns:
        What else there is to know, by name.
    """
    for domain in ("Page", "Network", "Runtime", "Log"):
        tab.ask(f"{domain}.enable")
    tab.ask("Page.navigate", url=page.resolve().as_uri())
    tab.wait_for("Page.loadEventFired")
    facts: dict[str, Any] = {name: _take(tab, folder / f"{name}.png", *view) for name, view in LOOKS.items()}
    asked = [request["request"]["url"] for request in tab.seen("Network.requestWillBeSent")]
    facts["asked"] = [url for url in asked if not url.startswith("data:")]
    facts["said"] = [
        *(each["entry"]["text"] for each in tab.seen("Log.entryAdded")),
        *(str(each["args"]) for each in tab.seen("Runtime.consoleAPICalled")),
        *(each["exceptionDetails"]["text"] for each in tab.seen("Runtime.exceptionThrown")),
    ]
    return facts


def _take(tab: Tab, file: Path, width: int, scale: int, medium: str, scheme: str) -> dict[str, Any]:
    tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=scale, mobile=width < 500)
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    tab.ask("Emulation.setEmulatedMedia", media=medium, features=[scheme_feature])
    tab.ask("Emulation.setEmulatedVisionDeficiency", type="achromatopsia" if medium == "print" else "none")
    whole = tab.ask("Page.getLayoutMetrics")["cssContentSize"]
    picture = tab.ask("Page.captureScreenshot", captureBeyondViewport=True, clip={**whole, "scale": 1})
    file.write_bytes(base64.b64decode(picture["data"]))
    value: dict[str, Any] = tab.ask("Runtime.evaluate", expression=FACTS, returnByValue=True)["result"]["value"]
    return value


def main() -> int:
    """Looks at the page that the command line names."""
    page, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_REMOTE_DEBUGGING": f"127.0.0.1:{port}",
        "QTWEBENGINE_CHROMIUM_FLAGS": "--disable-gpu",
    }
    if os.getuid() == 0:  # Chromium has no sandbox for root
        os.environ["QTWEBENGINE_DISABLE_SANDBOX"] = "1"
    application = QApplication([])
    view = QWebEngineView()
    view.setUrl(QUrl("about:blank"))
    view.show()
    result: dict[str, Any] = {}

    def steer() -> None:
        try:
            result.update(look(Tab(port), page, folder))
        finally:
            QTimer.singleShot(0, application, print_page)

    def print_page() -> None:  # by Qt: it does not answer Page.printToPDF
        view.page().pdfPrintingFinished.connect(application.quit)
        view.page().printToPdf(str(folder / "page.pdf"))

    threading.Thread(target=steer, daemon=True).start()
    application.exec()
    print(json.dumps(result, indent=1))
    return 0 if result else 1


if __name__ == "__main__":
    sys.exit(main())
