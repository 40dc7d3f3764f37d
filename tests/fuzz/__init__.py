"""Fuzzers of what strangers and workers send: `make fuzz`, or `python -m tests.fuzz requests`.

`oracle` says what must hold for any bytes at all. `__main__` lets libFuzzer (atheris) look for
bytes for which it does not, guided by coverage. `corpus` is where it begins: every known trick,
and whatever was once found. `test_fuzz` replays the corpus and fuzzes for a while.
"""
