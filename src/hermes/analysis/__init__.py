"""What is derived from the journal: the index, who fills it stage by stage, and who reads it."""
