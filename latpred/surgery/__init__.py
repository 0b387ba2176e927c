"""An option as a rewritten graph: what is predicted is what runs."""
