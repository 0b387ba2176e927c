"""What a gate may ask while a network runs: costs, tables, deadlines, the slow-down, policies."""
