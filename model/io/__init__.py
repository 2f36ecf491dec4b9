"""Files by URL, Arrow columns and tensor files."""
