"""Snapshots between members: which checkpoint is sent, the stream it travels in, and where it waits to be installed."""
