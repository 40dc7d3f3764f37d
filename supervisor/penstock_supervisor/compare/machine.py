"""The machine that a comparison ran on: what a reader needs to judge foreign figures."""

import os
import platform
import resource
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

_SETTINGS: Final = {
    "accept backlog": "/proc/sys/net/core/somaxconn",
    "ephemeral ports": "/proc/sys/net/ipv4/ip_local_port_range",
}
_PACKAGES: Final = ("uvloop", "aiohttp", "uvicorn")


def described() -> dict[str, str]:
    """Hardware, versions, and the limits that schemes run into."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = {
        "cpu": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    found["descriptors a process"] = f"{soft} (at most {hard})"
    for name, path in _SETTINGS.items():
        with suppress(OSError):
            found[name] = " to ".join(Path(path).read_text().split())
    found["load before"] = f"{os.getloadavg()[0]:.2f}"
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
