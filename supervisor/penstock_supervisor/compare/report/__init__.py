"""The results of a comparison: figures, their evaluation, and both in words and tables."""
