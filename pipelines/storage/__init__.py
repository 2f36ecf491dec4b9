"""The warehouse: tables with staging, manifests, lineages and locks."""
