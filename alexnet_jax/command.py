"""What the commands share: flags made from a dataclass, errors of one line, and the end of a process."""

import contextlib
import dataclasses
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from alexnet_jax import __version__
from alexnet_jax.options import InputError
from alexnet_jax.shown import Stream, say, short, use_safe_streams

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
PATIENCE = 5  # seconds
LONGEST = 5000  # characters of an error: a path has 4,096 at most


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
_defined: set[str] = set()  # by `define_flags`, of the command that runs


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
        _undefine(field.name)
        if types[field.name] is bool:
            flags.DEFINE_boolean(field.name, None, text, module_name=module)
        else:
            flags.DEFINE(_PARSERS[types[field.name]], field.name, None, text, module_name=module)
        _defined.add(field.name)


def _undefine(name: str) -> None:
    if name in _defined and name in flags.FLAGS:
        delattr(flags.FLAGS, name)
    _defined.discard(name)


def given_flags(options: type) -> dict[str, Any]:
    """The flags of `define_flags` that stand on the command line, for `dataclasses.replace`."""
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    return (",".join(map(str, value)) if isinstance(value, tuple) else str(value)) or "none"


def run(main: Callable[..., None], doc: str, *, takes_files: bool = False) -> None:
    """Parses the flags (--help shows `doc`), calls `main`, and returns; or ends the process, with an exit code.

    takes_files: `main` is given what stands on the command line beside the flags; else nothing may.

    Exit codes: 0; 2 after one line on bad input or a full disk; 130 after Ctrl-C or `kill`. Where another program
    called the command, in a notebook, it is a SystemExit with this code.
    """
    with _surroundings(doc):
        try:
            files = _parse(sys.argv, takes_files)
            check_cache("JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
            main(files) if takes_files else main()
        except InputError as error:
            _fail(str(error))
        except OSError as error:  # a full disk, a folder that has gone
            _fail(f"{_named(error.filename)}: {error.strerror or error}")
        except MemoryError as error:
            _fail(f"memory: there is not enough ({str(error) or 'of this computer'})")
        except (RuntimeError, AssertionError, ValueError) as error:
            if (message := _of_the_surroundings(error)) is None:
                raise
            _fail(message)
        except KeyboardInterrupt:
            _end(INTERRUPTED)


def _parse(arguments: list[str], takes_files: bool) -> list[str]:
    """What stands beside the flags."""
    try:
        rest = flags.FLAGS(arguments)[1:]
    except flags.Error as error:
        raise InputError(str(error).removeprefix("ERROR:: ")) from error
    except UnicodeDecodeError as error:
        raise InputError(f"--flagfile: names a file that is no text in UTF-8 ({error.reason})") from error
    except ValueError as error:  # of absl's own flags
        raise InputError(f"flags: {error}") from error
    except SystemExit:  # --help, which absl counts as a failure
        sys.exit(0)
    if flags.FLAGS["version"].value:
        say(f"alexnet_jax {__version__}")
        sys.exit(0)
    if rest and not takes_files:
        raise InputError(f"{rest[0]}: not a flag; flags are written --name=value")
    if flags.FLAGS["verbosity"].using_default_value:
        # Below that orbax reports each of its steps, and prints pages before the error that it raises.
        flags.FLAGS.verbosity = logging.FATAL  # type: ignore[assignment]
    return rest


@contextlib.contextmanager
def _surroundings(doc: str) -> Iterator[None]:
    """Streams that take every text, signals, and absl; afterwards as it was, for another command in this process."""
    program = sys.modules["__main__"]
    before, streams = program.__doc__, use_safe_streams()
    program.__doc__ = doc
    handler = None
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(Exception):  # where standard error has no number, as in a notebook
        faulthandler.enable()
    logging.use_absl_handler()
    app.define_help_flags()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if not _is_own_process():
            sys.stdout, sys.stderr = streams
        program.__doc__ = before
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        for name in [*_defined]:
            _undefine(name)
        flags.FLAGS["version"].value = False
        flags.FLAGS.unparse_flags()


def check_cache(name: str, folder: str) -> None:
    """Raises InputError where JAX could not keep compiled programs there, of which it would warn at each of them."""
    if not folder or "://" in folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"{name}={folder}: cannot be written; choose another folder, or do without")


def _named(file: Any) -> str:
    return os.fsdecode(file) if isinstance(file, str | bytes) else "file system"


def _of_the_surroundings(error: Exception) -> str | None:
    """What is said of an error of JAX or Python that is no fault of the program: devices, and the home folder."""
    message, *_ = str(error).splitlines() or [""]
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    if message.startswith("Unable to initialize backend") or last.f_globals["__name__"] == "jax._src.xla_bridge":
        reason = f" ({message})" if message else ""
        return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: there is no such device here{reason}"
    if message.startswith("Disable jit is not supported"):
        return "JAX_DISABLE_JIT: cannot be set here; --debug_nans looks at each operation"
    if message.startswith("RESOURCE_EXHAUSTED"):
        return f"the device's memory is full, a smaller --batch_size takes less ({message})"
    if message.startswith("Could not determine home directory"):
        return "HOME is not set, and a path begins with ~: set it, or give whole paths"
    return None


def _fail(message: str) -> typing.NoReturn:
    if _is_own_process():
        _only_own_lines()
    say(f"error: {short(message, LONGEST)}", error=True)
    _end(BAD_INPUT)


def _only_own_lines() -> None:
    """On a full disk TensorStore's threads would print on and on."""
    sys.stderr.flush()
    with contextlib.suppress(OSError, ValueError):
        stderr = os.dup(sys.stderr.fileno())
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = Stream(os.fdopen(stderr, "w", encoding=sys.stderr.encoding), needed=False)


def _end(code: int) -> typing.NoReturn:
    """At once: Python's own end would wait for a thread whose disk is gone, and for other hosts."""
    if _is_own_process():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # The program that called may go on. When it ends, it does not wait long for what was left behind here.
    ending = threading.Event()

    def end() -> None:
        ending.wait()
        time.sleep(PATIENCE)
        os._exit(code)

    threading._register_atexit(ending.set)  # type: ignore[attr-defined]
    threading.Thread(target=end, daemon=True).start()
    sys.exit(code)


def _is_own_process() -> bool:
    """Whether Python was started for this command alone: `python -m alexnet_jax.main`, `alexnet-jax`; or several hosts
    work together, which would wait for each other.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    hosts = sys.modules.get("alexnet_jax.device.hosts")
    return bool(
        (spec and spec.name.startswith("alexnet_jax."))
        or Path(sys.argv[0]).name.startswith("alexnet-jax")
        or (hosts and hosts.started)
    )
