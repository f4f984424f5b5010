"""A report that opens in a browser without a network, whatever prompts are called."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from scope_cli.batch.ledger import Ledger
from scope_cli.batch.report import busy_s, write_report
from scope_cli.batch.rows import Row
from tests.helpers.patience import PATIENCE_S

READING = {"held_bytes": 3_000_000, "full_bytes": 9_000_000}
EVIL = "<script>alert(1)</script> & co.txt"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def ended(number, tokens, start, **more):
    end = {"output_tokens": tokens, "prefill_s": 1.0, "decode_s": 4.0, "reason": "stop", "reading": READING}
    return Row(
        number, f"p{number}.txt", "there", f"p{number}.txt", "hash", state="done", prompt_tokens=100,
        planned=900, started_at=start, finished_at=start + 5.0, record={"results": [end]}, **more,
    )  # fmt: skip


@pytest.fixture
def report(tmp_path):
    out = tmp_path / "a job"
    out.mkdir()
    ledger = Ledger(out)
    with ledger.transaction():
        for number in range(12):
            ledger.put(ended(number, 100 * (number + 1), 1000.0 + 2 * number))
        ledger.put(Row(12, EVIL, EVIL, "x.txt", "hash", state="failed", error="is <b>not</b> UTF-8"))
        ledger.put(Row(13, "waits.txt", "there", "y.txt", "hash", prompt_tokens=7, planned=9))
        ledger.set(settings={"model": {"name": "tiny"}, "decode": {"strategy": "slide", "budget": 64}})
    return write_report(ledger, out)


def test_a_report_asks_for_nothing_outside_itself(report):
    page = report.read_text()
    asked = re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    inside = [target for target in asked if target.startswith("#")]
    assert inside and all(target.startswith("./") for target in asked if target not in inside)
    assert "<script" not in page and "@import" not in page and "url(http" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "is &lt;b&gt;not&lt;/b&gt; UTF-8" in page


def test_a_report_has_the_numbers_of_the_job(report):
    page = report.read_text()
    assert "12 of 14 prompts" in page and "12 done" in page and "1 failed" in page and "1 waiting" in page
    assert "7,800 in 27.0 s, 289 tokens/s" in page  # twelve overlapping runs of five seconds
    assert "34.33 MiB held, 103.00 MiB in full caches (33.3%)" in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)
    assert page.count("<svg") == 3


def test_every_finished_text_is_linked_and_every_bar_named(tmp_path):
    ledger = Ledger(tmp_path)
    names = [
        "poems/short one.txt",
        "a/very/long/path/that/nobody/could/read/beside/a/bar/of/a/plot.txt",
        "50%$x$.md",
    ]
    with ledger.transaction():
        for number, name in enumerate(names):
            row = ended(number, 100, 1000.0 + number)
            ledger.put(Row(**{**vars(row), "id": name, "output": name}))
        ledger.put(Row(3, "empty.txt", "there", "empty.txt", "hash", state="failed", error="is empty"))
    page = write_report(ledger, tmp_path).read_text()
    assert re.findall(r'<a href="([^"]*)">', page) == [
        "./poems/short%20one.txt",
        "./a/very/long/path/that/nobody/could/read/beside/a/bar/of/a/plot.txt",
        "./50%25%24x%24.md",
    ]
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        for name in ("poems/short one.txt", "…read/beside/a/bar/of/a/plot.txt", "50%$x$.md"):
            assert f">{name}</text>" in drawing
    assert 'href="./empty.txt"' not in page, "there is no text"


def test_hundreds_of_bars_are_no_taller_than_a_page_and_not_named(tmp_path):
    ledger = Ledger(tmp_path)
    with ledger.transaction():
        for number in range(300):
            ledger.put(ended(number, 100 + number, 1000.0 + number))
    page = write_report(ledger, tmp_path).read_text()
    assert page.count("300 prompts") >= 3 and ">p7.txt</text>" not in page
    heights = [float(height) for height in re.findall(r'<svg [^>]*height="([\d.]+)pt"', page)]
    assert len(heights) == 3 and max(heights) < 600


def test_a_break_between_two_starts_is_no_work():
    assert busy_s([ended(0, 1, 0.5), ended(1, 1, 2.0), ended(2, 1, 100.0)]) == 6.5 + 5.0


def test_a_job_without_any_text_has_a_report(tmp_path):
    page = write_report(Ledger(tmp_path), tmp_path).read_text()
    assert "0 of 0 prompts" in page and "<svg" not in page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_real_browser_draws_the_report(report, tmp_path):
    """A page beside it loads it, measures its plots and tables as drawn, and asks what it fetched."""
    (report.parent / "probe.html").write_text(
        """<iframe id="frame" src="report.html" width="1100" height="2000"></iframe><pre id="said"></pre>
        <script>onload = () => {
          const page = frame.contentDocument
          const size = one => [one.getBoundingClientRect().width, one.getBoundingClientRect().height]
          said.textContent = JSON.stringify({
            plots: [...page.querySelectorAll("svg")].map(size),
            rows: page.querySelectorAll("#prompts tr").length,
            failures: page.querySelectorAll("#failures tr").length,
            bars: page.querySelectorAll("svg path").length,
            fetched: frame.contentWindow.performance.getEntriesByType("resource").length,
            wide: page.documentElement.scrollWidth - 1100,
          })
        }</script>"""
    )
    shown = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=5000", "--dump-dom",
         (report.parent / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    found = re.search(r'<pre id="said">(.*?)</pre>', shown.stdout)
    assert found and found[1], shown.stderr
    said = json.loads(found[1])
    assert len(said["plots"]) == 3
    assert all(width > 400 and height > 150 for width, height in said["plots"])
    assert (said["rows"], said["failures"], said["fetched"]) == (15, 2, 0)
    assert said["bars"] > 3 * 12 and said["wide"] <= 0
