"""Ask, read and choose on the chat's page in headless Chromium, then train on the pairs; say what is wrong.

    PYTHONPATH=tests python -m helpers.chat_check [--pictures FOLDER]

The page is served by the real command, from a run of helpers/chat_run.py whose samples try to be HTML. Whatever the
page logs, and each request to anything but its server, is a fault.
"""

import argparse
import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2_rlhf.rows.row_files import rows
from helpers import chat_run
from helpers.browser_check import Browser, browser

PATIENCE_S = 60
TITLE = "gpt2-rlhf"
_WATCH = """window.grown = new Set(); setInterval(() => {
  for (const [label, text] of Object.entries(fields())) if (label === "ppo") window.grown.add(text.length);
}, 5);"""
_FIELDS = """window.fields = () => Object.fromEntries(Array.from(document.querySelectorAll("textarea")).map(
  (one) => [one.closest("label").innerText.trim(), one.value]))"""
_CLICK = """(() => {{
  const found = Array.from(document.querySelectorAll("button, input[type=checkbox]")).find(
    (one) => (one.innerText || one.closest("label")?.innerText || "").trim().startsWith({label}) && !one.disabled);
  if (found) found.click();
  return Boolean(found);
}})()"""


class Page:
    """The chat's page in a tab, as a person uses it."""

    def __init__(self, tab: Browser, address: str) -> None:
        self.tab, self.address = tab, address
        tab.ask("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        tab.ask("Page.navigate", url=address)
        self._wait("the page", lambda: tab.value("document.querySelector('textarea') !== null"))
        tab.value(f"{_FIELDS}; {_WATCH}")

    def fields(self) -> dict[str, str]:
        """Every text field by its label."""
        return self.tab.value("fields()")

    def click(self, label: str) -> None:
        """Click the button or box whose label starts so, once it can be clicked."""
        expression = _CLICK.format(label=json.dumps(label))
        self._wait(f"a button {label!r}", lambda: self.tab.value(expression))

    def send(self, question: str | None) -> dict[str, str]:
        """Type a question, or keep the one that is there, and press Enter; return the fields once all is answered."""
        self.tab.value("document.querySelector('textarea').focus(), true")
        if question is not None:
            self.tab.ask("Input.insertText", text=question)
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.tab.ask("Input.dispatchKeyEvent", type="keyDown", text="\r", **enter)
        self.tab.ask("Input.dispatchKeyEvent", type="keyUp", **enter)
        return self.wait_for("which answer is better?")

    def wait_for(self, words: str) -> dict[str, str]:
        """Return the fields once the status has these words."""
        self._wait(words, lambda: words in self.fields()["Status"])
        return self.fields()

    def choose_run(self, name: str) -> None:
        """Open the list of runs and choose one."""
        self.tab.value("document.querySelector('input[aria-label=Run]').focus(), true")
        option = (
            f"Array.from(document.querySelectorAll('[role=option]')).find((one) => one.innerText.includes('{name}'))"
        )
        self._wait("the list of runs", lambda: self.tab.value(f"{option} !== undefined"))
        self.tab.value(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")

    def faults(self) -> Iterator[str]:
        """What the page logged, and what it requested from elsewhere."""
        for event in self.tab.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith((self.address, "data:", "blob:")):
                    yield f"it requests {url[:100]}"
            elif method in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                yield f"{method}: {json.dumps(params)[:300]}"
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
                yield f"it logs {params['entry']['text'][:300]}"

    def _wait(self, what: str, is_there: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_there():
            if time.monotonic() > deadline:
                raise SystemExit(f"error: {what} did not appear; the page has {self.fields()}")
            time.sleep(0.05)


@contextmanager
def served(output_dir: Path, proxy: socket.socket) -> Iterator[str]:
    """The address of the page of the newest run there. Whatever its server asks of others would go to the proxy."""
    command = [sys.executable, "-m", "gpt2_rlhf", "chat", "--web", f"output_dir={output_dir}", "chat.seed=1"]
    address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    misleading = {
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SHARE": "True",
        "http_proxy": address,
        "https_proxy": address,
    }
    environment = {**os.environ, **misleading}  # of which only the proxies may have an effect
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = next((line for line in process.stdout if "the page is at " in line), "")
        try:
            yield said.partition("the page is at ")[2].partition(";")[0]
        finally:
            process.terminate()


def asked_of_others(proxy: socket.socket) -> Iterator[str]:
    """What the server asked the proxy for."""
    proxy.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            yield f"its server asks the proxy: {proxy.accept()[0].recv(300)!r}"


def check(page: Page, output_dir: Path, other_run: str) -> Iterator[str]:
    """Use the page, and yield what is wrong."""
    kept = output_dir / "preferences.jsonl"
    answered = page.send("How do I rest?")
    for name in ("base", "sft", "ppo"):
        if not answered.get(name, "").startswith("Human: How do I rest?\n\nAssistant:"):
            yield f"{name}: its answer reads {answered.get(name)!r}"
        if not answered.get(f"{name}: scores", "").startswith("reward "):
            yield f"{name}: its scores read {answered.get(f'{name}: scores')!r}"
    if page.tab.value("window.grown.size") < 3:
        lengths = page.tab.value("Array.from(window.grown)")
        yield f"the answer of ppo does not grow while it is sampled, its lengths are {lengths}"
    page.click("sft is better")
    page.wait_for("kept in ")
    pairs = [values for _, values in rows(kept)]
    if [(one["chosen_model"], one["prompt"]) for one in pairs][:1] != [
        ("sft", "\n\nHuman: How do I rest?\n\nAssistant:")
    ]:
        yield f"the pairs are {pairs}"
    page.send("Why is that so?")
    page.click("ppo is better")
    page.wait_for("kept in ")
    *_, (_, second) = rows(kept)
    if not second["prompt"].startswith(pairs[0]["prompt"] + pairs[0]["chosen"] + "\n\nHuman: Why is that so?"):
        yield f"the prompt of the second turn is {second['prompt']!r}"

    page.click("New conversation")
    page.wait_for("a new conversation")
    page.click("<img")  # the example that tries to be HTML
    page._wait("the example", lambda: chat_run.HOSTILE in page.fields().values())
    page.click("Hide names")
    answered = page.send(None)
    if not all(answered.get(f"Answer {place}: scores") == "shown once you have chosen" for place in (1, 2, 3)):
        yield f"names or scores show before the choice: {answered}"
    if not answered.get("Answer 1", "").startswith(f"Human: {chat_run.HOSTILE}"):
        yield f"the hostile question reads {answered.get('Answer 1')!r}"
    page.click("Answer 2 is better")
    revealed = page.wait_for("kept in ")
    if not {"base: scores", "sft: scores", "ppo: scores"} <= revealed.keys():
        yield f"names do not show after the choice: {revealed}"
    if page.tab.value("document.title") != TITLE or page.tab.value("document.querySelector('img[onerror]') !== null"):
        yield "a text was taken for HTML"

    page.choose_run(other_run)
    page.wait_for(f"talking to run {other_run}")
    yield from page.faults()

    command = [sys.executable, "-m", "gpt2_rlhf", "sft", f"data.path={kept}", "data.disjoint=false", "model=embedded"]
    trained = subprocess.run([*command, f"output_dir={output_dir}"], capture_output=True, text=True, check=False)
    if trained.returncode != 0:
        yield f"SFT on the pairs ended with {trained.returncode}: {trained.stderr[-500:]}"


def main() -> int:
    """Check the page; 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output_dir = Path(folder, "outputs")
        other = chat_run.write(output_dir, "bbbbbbbbbbbb")
        chat_run.write(output_dir)
        with (
            socket.create_server(("127.0.0.1", 0)) as proxy,
            served(output_dir, proxy) as address,
            browser() as tab,
        ):
            page = Page(tab, address)
            found = [*check(page, output_dir, other.name), *asked_of_others(proxy)]
            if not address.startswith("http://127.0.0.1:"):
                found.append(f"the page is at {address!r}")
            if arguments.pictures is not None:
                arguments.pictures.mkdir(parents=True, exist_ok=True)
                page.send("How do I rest?")
                for width in (1280, 390):
                    tab.ask(
                        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
                    )
                    shot = tab.ask("Page.captureScreenshot", captureBeyondViewport=True)
                    (arguments.pictures / f"chat-{width}.png").write_bytes(base64.b64decode(shot["data"]))
    print("\n".join(found) or "the chat's page answers, keeps preferences and requests nothing from elsewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
