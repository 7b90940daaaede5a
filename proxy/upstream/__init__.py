"""The members that a proxy forwards to, and which of them is in use."""
