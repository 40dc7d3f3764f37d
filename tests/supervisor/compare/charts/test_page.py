"""The page is complete and safe: a browser draws every chart without any network request.

Covers `compare/charts/bars` and `compare/charts/charts`.
Covers `compare/charts/curves` and `compare/charts/theme`.
Covers `compare/charts/summary` and `compare/charts/tables`.
"""

import asyncio
import json
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from penstock_supervisor.compare.charts import charts, page, theme
from penstock_supervisor.compare.report.result import Comparison, ScalingResult, Spread, Subject

if os.environ.get("CI") != "true":
    pytest.importorskip("plotly", reason="needs the extra report")

DEADLINE_S = 60.0
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>&amp;"


class Tab:
    """A page of a running Chromium, by its debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._session = ""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    async def open(self, path: Path) -> None:
        """Load it and wait until its script has drawn everything."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._take(await self._socket.receive_json())
        await self.value("window.drawn.then(() => true)")

    async def value(self, script: str) -> Any:
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._take(answer)

    def _take(self, event: dict[str, Any]) -> None:
        if "method" in event:
            self.events.append(event)

    def console_errors(self) -> list[dict[str, Any]]:
        """Errors and other output in the browser's console."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in kinds]

    def requested(self) -> list[str]:
        """Every requested address that is neither the page nor part of it."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith(("file://", "data:"))]


@asynccontextmanager
async def chromium() -> AsyncIterator[Tab]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = await asyncio.create_subprocess_exec(
            "chromium", *QUIET, f"--user-data-dir={home}", "about:blank",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(DEADLINE_S):
                address = await debugging_address(process)
                async with (
                    aiohttp.ClientSession() as session,
                    session.ws_connect(address, max_msg_size=0) as socket,
                ):
                    yield Tab(socket)
        finally:
            # Its child processes are in its process group, and would outlive it.
            os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()


async def debugging_address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr
    async for line in process.stderr:
        if found := re.search(rb"DevTools listening on (ws://\S+)", line):
            return found[1].decode()
    pytest.fail("chromium printed no address")


@pytest.mark.needs("chromium")
async def test_a_browser_draws_every_chart_without_any_network_request(
    compared: Callable[..., Comparison], tmp_path: Path
) -> None:
    comparison = compared(others=1)
    written = tmp_path / "page.html"
    page.write(comparison, compared(seed=2), written)

    async with chromium() as tab:
        await tab.open(written)
        drawn = json.loads(
            await tab.value(
                "JSON.stringify(Object.fromEntries([...document.querySelectorAll('.chart')].map("
                "chart => [chart.id, chart.querySelectorAll('svg .trace, svg .point').length])))"
            )
        )
        wide = await tab.value("document.documentElement.scrollWidth <= innerWidth")
        assert tab.console_errors() == []
        assert tab.requested() == []

    assert drawn.keys() == {panel.name for panel in charts.panels(comparison)}
    assert all(drawn.values()), drawn
    assert wide


@pytest.mark.needs("chromium")
async def test_names_and_notes_of_a_result_are_escaped(sample: Comparison, tmp_path: Path) -> None:
    subject = sample.subjects[0].model_copy(update={"name": HOSTILE, "notes": (HOSTILE,)})
    hostile = sample.model_copy(
        update={
            "subjects": (subject, *sample.subjects[1:]),
            "machine": {HOSTILE: HOSTILE},
            "notes": (HOSTILE,),
            "command": HOSTILE,
            "config": HOSTILE,
            "started": HOSTILE,
            "penstock": HOSTILE,
        }
    )
    written = tmp_path / "page.html"
    page.write(hostile, hostile, written)

    async with chromium() as tab:
        await tab.open(written)
        title = await tab.value("document.title")
        images = await tab.value("document.querySelectorAll('img').length")
        heading = await tab.value(
            "[...document.querySelectorAll('.subject h3')].map(one => one.textContent).join()"
        )
        labels = await tab.value(
            "[...document.querySelectorAll('#bar-keepalive-requests_per_s .ytick')]"
            ".map(tick => tick.textContent.trim())"
        )
        assert tab.console_errors() == []
        assert tab.requested() == []

    assert title.startswith("penstock compare: ")
    assert images == 0
    assert HOSTILE in heading
    assert theme.shortened(HOSTILE) in labels


def test_scaling_over_workers_has_a_line_for_each_subject(
    sample: Comparison, tmp_path: Path
) -> None:
    point = ScalingResult(
        requests_per_s=Spread(values=(9000.0, 9100.0, 9050.0)),
        cpu_us=Spread(values=(50.0,)),
        limited=False,
    )
    scaled = sample.model_copy(
        update={
            "subjects": tuple(
                one.model_copy(update={"scaling": {1: point, 2: point}}) for one in sample.subjects
            )
        }
    )
    (panel,) = (one for one in charts.panels(scaled) if one.name == "scaling")
    assert [line["x"] for line in panel.plot["data"]] == [[1, 2, 4]] * len(sample.subjects)
    page.write(scaled, None, tmp_path / "page.html")
    assert "requests/s, 2 workers" in (tmp_path / "page.html").read_text("utf-8")
    assert not any(one.name == "scaling" for one in charts.panels(sample))


def test_the_setup_of_a_peer_is_on_the_page(sample: Comparison, tmp_path: Path) -> None:
    peer = sample.subjects[0].model_copy(update={"name": "nginx+uvicorn", "setup": "$ nginx -c x"})
    page.write(sample.model_copy(update={"subjects": (peer,)}), None, tmp_path / "page.html")
    assert "<pre>$ nginx -c x</pre>" in (tmp_path / "page.html").read_text("utf-8")


def test_plotly_accepts_every_panel(compared: Callable[..., Comparison]) -> None:
    from plotly import graph_objects

    for panel in charts.panels(compared(others=8)):
        figure = resolve_colours(panel.plot)
        drawn = graph_objects.Figure(data=figure["data"], layout=figure["layout"])
        assert len(drawn.data) == len(figure["data"])


def test_a_page_can_be_written_from_partial_results(sample: Comparison, tmp_path: Path) -> None:
    written = tmp_path / "page.html"
    for subjects in partly_measured(sample):
        part = sample.model_copy(update={"subjects": subjects, "interrupted": True})
        page.write(part, None, written)
        assert written.read_text().rstrip().endswith("</html>")
        written.unlink()


def test_a_doubtful_figure_is_marked_with_its_reason(sample: Comparison, tmp_path: Path) -> None:
    first, second, *others = sample.subjects
    limited = first.loads["keepalive"].model_copy(update={"limited": True})
    failing = second.loads["keepalive"].model_copy(update={"errors": {"reset": 90_000}})
    doubtful = sample.model_copy(
        update={
            "rounds": 1,
            "subjects": (
                first.model_copy(update={"loads": {"keepalive": limited}}),
                second.model_copy(update={"loads": {"keepalive": failing}}),
                *others,
            ),
        }
    )
    page.write(doubtful, None, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")

    assert page.available()
    assert 'title="the load generator was the limit">≥ 18' in text
    assert " ! <small>" in text
    assert "(errors)" in text


def test_a_scheme_has_the_same_colour_on_every_page(sample: Comparison) -> None:
    colours = theme.subject_colours(sample)
    alone = sample.model_copy(update={"subjects": sample.subjects[2:3]})

    assert theme.subject_colours(alone)["handoff"] == colours["handoff"]
    assert len(set(colours.values())) == len(colours)


def partly_measured(sample: Comparison) -> Iterator[tuple[Subject, ...]]:
    first, *others = sample.subjects
    yield ()
    yield (Subject(name="handoff", scheme="handoff", mode=""),)
    yield (first,)
    yield (first.model_copy(update={"loads": {}, "split": {}, "jain": None}), *others)
    yield (first.model_copy(update={"held": None, "faults": {}}), *others)
    silent = first.loads["keepalive"].model_copy(update={"histogram": {}, "cpu_us": {}})
    yield (first.model_copy(update={"loads": {"keepalive": silent}}), *others)


def resolve_colours(value: Any) -> Any:
    """With a colour for each name that the page's script would fill in."""
    if isinstance(value, dict):
        return {key: resolve_colours(one) for key, one in value.items()}
    if isinstance(value, list):
        return [resolve_colours(one) for one in value]
    return "#000000" if isinstance(value, str) and value.startswith("--") else value
