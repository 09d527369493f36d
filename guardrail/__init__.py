"""The domain: what is unsafe, what a record is, and the small model that tells."""
