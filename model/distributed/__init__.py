"""Collective operations, and embedding tables that are replicated or sharded over processes."""
