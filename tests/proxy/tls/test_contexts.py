"""Who connects by TLS is shown the right certificate, on terms that are good, and no others."""

import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from penstock_proxy.tls.contexts import Contexts, Credential, Inbox, Terms
from penstock_proxy.tls.server_names import ByName

if TYPE_CHECKING:
    from collections.abc import Callable

AUTHORITY = trustme.CA()
CA = AUTHORITY.cert_pem.bytes().decode()


def credential(*names: str, key: trustme.KeyType = trustme.KeyType.ECDSA) -> Credential:
    made = AUTHORITY.issue_cert(*names, key_type=key)
    chain = "".join(blob.bytes().decode() for blob in made.cert_chain_pems)
    return Credential(chain, made.private_key_pem.bytes().decode(), names, key.name)


HOME, OTHER, WILD = credential("home.example"), credential("b.example"), credential("*.b.example")
BOTH = credential("both.example", key=trustme.KeyType.RSA), credential("both.example")


def trusting(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=CA)
    context.check_hostname = False
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def shake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a handshake that is done. ssl.SSLError: it cannot be."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(down, up, server_hostname=name, session=session)
    ours = server.wrap_bio(up, down, server_side=True)
    waiting: list[Callable[[], Any]] = [theirs.do_handshake, ours.do_handshake]
    for _ in range(10):
        for step in tuple(waiting):
            try:
                step()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(step)
        if not waiting:
            # What follows a handshake, tickets among it, comes with the first bytes.
            ours.write(b"!")
            assert theirs.read(1) == b"!"
            return ours, theirs
    raise AssertionError("a handshake without end")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("home.example", "home.example"),
        ("b.example", "b.example"),
        ("www.b.example", "*.b.example"),
        ("a.www.b.example", "home.example"),
        ("nobody.example", "home.example"),
        ("example", "home.example"),
        ("", "home.example"),
    ],
)
def test_a_name_finds_its_certificate(name: str, expected: str) -> None:
    contexts = Contexts(Terms(), [HOME, OTHER, WILD])
    _, client = shake(contexts.of(name), trusting())
    assert (client.getpeercert() or {})["subjectAltName"] == (("DNS", expected),)


def test_the_first_of_a_name_counts() -> None:
    names = ByName([("a", 1), ("a", 2), ("*.a", 3)], otherwise=0)
    assert [names.of(name) for name in ("a", "x.a", "*.a", "", "b")] == [1, 3, 3, 0, 0]


@pytest.mark.parametrize("key", ["ECDSA", "RSA"])
def test_two_kinds_of_keys_for_one_name_are_offered_side_by_side(key: str) -> None:
    client = trusting(ssl.TLSVersion.TLSv1_2)
    client.set_ciphers(f"ECDHE-{key}-AES128-GCM-SHA256")
    contexts = Contexts(Terms(), BOTH)
    ours, _ = shake(contexts.of("both.example"), client)
    assert (ours.cipher() or ("",))[0] == f"ECDHE-{key}-AES128-GCM-SHA256"


def test_terms_hold_for_every_certificate() -> None:
    contexts = Contexts(Terms(min_version="1.3", alpn="http/1.1"), [HOME, OTHER])
    for name in ("home.example", "b.example"):
        with pytest.raises(ssl.SSLError):
            shake(contexts.of(name), trusting(ssl.TLSVersion.TLSv1_2))
        client = trusting()
        client.set_alpn_protocols(["h2", "http/1.1"])
        assert shake(contexts.of(name), client)[0].selected_alpn_protocol() == "http/1.1"


def test_nothing_old_is_offered() -> None:
    context = Contexts(Terms(), [HOME]).of("")
    for cipher in context.get_ciphers():
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-")
        assert cipher["aead"]
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION):
        assert context.options & option
    assert not context.options & ssl.OP_NO_TICKET


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_under_its_name_until_certificates_change(
    version: ssl.TLSVersion,
) -> None:
    client = trusting(version)
    contexts = Contexts(Terms(), [HOME, OTHER])
    _, first = shake(contexts.of("b.example"), client, "b.example")
    ours, _ = shake(contexts.of("b.example"), client, "b.example", first.session)
    assert ours.session_reused
    renewed = Contexts(Terms(), [HOME, OTHER])
    ours, _ = shake(renewed.of("b.example"), client, "b.example", first.session)
    assert not ours.session_reused


@pytest.mark.parametrize(
    ("mode", "shows", "lets_in"),
    [
        ("off", True, True),
        ("optional", True, True),
        ("optional", False, True),
        ("required", True, True),
        ("required", False, False),
    ],
)
def test_a_client_is_asked_for_its_certificate(mode: str, shows: bool, lets_in: bool) -> None:
    terms = Terms(client_certificates=mode, client_ca="" if mode == "off" else CA)
    context = Contexts(terms, [HOME]).of("")
    client = trusting()
    if shows:
        AUTHORITY.issue_cert("client.example").configure_cert(client)
    if not lets_in:
        with pytest.raises(ssl.SSLError):
            shake(context, client)
        return
    ours, _ = shake(context, client)
    assert bool(ours.getpeercert(binary_form=True)) is (shows and mode != "off")


@pytest.mark.parametrize("mode", ["optional", "required"])
def test_a_certificate_of_a_stranger_lets_nobody_in(mode: str) -> None:
    context = Contexts(Terms(client_certificates=mode, client_ca=CA), [HOME]).of("")
    client = trusting()
    trustme.CA().issue_cert("client.example").configure_cert(client)
    with pytest.raises(ssl.SSLError):
        shake(context, client)


def test_a_set_is_complete_with_its_last_certificate() -> None:
    terms = {"min_version": "1.2", "client_certificates": "off", "client_ca": "", "alpn": ""}
    inbox = Inbox({"terms": terms, "of": 2})

    def order(one: Credential) -> dict[str, Any]:
        return {"names": list(one.names), "kind": one.kind, "chain": one.chain, "key": one.key}

    assert inbox.add(order(HOME)) is None
    contexts = inbox.add(order(OTHER))
    assert contexts is not None
    assert contexts.of("b.example") is not contexts.of("")


def test_a_key_of_another_is_refused_and_never_shown() -> None:
    with pytest.raises(ssl.SSLError):
        Contexts(Terms(), [Credential(HOME.chain, OTHER.key, ("a",))])
    assert "PRIVATE" not in repr([HOME, Terms()])
