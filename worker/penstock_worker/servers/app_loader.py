"""Imports "mypkg.mod:app" and finds out what kind of application it is.

Owns that decision: an aiohttp Application, an ASGI 3 application, a protocol for datagrams, or a
factory of one of them. An error is a single line of text that names the place in the user's code:
the user sees nothing else. Must not know how an application is served.

The kind is decided by the signature, and never by a call: calling an ASGI application would
start a request.
"""

import asyncio
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

_SERVABLE: Final = (
    "an aiohttp Application, an ASGI 3 application, an asyncio.DatagramProtocol, "
    "or a factory of one without arguments"
)


class LoadError(Exception):
    """Why the named object cannot be served, in one line. Another try would fail likewise."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.details = details
        """The traceback, if it happened in the user's code."""


class AppLoadError(Exception):
    """The program refused to start or stop, and reported why. The next try may succeed."""


class Program(NamedTuple):
    """What was found at `spec`."""

    kind: Literal["aiohttp", "asgi", "datagram", "factory"]
    spec: str
    target: Any


def load(spec: str) -> Program:
    """Import `spec` ("module:attribute", dots allowed in both) and say what it is.

    LoadError if it cannot be imported, is not there, or is nothing that can be served.
    """
    module_name, _, path = spec.partition(":")
    names = path.split(".")
    if not all(name.isidentifier() for name in (*module_name.split("."), *names)):
        raise LoadError(f'"{spec}" is not MODULE:ATTRIBUTE, as in mypkg.mod:app')
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise LoadError(f'cannot import "{spec}": {explain(error)}', details(error)) from error
    for name in names:
        try:
            target = getattr(target, name)
        except AttributeError:
            raise LoadError(f'cannot import "{spec}": {_no_attribute(target, name)}') from None
    return classify(spec, target)


async def call_factory(program: Program) -> Program:
    """Call the program if it is a factory; any other is returned as it is.

    LoadError if the result cannot be served. An error of the factory itself is passed on: the
    next try may succeed.
    """
    if program.kind != "factory":
        return program
    target = program.target()
    if inspect.isawaitable(target):
        target = await target
    found = classify(f"{program.spec}()", target)
    if found.kind == "factory":
        raise LoadError(f'"{found.spec}" is another callable without arguments, not {_SERVABLE}')
    return found


def classify(spec: str, target: object) -> Program:
    if _is_aiohttp(target):
        return Program("aiohttp", spec, target)
    if isinstance(target, asyncio.DatagramProtocol):
        return Program("datagram", spec, lambda: target)
    if callable(target):
        try:
            signature = inspect.signature(target)
        except (TypeError, ValueError):
            raise LoadError(f'"{spec}" is {_with_article(target)}, not {_SERVABLE}') from None
        if _is_datagram(target) and not _accepts_arguments(signature, 0):
            raise LoadError(f'"{spec}" cannot be made without arguments; write a factory of it')
        return Program(
            "factory" if _is_datagram(target) else _kind(spec, target, signature), spec, target
        )
    raise LoadError(f'"{spec}" is {_with_article(target)}, not {_SERVABLE}')


def explain(error: BaseException) -> str:
    """The error in one line, with the file and line of the user's code that it comes from."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    line = f"{type(error).__name__}: {' '.join(text.split())}" if text else type(error).__name__
    where = _location(error)
    return f"{line} ({where})" if where else line


def details(error: BaseException) -> str:
    """The traceback from where the user's code begins; empty if it had no part in it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    names = [frame.f_code.co_filename for frame, _ in frames]
    is_shown = _in_working_directory if any(map(_in_working_directory, names)) else _is_foreign
    first = error.__traceback__
    while first is not None and not is_shown(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    if first is None and not isinstance(error, SyntaxError):
        return ""
    return "".join(traceback.format_exception(type(error), error, first))


def _kind(
    spec: str, target: Callable[..., object], signature: inspect.Signature
) -> Literal["asgi", "factory"]:
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    # A decorator often hides the three names behind *args; a factory hardly ever has them.
    if _accepts_arguments(signature, 3) and (takes_any or not _accepts_arguments(signature, 0)):
        return "asgi"
    if _accepts_arguments(signature, 0):
        return "factory"
    if _accepts_arguments(signature, 2):
        raise LoadError(
            f'"{spec}" takes two arguments, like a WSGI application: '
            "run it with a WSGI server as a command"
        )
    raise LoadError(f'"{spec}" is {_with_article(target)} with other arguments, not {_SERVABLE}')


def _accepts_arguments(signature: inspect.Signature, number: int) -> bool:
    try:
        signature.bind(*(None,) * number)
    except TypeError:
        return False
    return True


def _is_aiohttp(target: object) -> bool:
    # A program with an Application has imported aiohttp; for others it is not imported here.
    web = sys.modules.get("aiohttp.web")
    return web is not None and isinstance(target, web.Application)


def _is_datagram(target: object) -> bool:
    return inspect.isclass(target) and issubclass(target, asyncio.DatagramProtocol)


def _with_article(target: object) -> str:
    if target is None:
        return "None"
    name = type(target).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _no_attribute(holder: object, name: str) -> str:
    kind = "module" if inspect.ismodule(holder) else type(holder).__name__
    return f'{kind} "{getattr(holder, "__name__", "")}" has no attribute "{name}"'


def _location(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [frame for frame in frames if _is_foreign(frame.filename)]
    # The user's line that called a library tells more than the library's line.
    chosen = [frame for frame in foreign if _in_working_directory(frame.filename)] or foreign
    return f"{_relative(chosen[-1].filename)}:{chosen[-1].lineno}" if chosen else ""


def _is_foreign(filename: str) -> bool:
    """Neither this file nor the import machinery."""
    return not filename.startswith("<frozen") and filename not in {__file__, importlib.__file__}


def _in_working_directory(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(Path.cwd()) and "site-packages" not in path.parts


def _relative(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
