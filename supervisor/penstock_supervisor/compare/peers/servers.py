"""The application servers that a peer may be made of. No I/O, no clock."""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Final

from penstock_supervisor.compare.peers.recipe import Process, RecipeError, Setting

PYTHON: Final = "python"
"""Stands for the interpreter that runs us."""
CLUSTER_SCRIPT: Final = "cluster.js"
"""The program of a Node cluster, in the private directory."""
ONE_ADDRESS: Final = ("gunicorn", "granian", "node-cluster")
"""Their workers share a socket. Of others, each worker has an address of its own."""
WITH_UNIX: Final = ("uvicorn", "gunicorn", "granian")
REQUIREMENTS: Final = {
    "uvicorn": (("module", "uvicorn"),),
    "gunicorn": (("module", "gunicorn"),),
    "granian": (("module", "granian"),),
    "node-cluster": (("program", "node"),),
    "command": (),
}
SERVERS: Final = tuple(REQUIREMENTS)


def processes(server: str, setting: Setting, addresses: Sequence[str]) -> Sequence[Process]:
    """The commands that serve the program at these addresses. RecipeError."""
    return _MAKERS[server](setting, addresses)


def _uvicorn(setting: Setting, addresses: Sequence[str]) -> Sequence[Process]:
    _check_asgi(setting)
    common = [
        PYTHON, "-m", "uvicorn", setting.app, "--app-dir", setting.directory,
        *(["--factory"] if setting.app_kind == "factory" else []),
        *([] if setting.access_log else ["--no-access-log"]),
        "--log-level", "info" if setting.access_log else "warning",
    ]  # fmt: skip
    if len(addresses) == 1:
        # Not behind a proxy, or one worker: uvicorn starts its own processes.
        argvs = [[*common, *_uvicorn_bind(addresses[0]), "--workers", str(setting.workers)]]
    else:
        argvs = [[*common, *_uvicorn_bind(one)] for one in addresses]
    return [_process(setting, argv) for argv in argvs]


def _uvicorn_bind(address: str) -> list[str]:
    if address.startswith("unix:"):
        return ["--uds", address.removeprefix("unix:")]
    host, _, port = address.rpartition(":")
    return ["--host", host, "--port", port]


def _gunicorn(setting: Setting, addresses: Sequence[str]) -> Sequence[Process]:
    if not setting.app:
        raise RecipeError("it serves an application, module:attribute, and no command")
    if setting.app_kind == "aiohttp":
        worker = "aiohttp.GunicornUVLoopWebWorker"
    elif setting.app_kind == "asgi":
        worker = setting.gunicorn_worker
    else:
        raise RecipeError("it serves an application, and not what makes one")
    argv = [
        PYTHON, "-m", "gunicorn", setting.app, "--chdir", setting.directory,
        "--worker-class", worker, "--workers", str(setting.workers), "--bind", addresses[0],
        "--log-level", "warning", *(["--access-logfile", "-"] if setting.access_log else []),
    ]  # fmt: skip
    return [_process(setting, argv)]


def _granian(setting: Setting, addresses: Sequence[str]) -> Sequence[Process]:
    _check_asgi(setting)
    (address,) = addresses
    host, _, port = address.rpartition(":")
    unix = address.startswith("unix:")
    argv = [
        PYTHON, "-m", "granian", "--interface", "asgi", setting.app,
        *(["--factory"] if setting.app_kind == "factory" else []),
        "--working-dir", setting.directory, "--workers", str(setting.workers),
        *(["--uds", address.removeprefix("unix:")] if unix else ["--host", host, "--port", port]),
        "--log-level", "info" if setting.access_log else "warning",
        "--access-log" if setting.access_log else "--no-access-log",
    ]  # fmt: skip
    return [_process(setting, argv)]


def _node_cluster(setting: Setting, addresses: Sequence[str]) -> Sequence[Process]:
    program, *arguments = setting.command or ("",)
    if PurePath(program).name not in ("node", "nodejs"):
        raise RecipeError("it runs a Node program: name it after --, as in -- node server.js")
    port = addresses[0].rpartition(":")[2]
    script = f"{setting.folder}/{CLUSTER_SCRIPT}"
    argv = [program, script, str(setting.workers), *arguments]
    return [_process(setting, argv, PORT=port, HOST="127.0.0.1")]


def _command(setting: Setting, addresses: Sequence[str]) -> Sequence[Process]:
    if not setting.command:
        raise RecipeError("it runs a command: name it after --")
    found = []
    for address in addresses:
        port = address.rpartition(":")[2]
        argv = [word.replace("{port}", port) for word in setting.command]
        found.append(_process(setting, argv, PORT=port, HOST="127.0.0.1"))
    return found


def _check_asgi(setting: Setting) -> None:
    if not setting.app:
        raise RecipeError("it serves an ASGI application, module:attribute, and no command")
    if setting.app_kind == "aiohttp":
        raise RecipeError(f"it serves ASGI applications, and {setting.app} is an aiohttp one")


def _process(setting: Setting, argv: Sequence[str], **env: str) -> Process:
    return Process("workers", tuple(argv), setting.directory, {**setting.env, **env})


_MAKERS: Final[dict[str, Callable[[Setting, Sequence[str]], Sequence[Process]]]] = {
    "uvicorn": _uvicorn,
    "gunicorn": _gunicorn,
    "granian": _granian,
    "node-cluster": _node_cluster,
    "command": _command,
}
