"""One member: its processes, their links, and how they start."""
