"""The same sources, compiled: what a wheel gets where HATCH_BUILD_HOOKS_ENABLE=1 is set.

Owns the list of modules that mypyc makes C of: all that a request passes through, and nothing
that it does not. A relayed request then costs a third less in user space. The sources are in the
wheel as well, for tracebacks and for whoever reads; nothing is left in the tree, so a
checkout never runs anything but its sources.

A compiled class and one that is not cannot inherit from each other, and a module's
functions cannot be replaced from outside: tests that do so run with the sources.

See docs/decisions/0005-compiled-wheel.md.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = {
    "proxy/penstock_proxy": (
        "balancing/check_results", "balancing/ejections", "balancing/member",
        "balancing/member_state",
        "balancing/outlier_detection",
        "balancing/policies/choice", "balancing/policies/client_hash",
        "balancing/policies/least_connections", "balancing/policies/policy",
        "balancing/policies/random_choice", "balancing/policies/round_robin",
        "balancing/policies/schedule", "balancing/policies/turns",
        "balancing/pool", "balancing/retry_budget", "balancing/rotation", "balancing/slow_start",
        "errors",
        "handoff/dispatcher", "handoff/link", "handoff/pending", "http/client_closing",
        "http/client_connection", "http/client_control",
        "http/client_identity", "http/connection_pool", "http/context", "http/downstream",
        "http/ended_request", "http/exchange", "http/open_clients", "http/retried_request",
        "http/retry", "http/upgrade", "http/upstream_connection", "http/upstream_request",
        "http/worker_connection", "http1/authentication", "http1/chunked",
        "http1/error_response", "http1/field_lines", "http1/fields",
        "http1/parser", "http1/request", "http1/request_body", "http1/response",
        "http1/target_forms", "listener/acceptor", "listener/eviction",
        "listener/filter_chain", "listener/listeners", "listener/overload", "listener/overload_log",
        "listener/peek", "listener/proxy_protocol", "listener/rejection", "listener/sni_router",
        "metrics", "net/connector", "net/half_closed", "net/peer", "net/pipes",
        "net/reactor", "net/socket_transport", "net/socket_writer", "net/tcp_info",
        "net/timer_wheel", "net/transport", "net/unread_input", "net/unsent",
        "runtime/request_counts", "runtime/service",
        "service/client_limit", "service/context", "service/error_log",
        "service/fd_budget", "tcp/duplex", "tcp/session", "tls/client_hello",
        "tls/handshake", "tls/transport",
    ),
    "worker/penstock_worker": (
        "handoff/protocol", "handoff/receiver", "net/trusted_proxies", "telemetry/access_log",
        "telemetry/counters", "telemetry/log_field",
    ),
}  # fmt: skip


class CompiledDataPath(BuildHookInterface):
    """Adds the compiled modules to a wheel, beside their sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is put together."""
        if version == "editable":
            return
        self._made = TemporaryDirectory(prefix="penstock-")
        folder = Path(self._made.name)
        self._compile(folder / "lib", folder / "temp")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path in (folder / "lib").rglob("*.so"):
            build_data["force_include"][str(path)] = str(path.relative_to(folder / "lib"))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called when it has been written."""
        if version != "editable":
            self._made.cleanup()

    def _compile(self, lib: Path, temp: Path) -> None:
        # Only here are they installed: see `dependencies` of the hook.
        from mypyc.build import mypycify
        from setuptools import Distribution

        os.chdir(self.root)
        paths = [f"{folder}/{name}.py" for folder, names in COMPILED.items() for name in names]
        modules = mypycify(
            ["--explicit-package-bases", "--ignore-missing-imports", *paths],
            opt_level="2",
            debug_level="0",
            target_dir=str(temp),
        )
        build = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        build.build_lib, build.build_temp = str(lib), str(temp)
        build.ensure_finalized()
        build.run()
