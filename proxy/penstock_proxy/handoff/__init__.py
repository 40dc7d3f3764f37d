"""Passes accepted connections to workers as descriptors, and accounts for each of them."""
