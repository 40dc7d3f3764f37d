"""The proxies that a peer may have in front of its server. No I/O, no clock."""

from collections.abc import Callable, Sequence
from typing import Final

from penstock_supervisor.compare.peers.recipe import Process, Recipe, Setting

# Kept connections to the workers and HTTP/1.1 are what nginx's documentation advises; without
# them every request opens a connection. The temporary paths are where a user may write.
_NGINX: Final = """\
daemon off;
{user}worker_processes {processes};
pid {folder}/nginx.pid;
error_log {folder}/nginx.error.log;
events {{ worker_connections {connections}; }}
http {{
  access_log {log};
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream app {{
{servers}
    keepalive 128;
    keepalive_requests 1000000;
  }}
  server {{
    listen {address} backlog=4096;
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"""

_HAPROXY: Final = """\
global
  maxconn {connections}
  nbthread {processes}{log_target}
defaults
  mode http{log}
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option forwardfor
frontend web
  bind {address} backlog 4096
  default_backend app
backend app
  balance roundrobin
{servers}
"""


def front(proxy: str, setting: Setting, links: Sequence[str]) -> Recipe:
    """The proxy alone, with these addresses behind it."""
    return _MAKERS[proxy](setting, f"127.0.0.1:{setting.ports[0]}", links)


def _nginx(setting: Setting, address: str, links: Sequence[str]) -> Recipe:
    content = _NGINX.format(
        user=f"user {setting.user};\n" if setting.user else "",
        processes=setting.proxies,
        folder=setting.folder,
        connections=setting.max_connections,
        log="/dev/null" if setting.access_log else "off",
        servers="\n".join(f"    server {link};" for link in links),
        address=address,
    )
    path = f"{setting.folder}/nginx.conf"
    argv = ("nginx", "-p", setting.folder, "-c", path)
    return _recipe(setting, address, "nginx.conf", content, argv)


def _haproxy(setting: Setting, address: str, links: Sequence[str]) -> Recipe:
    content = _HAPROXY.format(
        connections=setting.max_connections,
        processes=setting.proxies,
        log_target="\n  log stdout format raw local0" if setting.access_log else "",
        log="\n  log global\n  option httplog" if setting.access_log else "",
        address=address,
        servers="\n".join(
            f"  server w{number} {link.replace('unix:', 'unix@', 1)}"
            for number, link in enumerate(links)
        ),
    )
    argv = ("haproxy", "-db", "-f", f"{setting.folder}/haproxy.cfg")
    return _recipe(setting, address, "haproxy.cfg", content, argv)


def _recipe(
    setting: Setting, address: str, name: str, content: str, argv: tuple[str, ...]
) -> Recipe:
    return Recipe(address, {name: content}, (Process("proxy", argv, setting.folder, {}),))


_MAKERS: Final[dict[str, Callable[[Setting, str, Sequence[str]], Recipe]]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
}
PROXIES: Final = tuple(_MAKERS)
