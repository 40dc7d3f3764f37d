"""What a comparison found: figures, a verdict, and both in words and tables."""
