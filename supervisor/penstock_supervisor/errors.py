"""The error that ends a run, with the one line that a person reads.

The text says what failed and where ("cannot listen on 127.0.0.1:80 (service.web.listen):
permission denied ..."). The command line puts its own name in front of it and exits with 1.
"""


class StartError(Exception):
    """A run cannot start or continue. The text is one line."""
