"""gRPC over HTTP/2: a sans-IO connection, HPACK, and the asyncio server and client on top of them."""
