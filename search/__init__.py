"""Choosing by measuring: verification, timing, the store, receipts, the optimize pipeline."""
