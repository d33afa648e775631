"""Everything that learns or reports."""
