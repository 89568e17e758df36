"""The `embedding-store` command."""
