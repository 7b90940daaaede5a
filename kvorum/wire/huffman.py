"""The Huffman code of HPACK (RFC 7541, section 5.2 and appendix B), both ways."""

from typing import Final

from kvorum.wire.hpack_tables import HUFFMAN_CODES

_EOS: Final = 256
_BITS: Final = tuple(format(code, f"0{length}b") for code, length in HUFFMAN_CODES[:_EOS])
_LENGTHS: Final = tuple(length for _, length in HUFFMAN_CODES[:_EOS])


class HuffmanError(ValueError):
    """The octets are not a Huffman-coded string: EOS inside, or padding that is too long or not all ones."""


def encoded_size(text: bytes) -> int:
    """Octets that `encode(text)` would take."""
    lengths = _LENGTHS
    return (sum([lengths[octet] for octet in text]) + 7) >> 3


def encode(text: bytes) -> bytes:
    """The coded octets, padded with ones."""
    bits = "".join([_BITS[octet] for octet in text])
    if not bits:
        return b""
    bits += "1" * (-len(bits) & 7)
    return int(bits, 2).to_bytes(len(bits) >> 3, "big")


def _build_tree() -> tuple[list[list[int]], frozenset[int]]:
    """The code as a tree, and the nodes at which a string may end.

    A node is a pair of children; a child >= 0 is a node, a child < 0 is the symbol -1 - child. A string may end at the
    root or after up to seven ones (section 5.2: padding is the most significant bits of EOS, less than an octet).
    """
    nodes: list[list[int]] = [[0, 0]]
    for symbol, (code, length) in enumerate(HUFFMAN_CODES):
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes.append([0, 0])
                nodes[node][bit] = len(nodes) - 1
            node = nodes[node][bit]
        nodes[node][code & 1] = -1 - symbol
    endings = [0]
    for _ in range(7):
        endings.append(nodes[endings[-1]][1])
    return nodes, frozenset(node << 8 for node in endings)


_NODES, _ENDINGS = _build_tree()

# One step consumes an octet: (node << 8 | octet) -> (next node << 8, symbols that became complete). Filled as octets
# are met: all 65,536 steps would take 60 ms to build and 9 MB, a server meets some hundreds. An octet costs 55 ns.
_STEPS: Final[dict[int, tuple[int, bytes]]] = {}


def _step(position: int) -> tuple[int, bytes]:
    node = position >> 8
    symbols = bytearray()
    for shift in range(7, -1, -1):
        child = _NODES[node][position >> shift & 1]
        if child >= 0:
            node = child
        else:
            symbol = -1 - child
            if symbol == _EOS:
                raise HuffmanError("EOS inside a string")
            symbols.append(symbol)
            node = 0
    step = _STEPS[position] = (node << 8, bytes(symbols))
    return step


def decode(coded: bytes) -> bytes:
    """The string; raises HuffmanError."""
    steps = _STEPS
    node = 0
    pieces: list[bytes] = []
    append = pieces.append
    try:
        for octet in coded:
            node, symbols = steps[node | octet]
            append(symbols)
    except KeyError:
        # A step not met before: those already made are as good as when they were taken.
        for octet in coded[len(pieces) :]:
            position = node | octet
            node, symbols = steps.get(position) or _step(position)
            append(symbols)
    if node not in _ENDINGS:
        raise HuffmanError("bad padding")
    return b"".join(pieces)
