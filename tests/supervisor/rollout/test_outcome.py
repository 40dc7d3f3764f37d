"""What is so after a roll-out is said as it is: which version serves, and where."""

import pytest

from penstock_supervisor.rollout.outcome import Done, Remains, leftover, outcome
from penstock_supervisor.rollout.rollout_state import Result

WEB, MORE, API = ("web", 0), ("web", 1), ("api", 0)
MANY = [("web", number) for number in range(20)]
NAMED = "web/0, web/1, web/2, web/3, web/4, web/5, web/6, web/7 and 12 more"


@pytest.mark.parametrize(
    ("remains", "words"),
    [
        (Remains(), ""),
        (Remains(untouched=[WEB, MORE]), ""),
        (
            Remains(untouched=[MORE], renewed=[WEB]),
            (
                "web/1 still runs the version before; web/0 already runs the new one and cannot be "
                "put back: its files are the new ones"
            ),
        ),
        (
            Remains(renewed=[WEB, MORE]),
            (
                "web/0, web/1 already run the new one and cannot be put back: their files are the "
                "new ones"
            ),
        ),
        (
            Remains(untouched=MANY, started=[API]),
            (
                f"{NAMED} still run the version before; api/0 has ended meanwhile, and was started "
                "again with the new files"
            ),
        ),
        (
            Remains(started=[WEB, MORE]),
            "web/0, web/1 have ended meanwhile, and were started again with the new files",
        ),
        (Remains(untouched=[MORE], stuck=[WEB]), "web/0 stayed on the new version"),
        (Remains(untouched=[WEB], down=["web", "api"]), "no worker of web, api is ready"),
    ],
)
def test_what_is_left_over_is_named(remains: Remains, words: str) -> None:
    assert leftover(remains) == words


@pytest.mark.parametrize(
    ("result", "done", "words"),
    [
        (Result.SUCCEEDED, Done(True, [WEB]), "the new version serves"),
        (Result.SUCCEEDED, Done(True, is_changed=True), "the configuration is in force"),
        (Result.SUCCEEDED, Done(True), "nothing was to do"),
        (Result.SUCCEEDED, Done(False, [WEB]), "web/0 is replaced"),
        (Result.SUCCEEDED, Done(False, [WEB, API]), "web/0, api/0 are replaced"),
        (Result.SUCCEEDED, Done(False), "nothing was to do"),
        (Result.ABORTED, Done(True), "the old version serves"),
        (Result.ABORTED, Done(True, is_touched=False), "nothing is changed"),
        (
            Result.ABORTED,
            Done(True, [WEB], True, is_changed=True),
            "the configuration before is in force again",
        ),
        # A link leads elsewhere, and the file is as before.
        (Result.ROLLED_BACK, Done(True, [WEB], True), "the release before serves again"),
        (Result.ROLLED_BACK, Done(True), "the old version serves"),
        (Result.SUPERSEDED, Done(True), ""),
        (Result.CANCELLED, Done(True), ""),
        (None, Done(True), ""),
    ],
)
def test_a_result_says_what_is_so_now(result: Result | None, done: Done, words: str) -> None:
    assert outcome(result, done) == words
