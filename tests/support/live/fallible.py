"""Programs of workers that a test makes hang or fail, by files in the folder of the run.

`FALLIBLE` is an application, `PLAIN` a program that knows nothing of ours. Both answer `/` with
their slot and pid, and `/healthz` as the file `health-SLOT` or `health` says: `error` is 503,
`hang` no answer at all, no file is 200. `/block` of the application blocks its event loop.
"""

FALLIBLE = """
import asyncio, os, time
from pathlib import Path
from aiohttp import web
from penstock_worker import process

FOLDER = Path(__file__).parent

async def hello(request):
    return web.Response(text=f"hello from {process.slot} (pid {os.getpid()})")

async def health(request):
    for name in (f"health-{process.slot}", "health"):
        if (FOLDER / name).exists():
            if (FOLDER / name).read_text() == "hang":
                await asyncio.sleep(600)
            raise web.HTTPServiceUnavailable
    return web.Response(text="well")

async def block(request):
    time.sleep(600)

async def retire(request):
    process.retire("had enough")
    return web.Response(text=str(os.getpid()))

app = web.Application()
app.router.add_get("/", hello)
app.router.add_get("/healthz", health)
app.router.add_get("/block", block)
app.router.add_get("/retire", retire)
"""

PLAIN = """
import os, socket, socketserver, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, SLOT = Path(__file__).parent, os.environ["PENSTOCK_SLOT"]

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status = 200
        if self.path == "/healthz":
            for name in (f"health-{SLOT}", "health"):
                if (FOLDER / name).exists():
                    status = 503
                    if (FOLDER / name).read_text() == "hang":
                        time.sleep(600)
        body = f"hello from {SLOT} (pid {os.getpid()})".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

if "LISTEN_FDS" in os.environ:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=3)
else:
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
server.daemon_threads = True
server.serve_forever()
"""
