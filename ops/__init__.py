"""Deployment: clusters on one machine, service files, containers."""
