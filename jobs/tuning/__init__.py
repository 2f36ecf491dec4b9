"""Finds settings for the data of a user: search space, trials on a validation tail, final check, the tuned config file."""
