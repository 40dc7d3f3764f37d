"""Why a run cannot start or go on, as the one line that a person reads.

Whoever raises it says what and where ("cannot listen on 127.0.0.1:80 (service.web.listen):
permission denied ..."); the command line only puts its own name in front and exits 1.
"""


class StartError(Exception):
    """Nothing of this run is worth keeping. The text is one line: what, and where."""
