"""The page of a night (report.html): what the night writes for it, the small files that it reads, and its sections."""
