"""What the steps of a night share: opening the day, checks before the first step, days without data."""
