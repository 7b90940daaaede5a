"""Locust users that speak to a cluster through grpcio, as real clients do. Imported under locust alone.

grpcio blocks in C, which gevent cannot patch: grpcio's own gevent support, switched on below, waits in gevent's thread
pool instead and hands the greenlets their results. A call costs the generator some 200 us of CPU that way, an event
some 70 us.
"""

import gevent
import grpc.experimental.gevent
from gevent import monkey

_THREADS = 20_000
"""At most. Each channel with a stream and each unary call waits in a thread; with gevent's default of 10, calls would
wait for ever behind 10 silent streams."""

assert monkey.is_module_patched("socket"), "these users run under locust, which patches the standard library first"
grpc.experimental.gevent.init_gevent()
gevent.get_hub().threadpool.maxsize = _THREADS
