"""Writing to a plain socket beside its transport, which would write only at the end of the loop's turn."""

import asyncio
import os
from typing import Any


def plain_descriptor(transport: asyncio.BaseTransport) -> int:
    """The descriptor to write to beside the transport; -1 where the transport has to encrypt."""
    sock: Any = transport.get_extra_info("socket")
    if sock is None or transport.get_extra_info("ssl_object") is not None:
        return -1
    descriptor: int = sock.fileno()
    return descriptor


def hand_over(descriptor: int, transport: asyncio.Transport, data: bytes) -> None:
    """To the kernel at once where nothing waits before it; what it does not take goes to the transport."""
    rest: bytes | memoryview = data
    if descriptor >= 0 and not transport.get_write_buffer_size():
        try:
            sent = os.write(descriptor, data)
        except OSError:  # full, or broken: the transport meets it again, and knows what to do
            sent = 0
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
    transport.write(rest)
