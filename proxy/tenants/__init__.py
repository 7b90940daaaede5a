"""Tenants: callers that share a proxy and know nothing of each other.

`namespaces_file.py` reads who they are, `tenants.py` finds a caller's, `tenant.py` says what it may do and counts it,
`rate.py` and `usage.py` are the rules of its limits, `shares.py` makes them hold for all workers together,
`tracking.py` follows what the cluster holds of it, `tokens.py` learns whose token a caller sends, and `service.py` puts
them together.
"""
