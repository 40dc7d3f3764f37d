"""The admin port's page for people: what runs, and whether it serves, as HTML.

Shows the rows that `summary` makes of /status. The page has no script, loads nothing from
elsewhere, and reloads itself every few seconds. Names, addresses and reasons come from
configurations and programs, so all texts are escaped. No I/O, no clock.
"""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final

from penstock_supervisor.control import rollouts, summary

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
}
_STYLE: Final = """\
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --wait: #9a6700; --bad: #cf222e }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --wait: #d29922; --bad: #f85149 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto }
body { padding: 0 1rem }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.1rem; margin: 1.5rem 0 .2rem }
p { margin: 0; opacity: .75 } section { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line) }
th, td { white-space: nowrap; min-width: 3.5rem; vertical-align: top }
th { font-weight: 500; opacity: .75 } .n { text-align: right }
th:last-child, td:last-child { white-space: normal; width: 100%; min-width: 6rem }
.good::before, .wait::before, .bad::before { content: "\\25CF"; padding-right: .4em }
.good::before { color: var(--good) } .wait::before { color: var(--wait) } .bad { color: var(--bad) }
nav { margin-top: 1.5rem } nav a { margin-right: 1rem }
@media (max-width: 40rem) { .wide { display: none } td, td:last-child { min-width: 0 } }
@media (max-width: 40rem) { th, td { padding-right: .6rem } th:last-child { min-width: 0 } }
"""
_PAGES: Final = {
    "/status": "all of it, as JSON",
    "/metrics": "for Prometheus",
    "/readyz": "200 while every service has a worker in rotation",
    "/healthz": "200 while the supervisor lives, and what is wrong",
}


def render(status: Mapping[str, Any]) -> str:
    """The whole page. `status` is the result of `status.describe`."""
    return "".join(_parts(status))


def _parts(status: Mapping[str, Any]) -> Iterator[str]:
    yield (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>penstock</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5">'
        f"<style>{_STYLE}</style>\n"
        f"<h1>penstock {escape(status['version'])}</h1>\n<p>{escape(summary.heading(status))}</p>\n"
    )
    if found := tuple(rollouts.lines(status)):
        yield "<section><h2>Roll-outs</h2>\n"
        yield from (f"<p>{escape(line)}</p>\n" for line in found)
        yield "</section>\n"
    if status["proxies"]:
        yield "<section><h2>Proxies</h2>\n"
        yield from _table(summary.proxies(status), counted="")
        yield "</section>\n"
    for name, service in status["services"].items():
        facts = f"{service['listen']} ({service['scheme']}, {service['mode']})"
        yield f"<section><h2>{escape(name)}</h2>\n<p>{escape(facts)}</p>\n"
        yield from _table(summary.workers(name, service), counted=service["split"]["of"])
        yield "</section>\n"
    yield "<nav>"
    for path, title in _PAGES.items():
        yield f'<a href="{path}" title="{title}">{path}</a>'
    yield "</nav>\n"


def _table(rows: Iterable[summary.SummaryRow], counted: str) -> Iterator[str]:
    """`counted`: "requests" or "connections"; "" if the rows have no counts."""
    counts = f'<th class="n wide">active<th class="n">{escape(counted)}' if counted else ""
    wide = "".join(f'<th class="wide">{title}' for title in ("process", "usage", "address"))
    yield f"<table><tr><th><th>state{counts}{wide}<th>\n"
    for row in rows:
        yield f'<tr><td>{escape(row.name)}<td class="{row.health}">{escape(row.state)}'
        if counted:
            yield f'<td class="n wide">{_number(row.active)}<td class="n">{_number(row.served)}'
        usage = ", ".join(filter(None, (row.age, row.memory, row.fds)))
        for text in (row.process, usage, row.address):
            yield f'<td class="wide">{escape(text)}'
        yield f"<td>{escape(', '.join(filter(None, (row.restarts, row.reason))))}\n"
    yield "</table>\n"


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"
