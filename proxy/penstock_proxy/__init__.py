"""The front: one listener, many workers. Accept, admit, pick, deliver."""
