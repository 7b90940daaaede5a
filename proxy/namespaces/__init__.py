"""Namespaces: a caller sees the keys under a prefix as if there were no others, and under names without the prefix.

`namespace.py` has the arithmetic of keys and ranges, `kv.py`, `watch.py`, `lease.py`, `locks.py` and `auth.py` rewrite
the messages of one service each, and `calls.py` puts them together: bytes in, bytes out, by path of the method.
"""
