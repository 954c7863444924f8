"""Opens a page in headless Chromium without a driver: a script injected into a copy writes its findings into it."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
# The sandbox does not work as root in a container; the other flags keep the browser from calling its own services.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)
WATCH = """
const seen = {errors: [], violations: [], result: null};
addEventListener("error", (event) => seen.errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.violatedDirective));
"""
REPORT = """
addEventListener("load", () => setTimeout(() => {
  try { seen.result = look(); } catch (error) { seen.errors.push(String(error)); }
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  const pre = Object.assign(document.createElement("pre"), {id: "seen", textContent: JSON.stringify(seen)});
  document.body.append(pre);
}));
"""


def chromium() -> str:
    """The path of the browser; skips the test if there is none."""
    named = os.environ.get("HYLO_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium: install one (Debian: apt-get install chromium), or name its path in HYLO_CHROMIUM")
    return found


def look(page: str, folder: Path, script: str, *, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Opens a copy of a page and runs `script`, a function body, in it. The page's own content is not changed.

    Returns:
        result: the script's return value; errors: exceptions of the page or the script; violations: violated directives
        of the page's policy; requests: requested addresses; console: lines of the browser's console.
    """
    scripts = [WATCH, f"const look = () => {{{script}}};{REPORT}"]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    assert "script-src " in page
    page = page.replace("script-src ", f"script-src {hashes} ", 1)
    page = page.replace("<title>", f"<script>{scripts[0]}</script><title>", 1)
    page = page.replace("</body>", f"<script>{scripts[1]}</script></body>", 1)
    path = folder / "looked-at.html"
    path.write_text(page, encoding="utf-8")
    command = [chromium(), *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shutil.rmtree(folder / "profile", ignore_errors=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])) | {"console": console}
