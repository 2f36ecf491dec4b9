"""Files by URL, Arrow columns as numpy arrays, and tensor files."""
