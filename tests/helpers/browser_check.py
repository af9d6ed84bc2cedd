"""Open a report full of hostile texts in headless Chromium, on a phone's and on a desk's width, and say what is wrong.

    python tests/helpers/browser_check.py [index.html] [--pictures FOLDER]

Without a page it makes one of helpers/report_run.py. It drives the browser over the DevTools protocol on a pipe, which
needs no port and no library. Faults are whatever the page logs, loads or lets run; a page or a table of results wider
than its window; verdict, picture and examples that do not end above 1,200 pixels on a desk; text of a contrast below
4.5 in light or dark; images and controls without a name; headings that skip a level; folded parts that are not printed.
--pictures keeps screenshots in light and dark, folded and open, and the page as printed.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.printable import LAYOUT, printable
from gpt2_rlhf.evidence import report
from helpers import report_run

WIDTHS = {390: 844, 1280: 900}  # a phone's and a desk's, in CSS pixels, with their heights
STORY_ENDS = 1200  # CSS pixels from the top, on a desk
_SHOT_HEIGHT = 12_000  # CSS pixels; a texture of the browser's holds 16,384
_FAULTS = {  # an event of the protocol, and where in it the words are
    "Runtime.consoleAPICalled": "args",
    "Runtime.exceptionThrown": "exceptionDetails",
    "Log.entryAdded": "entry",
    "Network.loadingFailed": "errorText",
    "Page.javascriptDialogOpening": "message",
}
_LOOK = """({
  title: document.title,
  width: document.documentElement.scrollWidth,
  text: document.body.textContent,
  samples: document.querySelectorAll("article.sample").length,
  better: document.querySelectorAll('article[data-fate="better"]').length,
  worse: document.querySelectorAll('article[data-fate="worse"]').length,
  pictures: Array.from(document.images).filter((image) => image.naturalWidth === 0).length,
  visible: document.body.checkVisibility(),
})"""
_FILTER = """(() => {
  const form = document.getElementById("filter");
  const shown = () => document.querySelectorAll("article.sample:not([hidden])").length;
  const change = () => form.dispatchEvent(new Event("input"));
  const choose = (value) => { form.elements.show.value = value; change(); return shown(); };
  const counts = { better: choose("better"), worse: choose("worse"), example: choose("example"), all: choose("all") };
  form.elements.words.value = "zzz no sample has this"; change();
  counts.nothing = shown();
  form.elements.words.value = ""; form.elements.order.value = "worst"; change();
  const changes = Array.from(document.querySelectorAll("article.sample")).map((one) => Number(one.dataset.change));
  counts.ordered = changes.every((change, place) => place === 0 || changes[place - 1] <= change);
  counts.said = form.elements.count.value;
  form.reset(); change();
  return counts;
})()"""

_STORY = """({
  picked: document.querySelectorAll("article.picked").length,
  folded: Array.from(document.querySelectorAll("details")).every((one) => !one.open),
  ends: Math.max(...Array.from(document.querySelectorAll(".verdict, .story img, .picked")).map(
    (one) => one.getBoundingClientRect().bottom)),
})"""
_OPEN = 'document.querySelectorAll("details").forEach((one) => { one.open = true; })'
_WIDE = """Array.from(document.querySelectorAll("#results .table, #training .table"))
  .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.querySelector("caption").textContent)"""
_FAINT = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const parts = numbers(colour).slice(0, 3).map((one) => one / 255);
    const [r, g, b] = parts.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const colour = element && getComputedStyle(element).backgroundColor;
    return !element ? "rgb(255, 255, 255)" : numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const faint = new Set();
  for (const one of document.querySelectorAll("body *")) {
    const hasText = Array.from(one.childNodes).some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || one.tagName === "SCRIPT" || !one.checkVisibility()) continue;
    const [low, high] = [luminance(getComputedStyle(one).color), luminance(behind(one))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.add(`${one.tagName} ${one.className}`);
  }
  return Array.from(faint);
})()"""
_SKIPPED = """Array.from(document.querySelectorAll("h1, h2, h3, h4, h5, h6")).map((one) => Number(one.tagName[1]))
  .filter((level, place, every) => level > (place ? every[place - 1] : 0) + 1).length"""
_UNPRINTED = """Array.from(document.querySelectorAll("details > div")).filter(
  (one) => !one.checkVisibility()).map((one) => one.id)"""
_LEADS = """Array.from(document.querySelectorAll("main a, .run a")).map((one) => {
  document.querySelectorAll("details").forEach((part) => { part.open = false; });
  location.hash = one.hash;
  return document.querySelector(one.hash)?.checkVisibility() ? null : one.hash;
}).filter(Boolean)"""
_NAMED = ("image", "img", "button", "link", "radio", "searchbox", "combobox", "region", "DisclosureTriangle")


class Browser:
    """One tab of a headless Chromium; `events` keeps what it reports."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = os.fdopen(to_browser, "wb", 0), os.fdopen(from_browser, "rb", 0)
        self._buffer, self._number = b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path) -> None:
        """Load the page, to the end."""
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")  # none for undefined

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = self._from.read(1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium without a profile, which is gone afterwards."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("error: no Chromium here; on Debian: apt-get install chromium")
    read_end, to_browser = os.pipe()
    from_browser, write_end = os.pipe()
    # a process of the browser may still write while the folder is removed
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [
            "--headless",
            "--no-sandbox",  # a container's root has none
            "--disable-gpu",
            "--disable-background-networking",
            "--proxy-server=127.0.0.1:9",  # no network: nothing listens there
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        # Chromium reads commands on 3 and answers on 4
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{read_end} 4>&{write_end}', program, *flags]
        process = subprocess.Popen(shell, pass_fds=(read_end, write_end), stderr=subprocess.DEVNULL)
        os.close(read_end)
        os.close(write_end)
        try:
            tab = Browser(to_browser, from_browser)
            yield tab
            tab.ask("Page.close")
        finally:
            process.terminate()
            process.wait(timeout=30)


def faults(tab: Browser, page: Path, width: int, texts: Sequence[str]) -> list[str]:
    """What is wrong with the page at this width, in words; `texts` are to be read on it as they are."""
    tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=WIDTHS[width], deviceScaleFactor=2, mobile=False)
    tab.open(page)
    page_state, story = tab.value(_LOOK), tab.value(_STORY)
    tab.value(_OPEN)
    filtered = tab.value(_FILTER)
    found = [
        f"{event['method']}: {json.dumps(event['params'][_FAULTS[event['method']]])}"
        for event in tab.events
        if event.get("method") in _FAULTS
    ]
    urls = [
        event["params"]["request"]["url"] for event in tab.events if event.get("method") == "Network.requestWillBeSent"
    ]
    found += [f"it loads {url[:80]}" for url in urls if url != page.resolve().as_uri() and not url.startswith("data:")]
    if not page_state["title"].startswith("Report of run"):
        found.append(f"its title is {page_state['title']!r}: a text of the data ran")
    if not page_state["visible"]:
        found.append("it is not visible: a style of the data took hold")
    if page_state["width"] > width:
        found.append(f"it is {page_state['width']} pixels wide")
    if page_state["pictures"]:
        found.append(f"{page_state['pictures']} pictures do not show")
    found += [f"it does not show {text[:60]!r}" for text in texts if text not in page_state["text"]]
    expected = {
        "better": page_state["better"],
        "worse": page_state["worse"],
        "all": page_state["samples"],
        "nothing": 0,
        "example": 2,
    }
    if not filtered["ordered"] or any(filtered[name] != count for name, count in expected.items()):
        found.append(f"the filter shows {filtered}, not {expected}")
    if not story["folded"] or not 1 <= story["picked"] <= 3:
        found.append(f"{story['picked']} examples are picked, and the rest is folded: {story['folded']}")
    if width == max(WIDTHS) and story["ends"] > STORY_ENDS:
        found.append(f"verdict, picture and examples end at {story['ends']:.0f} pixels, not above {STORY_ENDS}")
    found += [f"the table {title!r} is wider than the window" for title in tab.value(_WIDE)]
    found += [f"a heading skips a level: {count} do" for count in [tab.value(_SKIPPED)] if count]
    for scheme in ("light", "dark"):
        tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        found += [f"{scheme}: too little contrast: {one}" for one in tab.value(_FAINT)]
    nodes = tab.ask("Accessibility.getFullAXTree")["nodes"]
    roles = [one["role"]["value"] for one in nodes if not one["ignored"] and not one.get("name", {}).get("value")]
    found += [f"{roles.count(role)} of the role {role} have no name" for role in _NAMED if role in roles]
    tab.open(page)
    found += [f"the link {link} leads to a folded part, which stays folded" for link in tab.value(_LEADS)]
    tab.open(page)
    tab.ask("Emulation.setEmulatedMedia", media="print")
    found += [f"{part} is folded and not printed" for part in tab.value(_UNPRINTED)]
    tab.ask("Emulation.setEmulatedMedia", media="")
    return [f"{width} px: {one}" for one in found]


def keep_pictures(tab: Browser, page: Path, folder: Path) -> None:
    """Screenshots of the page's beginning at every width in light and dark, and the page as printed."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, window in WIDTHS.items():
        tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=window, deviceScaleFactor=1, mobile=False)
        for scheme in ("light", "dark"):
            tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            tab.open(page)
            for state in ("folded", "open"):
                height = min(tab.value("document.documentElement.scrollHeight"), _SHOT_HEIGHT)
                clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
                shot = tab.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
                (folder / f"{width}-{scheme}-{state}.png").write_bytes(base64.b64decode(shot["data"]))
                tab.value(_OPEN)
    tab.open(page)
    tab.ask("Emulation.setEmulatedMedia", media="")
    printed = tab.ask("Page.printToPDF", preferCSSPageSize=True)
    (folder / "printed.pdf").write_bytes(base64.b64decode(printed["data"]))


def main() -> int:
    """Check the page at both widths; 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, browser() as tab:
        page, texts = arguments.page, list[str]()
        if page is None:
            records, summary = report_run.write(Path(folder))
            page = report.write(Path(folder), compose.load([]).settings, records, summary)
            texts = [printable(text, kept=LAYOUT) for text in report_run.HOSTILE]  # control characters as escapes
        found = [fault for width in WIDTHS for fault in faults(tab, page, width, texts)]
        if arguments.pictures is not None:
            keep_pictures(tab, page, arguments.pictures)
    print("\n".join(found) or f"the report opens at {' and '.join(map(str, WIDTHS))} px without a fault")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
