"""What a worker has to know of sockets: streams, PROXY headers, accept queues, a clean close."""
