"""Every socket that the supervisor opens, and the addresses behind them."""
