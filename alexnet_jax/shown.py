"""Text that is shown, on a terminal, in a table, in a figure: the one door for whatever comes from elsewhere."""

import contextlib
import csv
import errno
import io
import os
import re
import sys
import threading
import unicodedata
from collections.abc import Iterable
from typing import Any

# Controls, some of which terminals obey; formats, which turn the line around or cannot be seen; halves of a character,
# for the bytes of a file name that is no text; ends of lines.
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # which Persian words and some pictures need
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
LONGEST = 200  # characters of a name or reason in a message: a file may make them as many as it likes
_GONE = (errno.EPIPE, errno.EBADF, errno.EIO)  # a reader that has ended, a stream that was closed, a terminal

one_speaks = threading.RLock()  # whoever leads standard error away for a while holds it, so that no line is lost


def shown(text: object) -> str:
    r"""`text` on one line, with what cannot be shown, or does more than be shown, escaped as in \u001b."""
    text = str(text)
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED or character in _JOINERS:
        return character
    code = ord(character)
    return _SHORT.get(character) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def short(text: object, most: int = LONGEST) -> str:
    """`text` as `shown`, cut off where it is long."""
    text = str(text)
    return shown(text) if len(text) <= most else f"{shown(text[:most])}…"


def reason(error: BaseException) -> str:
    """What an error of another library says, in one line that is not long; its type, where it says nothing."""
    return short(" ".join(str(error).split()) or type(error).__name__)


def csv_line(cells: Iterable[object]) -> str:
    """A row of a .csv, without its end; what cannot be shown of a cell is escaped."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(map(shown, cells))
    return line.getvalue()


class Stream:
    """A stream of text that takes every character, replaced where need be, and whose reader may go away.

    needed: whether it is an error that its disk is full. gone: whether its reader has gone; the rest goes nowhere.
    """

    def __init__(self, stream: Any, *, needed: bool = True):
        self._stream, self._errors = stream, _GONE if needed else (*_GONE, errno.ENOSPC)
        self.gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes it, in several lines where it has them; what libraries write on a terminal is escaped, too."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        safe = re.sub(r"[^\n\r\t]+", lambda match: shown(match[0]), text)
        with self._while_there():
            self._stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """All that was written."""
        with self._while_there():
            self._stream.flush()

    @contextlib.contextmanager
    def _while_there(self) -> Any:
        try:
            with one_speaks:
                yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in self._errors:
                raise
            self.gone = True
            with contextlib.suppress(OSError, ValueError):  # Python would complain of the rest, at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def use_safe_streams() -> tuple[Any, Any]:
    """`sys.stdout` and `sys.stderr` are such streams from here on, also where they were closed; those before."""
    before = sys.stdout, sys.stderr
    for number in range(3):  # else the next file would have this number, and be written over by whoever prints
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    output, errors = (stream or open(os.devnull, "w") for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = Stream(output), Stream(errors, needed=False)
    return before


def say(*lines: object, error: bool = False) -> bool:
    """Shows lines, on standard output or standard error: whatever a name among them holds, each is one line.

    Returns whether somebody still reads them: not where the reader has ended, as `head` does after its ten lines.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return True
    safe = stream if isinstance(stream, Stream) else Stream(stream)
    safe.write("".join(f"{shown(line)}\n" for line in lines))
    safe.flush()
    return not safe.gone


def progress(total: int, **options: Any) -> Any:
    """tqdm's bar on standard error; where that is no terminal, a line every 15 seconds."""
    from tqdm import tqdm  # here, so that --help does not wait for it

    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(total=total, **options)
    numbers = "{n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}]"
    return tqdm(total=total, file=_Lines(), **{"bar_format": numbers, **options, "mininterval": 15})


class _Lines:
    """A file for tqdm, which begins what it writes with a carriage return, and writes its last state twice."""

    _last = ""

    def write(self, text: str) -> None:
        """A line, where there is something new on it."""
        if (line := text.strip()) and line != self._last:
            say(line, error=True)
            self._last = line

    def flush(self) -> None:
        """It has been."""
