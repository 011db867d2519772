"""Analysis: what is derived from the journal, stage by stage, in an index of its own."""
