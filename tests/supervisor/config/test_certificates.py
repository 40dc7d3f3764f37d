"""Certificate files are checked before use, reloaded on change, and reported with their key.

Covers `config/tls_rules` and `rollout/certificate_reload`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from penstock_supervisor.cli import penstock
from penstock_supervisor.config import certificates
from penstock_supervisor.config.loader import Config, ConfigError, load
from penstock_supervisor.config.model import Service
from penstock_supervisor.rollout.certificate_reload import CertificateReload

AUTHORITY = trustme.CA()
NOW = datetime.now(UTC)


def write(folder: Path, stem: str, made: trustme.LeafCert) -> dict[str, str]:
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    (folder / f"{stem}.pem").write_bytes(chain)
    (folder / f"{stem}.key").write_bytes(made.private_key_pem.bytes())
    return {"cert": str(folder / f"{stem}.pem"), "key": str(folder / f"{stem}.key")}


@pytest.fixture
def good(tmp_path: Path) -> dict[str, str]:
    return write(tmp_path, "good", AUTHORITY.issue_cert("a.example", "*.b.example", "10.0.0.1"))


def service(**tls: object) -> Service:
    return Service.model_validate(
        {"name": "web", "listen": "127.0.0.1:0", "app": "a:b", "tls": tls}
    )


def problems_of(**tls: object) -> list[str]:
    return [
        f"{'.'.join(map(str, where[2:]))}: {text}"
        for where, text in certificates.problems([service(**tls)])
    ]


def test_a_good_pair_gives_names_and_expiry(good: dict[str, str]) -> None:
    bundle = certificates.read(service(**good))
    (one,) = bundle.certificates
    assert one.names == ("a.example", "*.b.example")
    assert one.kind == "ec"
    (info,) = bundle.infos
    assert info.name == "a.example"
    assert info.not_after.year == 3000
    assert not list(certificates.warnings_for(info, NOW))
    assert bundle.settings.alpn == "http/1.1"


def test_a_key_is_in_no_repr(good: dict[str, str]) -> None:
    bundle = certificates.read(service(**good))
    secret = Path(good["key"]).read_text().splitlines()[1]
    assert bundle.certificates[0].key.count(secret) == 1
    assert secret not in f"{bundle!r} {bundle} {bundle.certificates!r}"


def test_one_file_may_have_both_and_comments_in_any_encoding(
    tmp_path: Path, good: dict[str, str]
) -> None:
    both = tmp_path / "both.pem"
    key, cert = Path(good["key"]).read_bytes(), Path(good["cert"]).read_bytes()
    both.write_bytes("Schlüssel\n".encode("latin-1") + key + b"\n# and\n" + cert)
    (one,) = certificates.read(service(cert=str(both), key=str(both))).certificates
    assert "PRIVATE" not in one.chain
    assert one.key.strip() == key.decode().strip()


def encrypted(text: str) -> bytes:
    key = load_pem_private_key(text.encode(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


Change = Callable[[str, str], tuple[str | bytes | None, str | bytes | None]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c, k: (None, k), r"tls.cert: cannot read \S+good.pem: No such file or directory"),
        (lambda c, k: (c, None), r"tls.key: cannot read \S+good.key: No such file or directory"),
        (lambda c, k: (k, k), r"tls.cert: \S+good.pem: expected a certificate as PEM, .*"),
        (lambda c, k: (c, c), r"tls.key: \S+good.key: expected a private key as PEM, .*"),
        (lambda c, k: ("", k), r"tls.cert: \S+good.pem: expected a certificate as PEM, .*"),
        (
            lambda c, k: (c.replace("MI", "!!"), k),
            r"tls.cert: \S+good.pem cannot be understood: .*",
        ),
        (lambda c, k: (c, k.replace("M", "A")), r"tls.key: \S+good.key cannot be understood: .*"),
        (lambda c, k: (c, encrypted(k)), r"tls.key: \S+good.key is encrypted, .*"),
        (
            lambda c, k: (c + " " * (200 << 10), k),
            r"tls.cert: cannot read \S+good.pem: too large: .*",
        ),
        (lambda c, k: (c, b"\xff\xfe\0" * 100), r"tls.key: \S+good.key: expected a private key.*"),
        (
            lambda c, k: (c, AUTHORITY.issue_cert("a").private_key_pem.bytes()),
            r"tls.key: \S+good.key does not belong to the first certificate in \S+good.pem",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_with_its_path_and_key(
    good: dict[str, str], change: Change, problem: str
) -> None:
    files = [Path(good["cert"]), Path(good["key"])]
    for path, text in zip(files, change(*(path.read_text() for path in files)), strict=True):
        if text is None:
            path.unlink()
        else:
            path.write_bytes(text.encode() if isinstance(text, str) else text)
    (found,) = problems_of(**good)
    assert re.fullmatch(problem, found), found
    assert "BEGIN" not in found


def test_all_problems_are_reported_at_once(tmp_path: Path, good: dict[str, str]) -> None:
    there = {"cert": str(tmp_path / "no.pem"), "key": str(tmp_path / "no.key")}
    found = problems_of(
        certificates=[good, there, {**good, "key": there["key"]}],
        client_ca=there["cert"],
        client_certificates="required",
    )
    assert [line.partition(": ")[0] for line in found] == [
        "tls.certificates.1.cert",
        "tls.certificates.1.key",
        "tls.certificates.2.key",
        "tls.client_ca",
    ]


def test_a_key_that_is_too_short_for_openssl_is_found(tmp_path: Path) -> None:
    files = write(tmp_path, "weak", weak())
    (found,) = problems_of(**files)
    assert found == "tls.cert: OpenSSL refuses it: ee key too small"


def weak() -> trustme.LeafCert:
    """A certificate of 1024 bits, which current tools do not make."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak.example")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return trustme.LeafCert(pem, made.public_bytes(Encoding.PEM), [])


def test_a_certificate_that_clients_reject_is_a_warning_and_no_error(
    tmp_path: Path, good: dict[str, str]
) -> None:
    past = NOW - timedelta(days=3)
    old = AUTHORITY.issue_cert("old.example", not_before=past, not_after=past + timedelta(days=1))
    early = AUTHORITY.issue_cert("early.example", not_before=NOW + timedelta(days=1))
    pairs = [good, write(tmp_path, "old", old), write(tmp_path, "early", early)]
    web = service(certificates=pairs)
    assert not list(certificates.problems([web]))
    found = list(certificates.warnings(Config(services=(web,)), NOW))
    assert [where for where, _ in found] == [
        ("service", "web", "tls", "certificates", at, "cert") for at in (1, 2)
    ]
    assert [text.split()[0] for _, text in found] == ["expired", "not"]


def test_check_finds_files_that_cannot_be_used_and_warns_of_others(
    tmp_path: Path, good: dict[str, str]
) -> None:
    past = NOW - timedelta(days=3)
    old = AUTHORITY.issue_cert("old.example", not_before=past, not_after=past + timedelta(days=1))
    files = write(tmp_path, "old", old)
    path = tmp_path / "web.toml"
    path.write_text(
        '[service.web]\nlisten = "127.0.0.1:0"\napp = "a:b"\n'
        f'[service.web.tls]\ncert = "{files["cert"]}"\nkey = "{files["key"]}"\n'
    )
    done = CliRunner().invoke(penstock, ["check", str(path)], standalone_mode=False)
    assert done.return_value == 0
    assert f"{path}: warning: service.web.tls.cert: expired on" in done.output
    Path(files["key"]).unlink()
    with pytest.raises(ConfigError) as failure:
        load(path, {})
    assert failure.value.problems[0].startswith(f"{path}: service.web.tls.key: cannot read")


class ReloadedService:
    """A service, its files, and the messages that its proxies got."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.messages: list[dict[str, object]] = []
        self.renewal = CertificateReload([service(**files)], self.messages.append)

    async def poll(self, times: int) -> int:
        """The number of messages that the polls caused."""
        before = len(self.messages)
        for _ in range(times):
            await self.renewal.poll()
        return len(self.messages) - before

    def write(self, *names: str) -> None:
        made = AUTHORITY.issue_cert(*names)
        Path(self.files["cert"]).write_bytes(made.cert_chain_pems[0].bytes())
        Path(self.files["key"]).write_bytes(made.private_key_pem.bytes())

    def key(self, data: bytes) -> bytes:
        """Write something else where the key was."""
        path = Path(self.files["key"])
        before = path.read_bytes()
        path.write_bytes(data)
        return before

    def remove(self) -> None:
        Path(self.files["cert"]).unlink()


@pytest.fixture
def reloaded(good: dict[str, str]) -> ReloadedService:
    return ReloadedService(good)


def test_a_proxy_gets_the_terms_and_then_every_pair_with_the_key_last(
    reloaded: ReloadedService,
) -> None:
    first, second = reloaded.renewal.messages()
    assert (first["cmd"], first["of"]) == ("tls", 1)
    assert second["cmd"] == "certificate"
    assert list(second)[-1] == "key"
    # The part of a message that a failed assertion shows.
    assert "PRIVATE" not in repr(second)[:80]


async def test_unchanged_files_are_not_sent_again(reloaded: ReloadedService) -> None:
    assert await reloaded.poll(3) == 0
    for path in map(Path, reloaded.files.values()):
        path.touch()
    assert await reloaded.poll(3) == 0


async def test_changed_files_are_sent_when_they_did_not_change_since_the_last_poll(
    reloaded: ReloadedService,
) -> None:
    reloaded.write("new.example")
    assert await reloaded.poll(1) == 0
    assert await reloaded.poll(1) == 2
    assert await reloaded.poll(2) == 0
    assert reloaded.messages[-1]["names"] == ("new.example",)
    assert reloaded.renewal.views()["web"].reloads == {"ok": 1, "failed": 0}


async def test_a_link_to_another_file_is_a_change(
    tmp_path: Path, reloaded: ReloadedService
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    live = tmp_path / "live"
    for number, folder in enumerate(folders):
        folder.mkdir()
        write(folder, "x", AUTHORITY.issue_cert(f"{number}.example"))
    live.symlink_to(folders[0])
    linked = ReloadedService({"cert": str(live / "x.pem"), "key": str(live / "x.key")})
    (tmp_path / "next").symlink_to(folders[1])
    (tmp_path / "next").rename(live)
    assert await linked.poll(2) == 2
    assert linked.messages[-1]["names"] == ("1.example",)


async def test_a_bad_pair_is_reported_once_and_the_old_pair_stays(
    reloaded: ReloadedService, caplog: pytest.LogCaptureFixture
) -> None:
    before = reloaded.key(b"nothing")
    assert await reloaded.poll(5) == 0
    view = reloaded.renewal.views()["web"]
    assert (view.current, view.reloads) == (False, {"ok": 0, "failed": 1})
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert list(reloaded.renewal.messages())[1]["key"] == before.decode().strip()
    # The pair is as before, so that no message is sent.
    reloaded.key(before)
    assert await reloaded.poll(2) == 0
    assert reloaded.renewal.views()["web"].current


async def test_a_pair_that_is_missing_for_a_moment_is_no_error(reloaded: ReloadedService) -> None:
    reloaded.remove()
    assert await reloaded.poll(1) == 0
    reloaded.write("new.example")
    assert await reloaded.poll(2) == 2
    assert reloaded.renewal.views()["web"].reloads["failed"] == 0
