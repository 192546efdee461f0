"""Other programs' pickles, as data: dicts, lists, numbers, texts, and what a short list of names stands for.

A pickle is a program. Here it has only the instructions that build data, and whatever it asks for by name is looked up
in a table that the caller gives: nothing is imported, no attribute of anything is read or set, nothing else is called.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from alexnet_jax.shown import reason

_DATA = [getattr(pickle, name)[0] for name in (  # what builds data, of Python's own
    "PROTO", "FRAME", "STOP", "MARK", "POP", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "EMPTY_DICT",
    "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "BINPERSID",
)]  # fmt: skip
# Not tuples, which take Python years to compare if they are nested; nor numbers of more than 64 bits, all of which may
# have the same place in a dict.
_KEYS = (str, bytes, int, float, bool, type(None))


class Stub:
    """Stands for an object of another program. It takes its state by a `__setstate__` of its own."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"{type(self).__name__.strip('_')} with a state")


class Maker(NamedTuple):
    """What a table of names has for a function or a class: `make` is called with the arguments in the pickle."""

    make: Callable[..., Any]


def mapping(*pairs: Any) -> dict[Any, Any]:
    """A dict, for the kinds of dicts that others have."""
    found: dict[Any, Any] = {}
    for key, value in pairs[0] if pairs else ():
        _put(found, key, value)
    return found


def encoded(text: Any, encoding: Any) -> bytes:
    """What `_codecs.encode` is asked for: so the second protocol, which Python 2 reads, has bytes."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("text in another encoding than latin1")
    return text.encode("latin1")


# The one in Python: that in C gives out memory by the file's numbers, and its instructions cannot be chosen.
class Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Reads one pickle of a stream, in which there must be no more bytes than there is memory.

    known: (module, name) → a `Maker`, or a value. persistent: what stands for an identifier of something outside.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        stream: io.BytesIO,
        known: Mapping[tuple[str, str], Any],
        *,
        encoding: str = "utf-8",
        persistent: Callable[[Any], Any] | None = None,
    ):
        super().__init__(stream, fix_imports=False, encoding=encoding)
        self._known, self._persistent = known, persistent

    def find_class(self, module: str, name: str) -> Any:
        """From the table."""
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"a pickle that asks for {module}.{name}")
        return self._known[module, name]

    def persistent_load(self, identifier: Any) -> Any:
        """From outside of the pickle."""
        if self._persistent is None:
            raise pickle.UnpicklingError("a pickle that asks for what is outside of it")
        return self._persistent(identifier)

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _extend(self, values: list[Any] | None = None) -> None:
        values = self.pop_mark() if values is None else values
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("it appends to what is no list")
        self.stack[-1].extend(values)

    def _set(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], key, value)

    def _update(self) -> None:
        values = self.pop_mark()
        for key, value in zip(values[::2], values[1::2], strict=True):
            _put(self.stack[-1], key, value)

    def _reduce(self) -> None:
        arguments, maker = self.stack.pop(), self.stack[-1]
        if type(maker) is not Maker or type(arguments) is not tuple:
            raise pickle.UnpicklingError("it calls what is no function")
        self.stack[-1] = maker.make(*arguments)

    def _build(self) -> None:
        state, of = self.stack.pop(), self.stack[-1]
        if isinstance(of, Stub):
            of.__setstate__(state)
        elif type(of) is not dict:  # whose state is what a class of dicts has beside it
            raise pickle.UnpicklingError(f"a {type(of).__name__} with a state")

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("a damaged pickle: an instruction that builds no data")

    dispatch: ClassVar[Any] = dict.fromkeys(range(256), _refuse) | {
        **{code: pickle._Unpickler.dispatch[code] for code in _DATA},  # type: ignore[attr-defined]
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _extend,
        pickle.SETITEM[0]: _set,
        pickle.SETITEMS[0]: _update,
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
    }


def _put(into: Any, key: Any, value: Any) -> None:
    if type(into) is not dict or type(key) not in _KEYS or (type(key) is int and key.bit_length() > 63):
        raise pickle.UnpicklingError(f"it puts a {type(key).__name__} into a {type(into).__name__}")
    into[key] = value


def unpickled(
    stream: io.BytesIO,
    known: Mapping[tuple[str, str], Any],
    *,
    encoding: str = "utf-8",
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The next pickle of a stream; see `Unpickler`. Raises UnpicklingError, of one line, for any other."""
    try:
        return Unpickler(stream, known, encoding=encoding, persistent=persistent).load()
    except pickle.UnpicklingError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles raise any type
        raise pickle.UnpicklingError(f"a damaged pickle: {reason(error)}") from error
