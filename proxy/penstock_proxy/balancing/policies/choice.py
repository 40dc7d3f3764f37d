"""All balancing policies, by their names in the configuration.

To add one, write a module beside this one, give it a row in `POLICIES`, and add its name to
`config.Balance`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from penstock_proxy.balancing.policies.client_hash import ClientHash
from penstock_proxy.balancing.policies.least_connections import LeastConnections
from penstock_proxy.balancing.policies.policy import M, Policy
from penstock_proxy.balancing.policies.random_choice import PowerOfTwo, WeightedRandom
from penstock_proxy.balancing.policies.round_robin import RoundRobin
from penstock_proxy.config import Balance

POLICIES: Final[Mapping[Balance, type[Policy[Any]]]] = {
    "round_robin": RoundRobin,
    "least_connections": LeastConnections,
    "power_of_two": PowerOfTwo,
    "client_hash": ClientHash,
    "random": WeightedRandom,
}
"""By their names in the configuration."""


def policy(balance: Balance, members: Sequence[M], random: Callable[[], float]) -> Policy[M]:
    """Make the policy of that name, for these members; see `Policy`."""
    return POLICIES[balance](members, random)
