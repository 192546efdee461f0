"""The type checker of all calls during tests; an int is a float, as type checkers read it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
