"""One line says where a program stands, in its own code if it can be."""

import pytest

from penstock_supervisor.children import stacks
from penstock_supervisor.children.last_output import LastOutput

IMPORTS = """\
Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.12/threading.py", line 355 in wait
  File "/srv/other.py", line 7 in in_another_thread

Current thread 0x00007f2 (most recent call first):
  File "/usr/lib/python3.12/socket.py", line 836 in create_connection
  File "/srv/releases/2/database.py", line 12 in connect
  File "/srv/releases/2/program.py", line 3 in <module>
  File "<frozen importlib._bootstrap>", line 488 in _call_with_frames_removed
  File "/usr/lib/python3.12/importlib/__init__.py", line 90 in import_module
  File "/venv/lib/python3.12/site-packages/penstock_worker/serve.py", line 312 in run
Tasks of the event loop: 0
"""
WAITS = """\
Current thread 0x00007f2 (most recent call first):
  File "/usr/lib/python3.12/asyncio/runners.py", line 118 in run
  File "/checkout/worker/penstock_worker/serve.py", line 313 in run
Tasks of the event loop: 1
Task Task-1 (most recent call first):
  File "/usr/lib/python3.12/asyncio/tasks.py", line 665 in sleep
  File "/srv/program.py", line 40 in warm_up
"""
NOT_ITS_OWN = """\
Current thread 0x00007f2 (most recent call first):
  File "/usr/lib/python3.12/socket.py", line 836 in create_connection
  File "/usr/lib/python3.12/runpy.py", line 88 in _run_code
"""


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (IMPORTS, "/srv/releases/2/database.py, line 12, in connect"),
        (WAITS, "/srv/program.py, line 40, in warm_up"),
        (NOT_ITS_OWN, "/usr/lib/python3.12/socket.py, line 836, in create_connection"),
        ("it said something else", ""),
        ("", ""),
    ],
)
def test_the_innermost_call_of_its_own_code_is_the_place(text: str, place: str) -> None:
    assert stacks.place(text) == place


def test_a_place_is_bounded() -> None:
    frame = f'  File "/srv/{"x" * 9999}.py", line 1 in f'
    assert len(stacks.place(f"Current thread 0x1 (most recent call first):\n{frame}")) < 300


def test_the_frames_of_the_import_machinery_do_not_push_out_those_that_say_something() -> None:
    last = LastOutput()
    last.add(
        [b"Current thread 0x1 (most recent call first):", b'  File "/srv/deep.py", line 1 in f']
    )
    for _ in range(20):
        last.add([b'  File "<frozen importlib._bootstrap>", line 488 in _load_unlocked'] * 5)
    assert stacks.place(last.text()) == "/srv/deep.py, line 1, in f"
