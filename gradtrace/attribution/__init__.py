"""From a spike to the samples behind it, and how to leave them out."""
