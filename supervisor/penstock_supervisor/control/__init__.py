"""What operators talk to: the control socket, the admin port, the status page."""
