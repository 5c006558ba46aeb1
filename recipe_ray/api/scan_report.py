"""What a scan found, for people and for machines: terminal, JSON, SARIF 2.1.0, one HTML page.

Words of a vocabulary come from the uploader of the model. So characters that are not printable are
escaped, and no word is read as markup.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_ray import __version__
from recipe_ray.base.printable import in_a_row, in_html

SHOWN = 8  # suspects of a model in the terminal
WORD = 60  # characters of one of them
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
# stable: what a rule means does not change
RULES = {
    "RR001": ("DisplacedStates", "An input moves the states of texts or images unusually far"),
    "RR002": ("CollapsedStates", "An input makes the states of different texts or images alike"),
    "RR003": ("DamagedWords", "A word makes the model forget the words around it"),
    "RR004": ("LargeEmbedding", "A word's embedding is unusually large"),
    "RR005": ("SmallPatch", "A small patch makes the features of all images alike"),
}
_RULE_OF = {
    "collapse": "RR002",
    "collapse_mask": "RR002",
    "damage": "RR003",
    "embedding_norm": "RR004",
    "smallness": "RR005",
}


@dataclass(frozen=True)
class Result:
    """The scan of one model: what the stage recorded, or the error that prevented it."""

    model: str
    record: dict[str, Any] | None
    error: str | None = None

    @property
    def verdicts(self) -> list[bool | None]:
        """Each detector's: suspicious, not, or None if it cannot say."""
        return [one["suspicious"] for one in self.record["detectors"]] if self.record else []

    @property
    def code(self) -> int:
        """This model's exit code."""
        if self.record is None:
            return 2
        if any(self.verdicts):
            return 1
        return 0 if any(one is False for one in self.verdicts) else 3

    @property
    def said(self) -> str:
        """The verdict in words."""
        return {0: "nothing found", 1: "SUSPICIOUS", 2: "error", 3: "not calibrated"}[self.code]

    @property
    def flagged(self) -> list[tuple[str, dict[str, Any], dict[str, float]]]:
        """Detector, suspect and what is normal, for all suspects above what is normal."""
        if self.record is None:
            return []
        return [
            (one["detector"], suspect, one["normal"] or {})
            for one in self.record["detectors"]
            for suspect in one["flagged"]
        ]


def printed(results: list[Result]) -> str:
    """Return the results for a terminal: one line per model, and below it what was flagged."""
    lines = []
    for one in results:
        lines.append(f"{in_a_row(one.model, WORD)}: {one.said}{_how_much(one)}")
        if one.error is not None:
            lines.append(f"  {one.error}")
        vectors: dict[Any, list[str]] = {}
        for name, suspect, normal in one.flagged:
            shown = f"{in_a_row(suspect['shown'], WORD)} ({_strongest(suspect, normal)})"
            vectors.setdefault((name, suspect["group"]), []).append(shown)
        for (name, _), words in vectors.items():
            more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
            lines.append(f"  {name}: {', '.join(words[:SHOWN])}{more}")
        if one.code == 3 and one.record is not None:
            lines.append("  no clean models of this kind were measured: ranks only, no verdict")
            lines += [f"  {line}" for line in _ranks(one.record)]
        if one.record is not None:
            missing = {k: v for d in one.record["detectors"] for k, v in d["not_measured"].items()}
            lines += [f"  not measured: {name}, because {why}" for name, why in missing.items()]
    return "\n".join(lines)


def _how_much(one: Result) -> str:
    if one.record is None or one.code == 3:
        return ""
    flagged = one.flagged
    most = max(d["suspicion"] for d in one.record["detectors"] if d["suspicion"] is not None)
    vectors = len({(name, suspect["group"]) for name, suspect, _ in flagged})
    what = f"; {len(flagged)} inputs, {vectors} vectors" if flagged else ""
    return f" ({most:.2f} of what is normal{what})"


def _score(suspect: dict[str, Any], normal: dict[str, float]) -> str:
    known: dict[str, float] = {
        n: v / normal[n] for n, v in suspect["scores"].items() if n in normal
    }
    return max(known, key=lambda n: known[n])


def _strongest(suspect: dict[str, Any], normal: dict[str, float]) -> str:
    name = _score(suspect, normal)
    return f"{name} {suspect['scores'][name]:.0f}, normal up to {normal[name]:.0f}"


def _ranks(record: dict[str, Any]) -> list[str]:
    return [
        f"{one['detector']}: "
        + ", ".join(in_a_row(s["shown"], WORD) for s in one["suspects"][:SHOWN])
        for one in record["detectors"]
    ]


def as_json(results: list[Result]) -> dict[str, Any]:
    """Return the results as plain data."""
    return {
        "recipe_ray": __version__,
        "models": [
            {"model": one.model, "verdict": one.said, "error": one.error, **(one.record or {})}
            for one in results
        ],
    }


def as_sarif(results: list[Result]) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log: one result per flagged input, one notification per error."""
    found, notes = [], []
    for one in results:
        where = [{"physicalLocation": {"artifactLocation": {"uri": _uri(one.model)}}}]
        for name, suspect, normal in one.flagged:
            said = f"{name}: {in_a_row(suspect['shown'], WORD)}: {_strongest(suspect, normal)}"
            found.append(
                {
                    "ruleId": _RULE_OF.get(_score(suspect, normal), "RR001"),
                    "level": "error",
                    "message": {"text": said},
                    "locations": where,
                    "properties": {"scores": suspect["scores"]},
                }
            )
        if one.error is not None:
            notes.append({"level": "error", "message": {"text": one.error}, "locations": where})
        elif one.code == 3:
            text = "no verdict: no clean models of this kind were measured"
            notes.append({"level": "warning", "message": {"text": text}, "locations": where})
    rules = [
        {"id": rule, "name": name, "shortDescription": {"text": text}}
        for rule, (name, text) in RULES.items()
    ]
    driver = {"name": "recipe-ray", "version": __version__, "rules": rules}
    done = {"executionSuccessful": not any(one.error for one in results)}
    run = {
        "tool": {"driver": driver},
        "invocations": [{**done, "toolExecutionNotifications": notes}],
        "results": found,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _uri(model: str) -> str:
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = sorted(folder.glob("*.safetensors"))
    return (files[0] if files else folder).resolve().as_uri()


_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left; }
.bad { color: #b3261e; font-weight: 600; }
@media (prefers-color-scheme: dark) { .bad { color: #ff8a80; } }
"""


def as_html(results: list[Result]) -> str:
    """Return one page without scripts or network."""
    rows = "".join(
        f"<tr><td>{in_html(one.model)}</td>"
        f"<td{' class=bad' if one.code == 1 else ''}>{one.said}{in_html(_how_much(one))}</td>"
        f"<td>{in_html(one.error or '')}</td></tr>"
        for one in results
    )
    parts = [
        f"<h2>{in_html(one.model)}</h2><table><thead><tr><th>detector</th><th>input</th>"
        f"<th>vector</th><th>strongest score</th></tr></thead>"
        f"<tbody>{_html_rows(one)}</tbody></table>"
        for one in results
        if one.flagged
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>recipe-ray scan</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>recipe-ray scan</h1><table><thead><tr><th>model</th><th>verdict</th><th>error</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>{''.join(parts)}"
        "<p>Found is what these detectors look for; a silent scan is no proof that a model is "
        "clean.</p></html>\n"
    )


def _html_rows(one: Result) -> str:
    return "".join(
        f"<tr><td>{name}</td><td>{in_html(in_a_row(suspect['shown'], WORD))}</td>"
        f"<td>{suspect['group']}</td><td>{in_html(_strongest(suspect, normal))}</td></tr>"
        for name, suspect, normal in one.flagged
    )
