"""What all connections of one service share: limits, counters, the error log."""
