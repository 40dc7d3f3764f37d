"""Limits, counters and error log of one service, and the fd budget of the whole process."""
