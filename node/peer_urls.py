"""Whether two lists of peer URLs are the same places: by their texts, else by the addresses of their hosts."""

from collections.abc import Sequence

from kvorum.resolver import Resolve, ResolveFailed
from kvorum.urls import Url, is_ip, quote


def difference(ours: Sequence[Url], theirs: Sequence[Url], resolve: Resolve) -> str:
    """Why two lists of URLs are not the same places, in the reference's words (S32, S38); empty if they are.

    Nothing is resolved for lists of the same texts: names of members that are down may have no address. `localhost` is
    never resolved, nor are unix sockets.
    """
    if len(ours) != len(theirs):
        return f"len({quoted(ours)}) != len({quoted(theirs)})"
    ours, theirs = sorted(ours, key=str), sorted(theirs, key=str)
    if ours == theirs:
        return ""
    lists: list[list[tuple[str, str]]] = []
    for urls in (ours, theirs):
        try:
            lists.append(sorted((_resolved(url, resolve), str(url)) for url in urls))
        except ResolveFailed as error:
            return str(error)
    for (left, left_text), (right, right_text) in zip(*lists, strict=True):
        if left != right:
            shown = (left, left_text, right, right_text)
            return "{}(resolved from {}) != {}(resolved from {})".format(*map(quote, shown))
    return ""


def quoted(values: Sequence[object]) -> str:
    """A list as error messages show it."""
    return f"[{' '.join(quote(str(value)) for value in values)}]"


def _resolved(url: Url, resolve: Resolve) -> str:
    if url.is_unix:
        return str(url)
    host, port = url.address
    if host == "localhost" or is_ip(host):
        return str(url)
    try:
        address = resolve(host)
    except ResolveFailed as error:
        raise ResolveFailed(f"failed to resolve {quote(str(url))} ({error})") from None
    return str(url._replace(host=f"[{address}]:{port}" if ":" in address else f"{address}:{port}"))
