"""The table of names of this machine is read as hosts(5) says."""

from pathlib import Path

from penstock_supervisor.names import hosts_file

TABLE = """
127.0.0.1 localhost
::1       localhost ip6-localhost  # a comment localhost2
10.0.0.1  app.internal app
10.0.0.2  app.internal.
10.0.0.1  app
nonsense  app
"""


def test_all_addresses_of_a_name_are_found_in_their_order() -> None:
    assert hosts_file.addresses(TABLE, "localhost") == ("127.0.0.1", "::1")
    assert hosts_file.addresses(TABLE, "APP.internal.") == ("10.0.0.1", "10.0.0.2")
    assert hosts_file.addresses(TABLE, "app") == ("10.0.0.1",)


def test_what_is_no_name_of_a_line_is_not_found() -> None:
    for name in ("localhost2", "internal", "10.0.0.1", "nonsense", "other"):
        assert hosts_file.addresses(TABLE, name) == ()


def test_a_file_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    assert hosts_file.read(tmp_path / "none") == ""
    (tmp_path / "hosts").write_bytes(b"127.0.0.1 \xff A\n")
    assert hosts_file.addresses(hosts_file.read(tmp_path / "hosts"), "a") == ("127.0.0.1",)
