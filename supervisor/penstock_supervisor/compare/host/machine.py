"""Describes the machine of a comparison, for readers who did not run it themselves."""

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


def describe() -> dict[str, str]:
    """Hardware, versions, and the limits that matter to schemes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {
        "cpu": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            facts[package] = version(package)
    facts["descriptors a process"] = f"{soft} (at most {hard})"
    for name, path in _SETTINGS.items():
        with suppress(OSError):
            facts[name] = " to ".join(Path(path).read_text().split())
    facts["load before"] = f"{os.getloadavg()[0]:.2f}"
    return facts


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
