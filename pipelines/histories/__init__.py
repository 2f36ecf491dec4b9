"""Histories of users: the last positives of each user before an event, and at the end of a day."""
