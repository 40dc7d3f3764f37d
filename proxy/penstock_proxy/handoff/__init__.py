"""Accepted connections passed to workers as descriptors: who gets one, and who has it."""
