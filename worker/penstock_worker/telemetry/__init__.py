"""What a process reports of itself: counters, access log, loop lag. Used by the proxy, too."""
