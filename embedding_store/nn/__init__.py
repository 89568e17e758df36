"""The layer through which a model reads stored vectors."""
