"""The house: each module imports only from its own floor or from those below, and none in a circle."""

import ast
from pathlib import Path

import alexnet_jax

PACKAGE = Path(alexnet_jax.__file__).parent
# From the bottom up. `device` stands above `paper`, whose formulas it knows and replaces.
FLOORS = (
    {"", "config", "downloads", "files", "figures", "options", "pickles", "reading", "shown"},
    {"data"},
    {"paper"},
    {"device"},
    {"runs"},
    {"networks"},
    {"train_setup"},
    {"train"},
    {"command"},
    {"main", "prepare", "predict", "features", "weights", "__main__"},
)
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): file
    for file in PACKAGE.rglob("*.py")
}


def imported(module):
    """The package's own modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "alexnet_jax":
            base = node.module.removeprefix("alexnet_jax").lstrip(".")
            names = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found - {module}


def floor(module):
    return next(number for number, rooms in enumerate(FLOORS) if module.split(".")[0] in rooms)


def test_nothing_is_imported_from_a_floor_above():
    up = [(module, of) for module in MODULES for of in imported(module) if floor(of) > floor(module)]
    assert up == []
    assert len(MODULES) > 40


def test_whatever_is_shown_goes_through_one_door():
    """`shown.say`, for lines; a progress bar writes on a stream of `shown.use_safe_streams`."""
    calls = [
        f"{module}: {ast.unparse(node)}"
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    ]
    assert calls == []


def test_no_modules_import_each_other_in_a_circle():
    done, left = set(), dict.fromkeys(MODULES)
    while free := [module for module in left if imported(module) <= done]:
        done |= set(free)
        left = {module: None for module in left if module not in done}
    assert not left
