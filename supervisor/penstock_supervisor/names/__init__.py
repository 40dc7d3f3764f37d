"""The names of upstreams: what they stand for, and when they are looked up again."""
