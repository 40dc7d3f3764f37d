"""What is missing for a peer is one line, before anything is started.

Covers `compare/peers/app_kind`.
"""

from pathlib import Path

import pytest

from penstock_supervisor.compare.peers import app_kind, choice
from penstock_supervisor.compare.peers.recipe import RecipeError
from penstock_supervisor.config.loader import load


@pytest.mark.parametrize(
    ("names", "installed", "lines"),
    [
        (("nginx+uvicorn",), {"nginx", "uvicorn"}, ()),
        (
            ("nginx+uvicorn", "granian"),
            {"uvicorn"},
            (
                "nginx+uvicorn needs nginx, which is not installed here: apt install nginx-light",
                "granian needs granian, which is not installed here: pip install granian",
            ),
        ),
        (
            ("haproxy+node-cluster",),
            {"haproxy"},
            ("haproxy+node-cluster needs node, which is not installed here: apt install nodejs",),
        ),
        (("command",), set(), ()),
    ],
)
def test_each_peer_that_cannot_be_run_says_what_to_install(
    names: tuple[str, ...], installed: set[str], lines: tuple[str, ...]
) -> None:
    assert choice.missing(names, lambda _kind, name: name in installed) == lines


def test_what_is_installed_is_found() -> None:
    assert choice.is_installed("module", "aiohttp")
    assert not choice.is_installed("module", "penstock_of_nobody")
    assert not choice.is_installed("program", "penstock-of-nobody")


@pytest.mark.parametrize(
    ("app", "kind"),
    [("penstock_worker.demo:app", "aiohttp"), ("penstock_worker.demo:asgi", "asgi"),
     ("made:make", "factory")],
)  # fmt: skip
def test_the_kind_of_an_application_is_found_by_importing_it(
    tmp_path: Path, app: str, kind: str
) -> None:
    (tmp_path / "made.py").write_text("print('noise')\ndef make():\n    return None\n")
    assert app_kind.find(app, str(tmp_path)) == kind


@pytest.mark.parametrize(
    ("app", "problem"),
    [("none_such:app", "No module named"), ("penstock_worker.demo:udp", "over HTTP")],
)
def test_an_application_that_cannot_be_served_is_one_line(
    tmp_path: Path, app: str, problem: str
) -> None:
    if app.endswith("udp"):
        (tmp_path / "datagrams.py").write_text("import asyncio\nudp = asyncio.DatagramProtocol()\n")
        app = "datagrams:udp"
    with pytest.raises(RecipeError, match=problem) as raised:
        app_kind.find(app, str(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_peer_is_refused_before_it_is_started_and_shows_its_setup_otherwise() -> None:
    (aiohttp,) = load(None, {}).services
    asgi = aiohttp.model_copy(update={"app": "penstock_worker.demo:asgi"})
    (made,) = choice.peers(("uvicorn",), asgi, 1, "/", access_log=False)
    assert "penstock_worker.demo:asgi" in made.setup
    with pytest.raises(RecipeError, match="aiohttp"):
        choice.peers(("uvicorn",), aiohttp, 1, "/", access_log=False)
