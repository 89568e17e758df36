"""The stored format, FORMAT.md in code: documents, manifests, data files, the index as bytes."""
