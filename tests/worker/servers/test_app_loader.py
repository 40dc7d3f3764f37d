"""The kind of a program is recognized by its shape; a program that cannot be loaded is one line."""

import asyncio
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from penstock_worker.servers.app_loader import (
    LoadError,
    call_factory,
    classify,
    details,
    explain,
    load,
)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    del scope, receive, send


async def decorated(*args: Any, **kwargs: Any) -> None:
    await asgi(*args, **kwargs)


class Framework:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        del scope, receive, send


def make_aiohttp(name: str = "x") -> web.Application:
    del name
    return web.Application()


async def make_asgi() -> Framework:
    return Framework()


def wsgi(environ: Any, start_response: Any) -> None:
    del environ, start_response


def one(scope: Any) -> None:
    del scope


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting


class Needy(asyncio.DatagramProtocol):
    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting


def make_datagrams() -> Datagrams:
    return Datagrams(b"hello")


async def make_datagrams_later() -> Datagrams:
    return Datagrams(b"hello")


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs; the modules imported from it are forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (web.Application, "factory"),
        (asgi, "asgi"),
        (decorated, "asgi"),
        (Framework(), "asgi"),
        (Datagrams(), "datagram"),
        (Datagrams, "factory"),
        (make_datagrams, "factory"),
        (Framework, "factory"),
        (functools.partial(asgi), "asgi"),
        (functools.partial(make_aiohttp, "y"), "factory"),
        (make_aiohttp, "factory"),
        (make_asgi, "factory"),
        (lambda a=1, b=2, c=3: (a, b, c), "factory"),
    ],
)
def test_the_kind_of_a_program_is_recognized_from_its_shape(target: Any, kind: str) -> None:
    assert classify("m:x", target).kind == kind


async def test_an_aiohttp_application_is_recognized_although_it_is_callable() -> None:
    assert classify("m:x", web.Application()).kind == "aiohttp"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (None, "is None, not an aiohttp Application"),
        (5, "is an int, not"),
        (sys, "is a module, not"),
        (wsgi, "like a WSGI application"),
        (one, "is a function with other arguments"),
        (iter, "not an aiohttp Application"),
    ],
)
def test_any_other_object_is_refused_with_its_type(target: Any, reason: str) -> None:
    with pytest.raises(LoadError, match=reason):
        classify("m:x", target)


@pytest.mark.parametrize(
    ("factory", "kind"), [(make_aiohttp, "aiohttp"), (make_asgi, "asgi"), (Framework, "asgi")]
)
async def test_factories_are_called_and_awaited(factory: Callable[[], Any], kind: str) -> None:
    assert (await call_factory(classify("m:x", factory))).kind == kind


async def test_a_program_that_is_no_factory_is_not_called() -> None:
    program = classify("m:x", asgi)
    assert await call_factory(program) is program


@pytest.mark.parametrize("product", [None, make_aiohttp])
async def test_a_factory_that_returns_no_program_is_refused(product: Any) -> None:
    with pytest.raises(LoadError, match=r'"m:x\(\)" is'):
        await call_factory(classify("m:x", lambda: product))


@pytest.mark.parametrize(
    "spec", ["", "x", "x:", ":x", "x:y z", "../x:y", "x:y()", "x:y:z", "a-b:c"]
)
def test_a_malformed_program_name_is_refused(spec: str) -> None:
    with pytest.raises(LoadError, match="MODULE:ATTRIBUTE"):
        load(spec)


def test_dots_lead_into_packages_and_attributes(cwd: Path) -> None:
    (cwd / "pkg").mkdir()
    (cwd / "pkg/__init__.py").write_text("")
    (cwd / "pkg/mod.py").write_text("class holder:\n  @staticmethod\n  def make(): pass\n")
    program = load("pkg.mod:holder.make")
    assert (program.kind, program.spec) == ("factory", "pkg.mod:holder.make")


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        ("\n\nimport nosuch\n", "ModuleNotFoundError: No module named 'nosuch' (mod.py:3)", True),
        ("\n1 +\n", "SyntaxError: invalid syntax (mod.py:2)", True),
        ("raise SystemExit('no\\n  key')\n", "SystemExit: no key (mod.py:1)", True),
        ("import json\njson.loads('x')\n", "JSONDecodeError: Expecting value", True),
        ("assert 0\n", "AssertionError (mod.py:1)", True),
        ("", 'module "mod" has no attribute "app"', False),
    ],
)
def test_a_failed_import_is_one_line_with_the_place_in_the_program(
    cwd: Path, text: str, reason: str, shown: bool
) -> None:
    (cwd / "mod.py").write_text(text)
    with pytest.raises(LoadError) as failure:
        load("mod:app")
    line = str(failure.value)
    assert line.startswith('cannot import "mod:app": ')
    assert reason in line
    assert "\n" not in line
    assert bool(failure.value.details) is shown
    assert "importlib" not in failure.value.details


def test_a_library_that_fails_is_reported_at_the_line_that_called_it(cwd: Path) -> None:
    (cwd / "mod.py").write_text("import json\njson.loads('x')\n")
    with pytest.raises(LoadError, match=r"\(mod.py:2\)"):
        load("mod:app")


def test_a_missing_module_is_an_error_without_a_traceback(cwd: Path) -> None:
    del cwd
    with pytest.raises(LoadError, match="No module named 'nosuch'") as failure:
        load("nosuch:app")
    assert failure.value.details == ""


def test_an_error_without_a_traceback_is_explained_by_its_type() -> None:
    assert explain(KeyError()) == "KeyError"
    assert details(KeyError()) == ""


@pytest.mark.parametrize("make", [Datagrams, make_datagrams, make_datagrams_later])
async def test_a_protocol_for_datagrams_is_made_once(make: Any) -> None:
    found = await call_factory(classify("x:make", make))
    assert found.kind == "datagram"
    assert isinstance(found.target(), Datagrams)
    assert found.target() is found.target()


def test_a_datagram_protocol_that_needs_arguments_is_refused() -> None:
    with pytest.raises(LoadError, match='"x:Needy" cannot be made without arguments'):
        classify("x:Needy", Needy)
