"""Tenants: callers that share a proxy and know nothing of each other.

`namespaces_file.py` reads who they are, `tenants.py` finds a caller's, `tenant.py` says what it may do and counts it,
`limits.py` and `usage.py` are the rules of its limits, `tracking.py` follows what the cluster holds of it, and
`tokens.py` learns whose token a caller sends.
"""
