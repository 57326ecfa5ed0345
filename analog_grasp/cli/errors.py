"""What a user is told when something goes wrong: one sentence."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class RequestError(Exception):
    """What was asked for cannot be done; the message is the sentence for the user."""


@contextmanager
def asking() -> Iterator[None]:
    """Whatever is found wrong in here is wrong with the request, not with the run."""
    try:
        yield
    except (ValueError, OSError) as error:
        if _disk_is_full(error):
            raise
        # The words of other packages too: nearly all that they refuse is a setting of ours.
        told = str(error) if isinstance(error, ValueError) else sentence(error)
        raise RequestError(told) from error


def sentence(error: Exception) -> str:
    """An error as one sentence."""
    if _disk_is_full(error):
        return (
            f"The disk is full{_naming(error)}: what was written before is kept; give the same "
            "command again once there is room."
        )
    if isinstance(error, OSError) and error.strerror:
        return (
            f"The path {error.filename} cannot be used ({error.strerror}): give one that can be "
            "read, and written to where it is the output."
        )
    if isinstance(error, RequestError) or _is_ours(error):
        return str(error)
    reason = f": {error}" if str(error) else ""
    return (
        f"Unexpected {type(error).__name__}{reason.rstrip('.')}; the same command with --debug "
        "shows where it comes from."
    )


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, however many packages it has passed through."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _naming(error: Exception) -> str:
    file = getattr(error, "filename", None)
    return f" and {file} cannot be written" if file else ""


def _is_ours(error: Exception) -> bool:
    """Whether this package raised an error, and so wrote its message for the user."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = frames[-1].f_globals.get("__name__", "") if frames else ""
    return isinstance(error, ValueError | OSError | RuntimeError) and raised_in.startswith(
        "analog_grasp."
    )
