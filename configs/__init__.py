"""Values only: what `agents` composes into a run."""
