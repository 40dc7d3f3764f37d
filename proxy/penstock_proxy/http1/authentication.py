"""Authentication schemes that authenticate a connection, and not a request.

Owns: their names, and where they stand in a field. HTTP is stateless (RFC 9110 §3.3), and these
break that: after the handshake of NTLM, and of Negotiate with it (RFC 4559 §6), a server takes all
that comes over the same connection as from the user who has authenticated it. Must not know: what
follows for a connection (`http.connection_pool`). No I/O.

A scheme that is found where there is none costs a client the sharing of one connection, and one
that is missed lets a stranger in. So what looks like one is one, also inside of a quoted string.

See docs/decisions/0018-authenticated-connections.md.
"""

import re
from typing import Final

CREDENTIALS: Final = frozenset({b"authorization", b"proxy-authorization"})
CHALLENGES: Final = frozenset({b"www-authenticate", b"proxy-authenticate"})

_SCHEME: Final = re.compile(
    # A list of challenges has its commas between them and within each (RFC 9110 §11.6.1). A name
    # before "=" is a parameter's.
    rb"(?:\A|,)[ \t]*+(?:ntlm|negotiate|nego2|kerberos)(?![!#$%&'*+\-.^_`|~\w]|[ \t]*+=)",
    re.IGNORECASE,
)


def is_of_connection(value: bytes) -> bool:
    """Does the value of such a field name a scheme that authenticates the connection?"""
    return _SCHEME.search(value) is not None
