"""The proxy: one listener, many workers. Accept, admit, pick, deliver."""
