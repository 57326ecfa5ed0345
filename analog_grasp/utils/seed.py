"""Seeds derived from one integer that identifies a chip instance."""

import hashlib
import operator


def derive_seed(*parts: int | str | float) -> int:
    """Return a seed of 63 bits from `parts`, the same on every machine and in every process.

    Type and position of a part matter: `("tile", 12)` and `("tile1", 2)` differ, and so do `1` and
    `1.0`. The hash is BLAKE2b (RFC 7693).

    Args:
        parts: The identity of a stream, such as a chip's seed, a layer's name and a tile's index.

    Example:
        >>> derive_seed(0, "encoder.layer.0", 3) == derive_seed(0, "encoder.layer.0", 3)
        True
        >>> derive_seed(0, "programming") == derive_seed(1, "programming")
        False
    """
    canonical = repr(tuple(_canonical(part) for part in parts))
    digest = hashlib.blake2b(canonical.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _canonical(part: int | str | float) -> int | str | float:
    if type(part) in (int, str, float):
        return part
    # The repr of NumPy and torch scalars differs from that of Python's own.
    if isinstance(part, str):
        return str(part)
    try:
        return operator.index(part)  # type: ignore[arg-type]
    except TypeError:
        return float(part)
