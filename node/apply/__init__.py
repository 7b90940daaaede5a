"""The apply process: the replicated state machine."""
