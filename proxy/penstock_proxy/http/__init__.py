"""HTTP proxying: connections to clients and to workers, and the exchanges between them."""
