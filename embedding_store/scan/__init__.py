"""Readers in bulk, front to back, in bounded memory: the index, rows, verification, differences."""
