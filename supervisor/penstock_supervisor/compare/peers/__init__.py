"""Known stacks, such as nginx before uvicorn, run beside ours with the same program."""
