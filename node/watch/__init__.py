"""The watch process: watchers and their catch-up."""
