"""What an answer means for those that an upstream stands for: who stays, who joins, who leaves.

Answers rotate, so only which addresses there are counts, and never their order. Nothing that was
not heard takes a member away. No I/O, no clock.
"""

from collections.abc import Sequence

from penstock_supervisor.config.upstream_address import Kind
from penstock_supervisor.names.answers import MAX_ENDPOINTS, Endpoint, Found, family_of


def settle(kind: Kind, present: Sequence[Endpoint], found: Found) -> tuple[Endpoint, ...]:
    """Those that there are from now on. Who stays comes first, in the order of before."""
    offered = {one.address: one for one in found.endpoints}
    stay = [
        offered.get(one.address, one)
        for one in present
        if one.address in offered or (one.name, family_of(one.address)) in found.unanswered
    ]
    all_of = [*stay, *found.endpoints]
    if kind is Kind.ALL:
        chosen = {one.address: one for one in reversed(all_of)}
        ordered = [chosen[address] for address in dict.fromkeys(one.address for one in all_of)]
    else:
        ordered = list(_one_a_name(all_of))
    return tuple(ordered[:MAX_ENDPOINTS])


def _one_a_name(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """The first of each name: several addresses of it lead to the same server."""
    found: dict[str, Endpoint] = {}
    taken = set()
    for one in endpoints:
        if one.name not in found and one.address not in taken:
            found[one.name] = one
            taken.add(one.address)
    return list(found.values())
