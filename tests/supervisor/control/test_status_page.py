"""The status page has a row for every process and upstream, and escapes every text.

Covers `control/summary`.
"""

from html.parser import HTMLParser
from typing import Any

import pytest
from tests.support.supervisor.fake_run import rollout, step

from penstock_supervisor.control import status_page, summary
from penstock_supervisor.control.status import describe


class Cells(HTMLParser):
    """The texts of a page's cells, row by row, with the class of the second one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.health: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            kind = dict(attrs).get("class")
            if kind in ("good", "wait", "bad"):
                self.health.append(kind)

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def shown(snapshot: Any) -> Cells:
    return Cells(status_page.render(describe(snapshot, "1.0", 7, {})))


def test_every_process_and_upstream_has_a_row(made: Any) -> None:
    cells = shown(made.snapshot())
    names = [row[0] for row in cells.rows if row[0]]
    assert names == ["proxy/0", "web/0", "web/1", "api/0"]
    assert len({len(row) for row in cells.rows[2:5]}) == 1, "a row has a cell for each heading"


def test_a_worker_out_of_the_rotation_is_marked_and_its_reason_shown(made: Any) -> None:
    cells = shown(made.snapshot())
    _, well, bad, _ = cells.health
    assert (well, bad) == ("good", "bad")
    (row,) = [row for row in cells.rows if row[0] == "web/1"]
    assert row[1] == "ready, down"
    assert row[-1]


def test_the_roll_outs_are_shown_and_escaped(made: Any) -> None:
    running = rollout(4, step(0, "failed", reason="<script>"), step(1))
    text = status_page.render(describe(made.snapshot(rollouts=(running,)), "1.0", 7, {}))
    assert "<p>roll-out 4: rolling, 0 of 2 workers done, 0 s so far</p>" in text
    assert "web/0 not replaced: &lt;script&gt;</p>" in text
    assert "Roll-outs" not in status_page.render(describe(made.snapshot(), "1.0", 7, {}))


def test_names_and_addresses_are_escaped(made: Any) -> None:
    evil = "<script>alert(1)</script>\"'&"
    services = {
        evil: {
            "scheme": "ports", "mode": "tcp", "listen": f"unix:/{evil}", "upstreams": (evil,),
        }
    }  # fmt: skip
    cells = shown(made.snapshot(services=services))
    assert "script" not in cells.tags
    assert any(evil in cell for row in cells.rows for cell in row)


@pytest.mark.parametrize(
    ("child", "health"),
    [
        ({"state": "ready", "health": "up"}, "good"),
        ({"state": "ready", "health": None}, "good"),
        ({"state": None, "health": "up"}, "good"),
        ({"state": "ready", "health": "ejected"}, "bad"),
        ({"state": None, "health": "down"}, "bad"),
        ({"state": "crash_loop", "health": "down", "crash_loop": True}, "bad"),
        ({"state": "ready", "health": "up", "crash_loop": True}, "bad"),
        ({"state": "ready", "health": "draining"}, "wait"),
        ({"state": "ready", "health": "down"}, "bad"),
        ({"state": "starting", "health": "down"}, "wait"),
        ({"state": "exited", "health": "down"}, "wait"),
        ({"state": "ready", "answers": False, "covered": False}, "bad"),
        ({"state": "ready", "answers": True, "covered": False}, "good"),
    ],
)
def test_the_colour_of_a_row_shows_whether_the_process_serves(
    child: dict[str, Any], health: str
) -> None:
    (row,) = summary.workers("web", {"workers": [{"slot": 0, **child}]})
    assert row.health == health


def test_the_page_loads_nothing_external_and_cannot_be_framed() -> None:
    policy = status_page.HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
