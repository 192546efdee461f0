"""What the commands share: flags made from a dataclass, and errors of one line."""

import dataclasses
import os
import signal
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags, logging

from alexnet_jax import __version__
from alexnet_jax.config import InputError

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


class _Floats(flags.ArgumentParser):
    """Numbers, comma-separated."""

    def parse(self, argument: str) -> tuple[float, ...]:
        return tuple(float(number) for number in argument.split(",") if number.strip())


class _Strings(flags.ArgumentParser):
    """Texts, comma-separated."""

    def parse(self, argument: str) -> tuple[str, ...]:
        return tuple(text for text in argument.split(",") if text)


_PARSERS: Mapping[Any, flags.ArgumentParser] = {
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
    int | str: flags.ArgumentParser(),
    tuple[float, ...]: _Floats(),
    tuple[str, ...]: _Strings(),
}


flags.DEFINE_boolean("version", False, "the version of alexnet_jax, and end", module_name=sys.argv[0])


def define_flags(options: type, presets: Mapping[str, Any] | None = None) -> None:
    """One flag for each field of the dataclass `options`, with the field's help and its default.

    presets: several settings of `options`, the default one first.
    """
    types = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        default, others = _text(field.default), ""
        if presets:
            texts = {name: _text(getattr(preset, field.name)) for name, preset in presets.items()}
            default = next(iter(texts.values()))
            others = "".join(f"; {name}: {text}" for name, text in texts.items() if text != default)
        text = f"{field.metadata['help']} (default: {default}{others})"
        module = sys.argv[0]  # so that --help lists it
        if types[field.name] is bool:
            flags.DEFINE_boolean(field.name, None, text, module_name=module)
        else:
            flags.DEFINE(_PARSERS[types[field.name]], field.name, None, text, module_name=module)


def given_flags(options: type) -> dict[str, Any]:
    """The flags of `define_flags` that stand on the command line, for `dataclasses.replace`."""
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    return (",".join(map(str, value)) if isinstance(value, tuple) else str(value)) or "none"


def run(main: Callable[..., None], doc: str, *, takes_files: bool = False) -> None:
    """Parses the flags (--help shows `doc`), calls `main`, and exits.

    takes_files: `main` is given what stands on the command line beside the flags; else nothing may.

    Exit codes: 0; 2 after one line on bad input or a full disk; 130 after Ctrl-C or `kill`.
    """
    sys.modules["__main__"].__doc__ = doc
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def parse(arguments: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(arguments)
        except flags.Error as error:
            _fail(str(error))
        except SystemExit:  # --help, which absl counts as a failure
            sys.exit(0)
        if flags.FLAGS["version"].value:
            print(f"alexnet_jax {__version__}")
            sys.exit(0)
        if rest[1:] and not takes_files:
            _fail(f"{rest[1]}: not a flag; flags are written --name=value")
        if flags.FLAGS["verbosity"].using_default_value:
            # Below that orbax reports each of its steps, and prints pages before the error that it raises.
            flags.FLAGS.verbosity = logging.FATAL  # type: ignore[assignment]
        return rest

    def guarded(arguments: list[str]) -> None:
        try:
            main(arguments[1:]) if takes_files else main()
        except InputError as error:
            _fail(str(error))
        except OSError as error:  # a full disk, a folder that has gone
            _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
        except KeyboardInterrupt:
            _end(INTERRUPTED)

    app.run(guarded, flags_parser=parse)


def _fail(message: str) -> typing.NoReturn:
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # on a full disk TensorStore's threads would print on and on
    os.write(stderr, f"error: {' '.join(message.split())}\n".encode())
    _end(BAD_INPUT)


def _end(code: int) -> typing.NoReturn:
    """At once: Python's own end would wait for a thread whose disk is gone, and for other hosts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
