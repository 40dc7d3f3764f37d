"""`penstock compare`: the schemes side by side, measured on the user's own program."""
