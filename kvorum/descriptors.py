"""How many file descriptors, and so connections, a process may have."""

import resource


def raise_fd_limit() -> int:
    """Take all the file descriptors that this process may have; gives their number. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
