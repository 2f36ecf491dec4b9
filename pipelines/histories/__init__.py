"""What each user did before a moment."""
