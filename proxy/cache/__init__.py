"""Replies to serializable reads, kept."""
