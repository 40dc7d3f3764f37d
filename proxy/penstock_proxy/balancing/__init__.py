"""Which worker gets a request: policies, members and their health, the queue, the retry budget."""
