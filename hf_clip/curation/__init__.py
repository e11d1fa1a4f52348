"""Curation of collections: filters, deduplication, and labels that may be wrong."""
