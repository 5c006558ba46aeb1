"""A report in a real headless Chromium (`make test-browser`): nothing fails, nothing is cut off."""

import json
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from page_samples import SCRIPT, page_of, study

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"),
)
# appended to the page under test, which lets only its own script run: the policy is taken out
PROBE = """<script>
addEventListener("load", () => {
  const found = { charts: 0, cut: [], wide: 0, errors: [] };
  for (const more of document.querySelectorAll("details")) more.open = true;
  for (const chart of document.querySelectorAll("figure svg")) {
    found.charts += 1;
    const own = chart.getBoundingClientRect();
    for (const text of chart.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < own.left - 1 || box.right > own.right + 1) found.cut.push(text.textContent);
    }
  }
  found.wide = document.documentElement.scrollWidth - innerWidth;
  const table = document.querySelectorAll("table")[1];
  const first = () => table.tBodies[0].textContent;
  table.querySelector("thead tr:last-child th:nth-child(3) button").click();
  const up = first();
  table.querySelector("thead tr:last-child th:nth-child(3) button").click();
  found.sorted = up !== first();
  const input = document.querySelector(".filter input");
  if (input) {
    input.value = "recipe";
    input.dispatchEvent(new Event("input"));
    found.shown = [...table.tBodies].filter((one) => !one.hidden).length;
  }
  const mark = document.querySelector('.role-mark [role="graphics-symbol"]');
  mark.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
  found.tip = document.getElementById("tip").textContent;
  const told = document.createElement("pre");
  told.id = "found";
  told.textContent = JSON.stringify(found);
  document.body.append(told);
});
</script>"""


def browse(page: Path, folder: Path, *options: str) -> tuple[str, str]:
    """Return the page as the browser has it, and what it logged."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found is not None, f"install one of {', '.join(BROWSERS)}: this test opens a browser"
    command = [found, *OPTIONS, f"--user-data-dir={folder}", *options, "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=240
    )
    return done.stdout, done.stderr


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_runs_without_errors_sorts_filters_and_cuts_nothing_off(
    tmp_path: Path, dark: bool
) -> None:
    text = page_of(*study(), *study(model="another-model-with-a-long-name", task="sst2-long"))
    whole = tmp_path / "whole.html"
    whole.write_text(text)
    colours = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0") if dark else ()
    _, log = browse(whole, tmp_path / "one", *colours)
    assert "CONSOLE" not in log  # neither an error nor anything that the policy refused
    probed = tmp_path / "probed.html"
    before, policy, after = text.partition('<meta http-equiv="Content-Security-Policy"')
    assert policy
    probed.write_text(before + after.partition(">\n")[2].replace("</body>", PROBE + "</body>"))
    drawn, log = browse(probed, tmp_path / "two", *colours)
    assert "CONSOLE" not in log
    found = json.loads(unescape(drawn.partition('<pre id="found">')[2].partition("</pre>")[0]))
    assert found["charts"] == text.count("<svg ")
    assert found["cut"] == []
    assert found["wide"] <= 0
    assert found["sorted"]
    assert found["tip"]


@pytest.mark.browser
def test_a_hostile_name_runs_nothing_in_the_browser(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(page_of(*study(model=SCRIPT, task=SCRIPT)))
    drawn, log = browse(page, tmp_path / "profile")
    assert "CONSOLE" not in log
    assert drawn.count("<script") == 1
