"""What happens to versions over time: tags, schemas, tombstones, expiry, clean-up."""
