"""What a worker reports of itself: counters, access log, lag of the event loop."""
