"""A peer is known by its name, and runs the program as its documentation advises.

Covers `compare/peers/proxies`, `compare/peers/recipe` and `compare/peers/servers`.
"""

from dataclasses import replace

import pytest

from penstock_supervisor.compare.peers import catalog
from penstock_supervisor.compare.peers.recipe import RecipeError, Setting

ASGI = Setting(
    app="shop.web:app", app_kind="asgi", directory="/srv", workers=3, folder="/run/peer",
    ports=(8000, 8001, 8002, 8003),
)  # fmt: skip
NODE = replace(ASGI, app="", app_kind="", command=("node", "--max-old-space-size=64", "a.js", "x"))
COMMAND = replace(ASGI, app="", app_kind="", command=("./serve", "--port={port}"))


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (("uvicorn",), ("uvicorn",)),
        (("nginx+uvicorn, granian", "granian"), ("nginx+uvicorn", "granian")),
        (("haproxy+gunicorn/unix",), ("haproxy+gunicorn/unix",)),
        ((), ()),
    ],
)
def test_names_are_read_from_lists(texts: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert catalog.parse_names(texts) == names


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("apache", 'not "apache"'),
        ("uvicorn+nginx", 'not "uvicorn\\+nginx"'),
        ("nginx", 'not "nginx"'),
        ("command", 'not "command"'),
        ("uvicorn/unix", "behind a proxy"),
        ("nginx+command/unix", "behind a proxy"),
    ],
)
def test_a_name_that_is_not_known_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        catalog.parse_names((text,))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", [*catalog.NAMES, "nginx+uvicorn/unix", "haproxy+granian/unix"])
def test_every_peer_has_a_recipe_with_its_workers(name: str, log: bool) -> None:
    server = name.removesuffix("/unix").rpartition("+")[2]
    setting = {"node-cluster": NODE, "command": COMMAND}.get(server, ASGI)
    found = catalog.recipe(name, replace(setting, access_log=log))
    assert found.address == "127.0.0.1:8000"
    shown = catalog.text(found)
    assert ("8001" in shown or "/run/peer/0" in shown) == ("+" in name)
    workers = [one for one in found.processes if one.role == "workers"]
    one_each = server == "command" or (server == "uvicorn" and "+" in name)
    if "+" not in name and server == "command":
        workers = workers * 3
    assert len(workers) == (3 if one_each else 1)
    if not one_each:
        assert "3" in workers[0].argv
    assert [one.role for one in found.processes].count("proxy") == ("+" in name)


def test_a_link_over_unix_sockets_has_no_port() -> None:
    found = catalog.recipe("nginx+uvicorn/unix", ASGI)
    assert "server unix:/run/peer/2;" in found.files["nginx.conf"]
    assert "8001" not in catalog.text(found)
    assert "unix@/run/peer/0" in catalog.recipe("haproxy+gunicorn/unix", ASGI).files["haproxy.cfg"]


def test_logs_are_off_unless_they_are_wanted() -> None:
    def shown(name: str, *, log: bool) -> str:
        return catalog.text(catalog.recipe(name, replace(ASGI, access_log=log)))

    assert "access_log off" in shown("nginx+uvicorn", log=False)
    assert "access_log off" not in shown("nginx+uvicorn", log=True)
    assert "option httplog" not in shown("haproxy+uvicorn", log=False)
    assert "option httplog" in shown("haproxy+uvicorn", log=True)
    for name, option in (("uvicorn", "--no-access-log"), ("granian", "--no-access-log")):
        assert option in shown(name, log=False)
        assert option not in shown(name, log=True)
    assert "--access-logfile" not in shown("gunicorn", log=False)
    assert "--access-logfile" in shown("gunicorn", log=True)


def test_the_values_of_the_programs_variables_are_not_shown() -> None:
    secret = replace(ASGI, env={"TOKEN": "hunter2"})
    found = catalog.recipe("uvicorn", secret)
    assert found.processes[0].env["TOKEN"] == "hunter2"
    assert "hunter2" not in catalog.text(found)


@pytest.mark.parametrize(
    ("name", "setting", "problem"),
    [
        ("uvicorn", NODE, "uvicorn: it serves an ASGI application"),
        ("nginx+granian", replace(ASGI, app_kind="aiohttp"), r"shop\.web:app is an aiohttp one"),
        ("gunicorn", NODE, "no command"),
        ("gunicorn", replace(ASGI, app_kind="factory"), "not what makes one"),
        ("node-cluster", ASGI, "name it after --"),
        ("node-cluster", COMMAND, "a Node program"),
        ("haproxy+command", ASGI, "it runs a command"),
    ],
)
def test_a_program_that_the_peer_cannot_run_is_refused(
    name: str, setting: Setting, problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        catalog.recipe(name, setting)


def test_gunicorn_serves_aiohttp_with_its_worker() -> None:
    found = catalog.recipe("gunicorn", replace(ASGI, app_kind="aiohttp"))
    assert "aiohttp.GunicornUVLoopWebWorker" in found.processes[0].argv


def test_options_of_node_stay_before_the_program() -> None:
    found = catalog.recipe("node-cluster", NODE)
    assert found.processes[0].argv == (
        "node", "/run/peer/cluster.js", "3", "--max-old-space-size=64", "a.js", "x",
    )  # fmt: skip
