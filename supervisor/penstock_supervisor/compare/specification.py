"""Makes the specification of a comparison from what a person asked for.

Owns everything that can be wrong with it before anything is started: names that do not exist,
peers that are not installed or cannot run the program, a load generator that is not there.
"""

import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock_supervisor.compare import plan, variants
from penstock_supervisor.compare.peers import choice
from penstock_supervisor.compare.peers.peer import Peer
from penstock_supervisor.compare.peers.recipe import RecipeError
from penstock_supervisor.compare.run import ComparisonSpec
from penstock_supervisor.compare.variants import Variant
from penstock_supervisor.config.loader import ConfigError, Service


class ProgramMissingError(Exception):
    """A program that was asked for is not installed. One line for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asked for, with names that have not been looked up yet."""

    service: Service
    proxies: int
    peers: Sequence[str]
    others: Sequence[str]
    """Addresses."""
    schemes: str
    """A list with commas; "" for all."""
    scaled_workers: Sequence[int]
    """Other numbers of workers."""
    generator: str
    """auto, own or wrk."""
    path: str
    quick: bool
    rounds: int | None
    verify: bool
    access_log: bool
    directory: str
    """For unix sockets of the subjects."""
    command: str
    """The command line."""
    notes: Sequence[str]
    """What was asked for and is left out."""
    verbose: bool


def make(request: Request) -> ComparisonSpec:
    """ConfigError, ProgramMissingError."""
    service = request.service
    try:
        names = variants.parse_names(request.schemes) if request.schemes else variants.NAMES
    except ValueError as error:
        raise ConfigError((f"--schemes: {error}",)) from None
    if missing := choice.missing(request.peers):
        raise ConfigError(tuple(f"--peer: {line}" for line in missing))
    chosen = _chosen(request, service, names, request.directory)
    if not chosen.variants and not request.others and not request.peers:
        raise ConfigError(chosen.notes)
    wrk = shutil.which("wrk") or ""
    if not wrk and (request.verify or request.generator == "wrk"):
        option = "--verify" if request.verify else "--load wrk"
        raise ProgramMissingError(f"compare {option} needs wrk, and there is no such program")
    return ComparisonSpec(
        variants=chosen.variants,
        peers=_peers(request, service),
        others=request.others,
        measures=plan.measures(
            quick=request.quick, rounds=request.rounds, max_fds=_max_fds()
        ),
        path=request.path,
        wrk="" if request.generator == "own" else wrk,
        verify_with=wrk if request.verify else "",
        workers=len(service.upstreams) or service.workers,
        config=variants.as_toml(service, request.proxies),
        command=request.command,
        notes=(*chosen.notes, *request.notes),
        access_log=request.access_log,
        scaled=_scaled(request, names),
        verbose=request.verbose,
    )  # fmt: skip


def _chosen(
    request: Request, service: Service, names: Sequence[str], directory: str
) -> variants.Choice:
    return variants.choose(
        service, names, directory, request.proxies, access_log=request.access_log
    )


def _peers(request: Request, service: Service) -> tuple[Peer, ...]:
    if not request.peers:
        return ()
    if service.upstreams:
        raise ConfigError(("--peer: a peer runs a program, and upstreams are somebody else's",))
    try:
        return choice.peers(
            request.peers, service, request.proxies, request.path, access_log=request.access_log
        )
    except RecipeError as error:
        raise ConfigError((f"--peer: {error}",)) from None


def _scaled(
    request: Request, names: Sequence[str]
) -> Mapping[int, tuple[Sequence[Variant], Sequence[Peer]]]:
    """Variants and peers with other numbers of workers."""
    scaled: dict[int, tuple[Sequence[Variant], Sequence[Peer]]] = {}
    for workers in request.scaled_workers:
        service = request.service.model_copy(update={"workers": workers})
        directory = f"{request.directory}/{workers}" if request.directory else ""
        if directory:
            Path(directory).mkdir()
        chosen = _chosen(request, service, names, directory)
        scaled[workers] = (chosen.variants, _peers(request, service))
    return scaled


def _max_fds() -> int:
    """The limit of this process, and so of those that it starts, as with `run`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
