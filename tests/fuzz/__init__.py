"""Fuzzers of what clients and workers send: `make fuzz`, or `python -m tests.fuzz requests`.

`oracle` owns what must hold for any bytes. `__main__` lets libFuzzer (atheris) search for bytes
that violate it, guided by coverage. `corpus` is the seed: every known trick, and every input that
was once found. `test_fuzz` replays the corpus and fuzzes for a while.
"""
