"""A simulated product: its logs and the truth behind them."""
