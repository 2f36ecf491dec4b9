"""Tables that users own: their contracts, types and reports."""
