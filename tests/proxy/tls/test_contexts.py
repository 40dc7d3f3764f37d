"""A TLS client is shown the certificate of the name it asks for, and only good settings.

Covers `tls/server_names`.
"""

import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from penstock_proxy.tls import contexts as contexts_module
from penstock_proxy.tls.contexts import Certificate, Contexts, ContextsBuilder, TlsSettings
from penstock_proxy.tls.server_names import ServerNameMap

if TYPE_CHECKING:
    from collections.abc import Callable

AUTHORITY = trustme.CA()
CA = AUTHORITY.cert_pem.bytes().decode()


def certificate(*names: str, key: trustme.KeyType = trustme.KeyType.ECDSA) -> Certificate:
    made = AUTHORITY.issue_cert(*names, key_type=key)
    chain = "".join(blob.bytes().decode() for blob in made.cert_chain_pems)
    return Certificate(chain, made.private_key_pem.bytes().decode(), names, key.name)


FIRST, OTHER = certificate("home.example"), certificate("b.example")
WILD = certificate("*.b.example")
BOTH = certificate("both.example", key=trustme.KeyType.RSA), certificate("both.example")


def trusting(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=CA)
    context.check_hostname = False
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def handshake(
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
    contexts = Contexts(TlsSettings(), [FIRST, OTHER, WILD])
    _, client = handshake(contexts.for_name(name), trusting())
    assert (client.getpeercert() or {})["subjectAltName"] == (("DNS", expected),)


def test_the_first_certificate_of_a_name_is_used() -> None:
    names = ServerNameMap([("a", 1), ("a", 2), ("*.a", 3)], default=0)
    assert [names.lookup(name) for name in ("a", "x.a", "*.a", "", "b")] == [1, 3, 3, 0, 0]


@pytest.mark.parametrize("key", ["ECDSA", "RSA"])
def test_two_kinds_of_keys_for_one_name_are_offered_side_by_side(key: str) -> None:
    client = trusting(ssl.TLSVersion.TLSv1_2)
    client.set_ciphers(f"ECDHE-{key}-AES128-GCM-SHA256")
    contexts = Contexts(TlsSettings(), BOTH)
    ours, _ = handshake(contexts.for_name("both.example"), client)
    assert (ours.cipher() or ("",))[0] == f"ECDHE-{key}-AES128-GCM-SHA256"


def test_settings_hold_for_every_certificate() -> None:
    contexts = Contexts(TlsSettings(min_version="1.3", alpn="http/1.1"), [FIRST, OTHER])
    for name in ("home.example", "b.example"):
        with pytest.raises(ssl.SSLError):
            handshake(contexts.for_name(name), trusting(ssl.TLSVersion.TLSv1_2))
        client = trusting()
        client.set_alpn_protocols(["h2", "http/1.1"])
        assert handshake(contexts.for_name(name), client)[0].selected_alpn_protocol() == "http/1.1"


def test_no_old_protocol_or_cipher_is_offered() -> None:
    context = Contexts(TlsSettings(), [FIRST]).for_name("")
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
    contexts = Contexts(TlsSettings(), [FIRST, OTHER])
    _, first = handshake(contexts.for_name("b.example"), client, "b.example")
    ours, _ = handshake(contexts.for_name("b.example"), client, "b.example", first.session)
    assert ours.session_reused
    renewed = Contexts(TlsSettings(), [FIRST, OTHER])
    ours, _ = handshake(renewed.for_name("b.example"), client, "b.example", first.session)
    assert not ours.session_reused


@pytest.mark.parametrize(
    ("mode", "shows", "accepted"),
    [
        ("off", True, True),
        ("optional", True, True),
        ("optional", False, True),
        ("required", True, True),
        ("required", False, False),
    ],
)
def test_a_client_is_asked_for_its_certificate(mode: str, shows: bool, accepted: bool) -> None:
    settings = TlsSettings(client_certificates=mode, client_ca="" if mode == "off" else CA)
    context = Contexts(settings, [FIRST]).for_name("")
    client = trusting()
    if shows:
        AUTHORITY.issue_cert("client.example").configure_cert(client)
    if not accepted:
        with pytest.raises(ssl.SSLError):
            handshake(context, client)
        return
    ours, _ = handshake(context, client)
    assert bool(ours.getpeercert(binary_form=True)) is (shows and mode != "off")


@pytest.mark.parametrize("mode", ["optional", "required"])
def test_a_certificate_of_another_authority_is_refused(mode: str) -> None:
    context = Contexts(TlsSettings(client_certificates=mode, client_ca=CA), [FIRST]).for_name("")
    client = trusting()
    trustme.CA().issue_cert("client.example").configure_cert(client)
    with pytest.raises(ssl.SSLError):
        handshake(context, client)


def test_a_set_is_complete_with_its_last_certificate() -> None:
    settings = {"min_version": "1.2", "client_certificates": "off", "client_ca": "", "alpn": ""}
    builder = ContextsBuilder({"terms": settings, "of": 2})

    def message(one: Certificate) -> dict[str, Any]:
        return {"names": list(one.names), "kind": one.kind, "chain": one.chain, "key": one.key}

    assert builder.add(message(FIRST)) is None
    contexts = builder.add(message(OTHER))
    assert contexts is not None
    assert contexts.for_name("b.example") is not contexts.for_name("")


def test_a_key_of_another_certificate_is_refused_and_never_printed() -> None:
    with pytest.raises(ssl.SSLError):
        Contexts(TlsSettings(), [Certificate(FIRST.chain, OTHER.key, ("a",))])
    assert "PRIVATE" not in repr([FIRST, TlsSettings()])


def test_a_certificate_is_loaded_when_it_comes_and_not_all_with_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[Certificate] = []
    monkeypatch.setattr(contexts_module, "_load", lambda _, one: loaded.append(one))
    builder = ContextsBuilder({"terms": {}, "of": 50})
    for number in range(1, 51):
        message = {"names": [f"{number}.example"], "kind": "RSA", "chain": "", "key": ""}
        assert (builder.add(message) is None) == (number < 50)
        assert len(loaded) == number
