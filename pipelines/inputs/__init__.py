"""Input tables, which users own: contracts, types, row checks and reports."""
