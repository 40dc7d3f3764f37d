"""The balancing policies: each picks a member of the rotation for a request."""
