"""Options as dataclasses: of a command line, with other defaults from a TOML file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pyro_nfvi._option_names import meant
from pyro_nfvi.errors import FileError, OptionError

_T = TypeVar("_T")


def option(default: Any, text: str, **more: Any) -> Any:
    """Describe an option.

    Args:
        default: Its default value, which says its type; of None ``type`` does.
        text: What ``--help`` says.
        **more: ``group`` (a heading that begins here), ``choices``, ``type``.
    """
    return field(default=default, metadata={"help": text, **more})


class HintingParser(argparse.ArgumentParser):
    """A parser that names what a misspelt option or command is like, and knows none by half."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """End the program with the message, and with hints."""
        if message.startswith("unrecognized arguments:"):
            words = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
            message += "".join(meant(word, self._known()) for word in words)
        elif "invalid choice:" in message:
            word = message.partition("invalid choice: '")[2].partition("'")[0]
            choices = [str(choice) for action in self._actions for choice in action.choices or ()]
            message += meant(word, choices)
        super().error(message)

    def _known(self) -> list[str]:
        """Options of this parser and of its commands, which leave to it what they do not know."""
        found = [name for name in self._option_string_actions if name.startswith("--")]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    found += parser._known() if isinstance(parser, HintingParser) else []
        return found


def add_options(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Add the options of a dataclass, with ``--config``."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with values of these options")
    group: Any = parser
    for one in dataclasses.fields(kind):
        if heading := one.metadata.get("group"):
            group = parser.add_argument_group(heading)
        flag, text = "--" + one.name.replace("_", "-"), one.metadata["help"]
        if isinstance(one.default, bool):
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
            continue
        if one.default not in ("", None):
            text += f" (default: {one.default})"
        wanted = one.metadata.get("type", type(one.default))
        choices = one.metadata.get("choices")
        group.add_argument(
            flag, type=wanted, default=argparse.SUPPRESS, help=text, choices=choices,
            metavar=None if choices else "TEXT" if wanted is str else "NUMBER",
        )  # fmt: skip


def read_options(kind: Callable[..., _T], given: dict[str, Any]) -> _T:
    """Make the record of what was given on the command line, over what ``--config`` says.

    Raises:
        FileError: The configuration cannot be read.
        OptionError: It holds what is no option, or a value of another type.
    """
    given = dict(given)
    path = given.pop("config", None)
    held = {} if path is None else _of_file(Path(path), kind)
    return kind(**{**held, **given})


def _of_file(path: Path, kind: Any) -> dict[str, Any]:
    known = {one.name: one for one in dataclasses.fields(kind)}
    found = {}
    for name, value in read_toml(path).items():
        plain = name.replace("-", "_")
        if plain not in known:
            hint = meant(plain, list(known))
            raise OptionError(f"{path} holds an unknown option {name!r}.{hint}")
        one = known[plain]
        wanted = one.metadata.get("type", type(one.default))
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not wanted:
            raise OptionError(f"{path}: {name} is to be of type {wanted.__name__}; got {value!r}.")
        choices = one.metadata.get("choices")
        if choices and value not in choices:
            raise OptionError(f"{path}: {name} is one of {', '.join(choices)}; got {value!r}.")
        found[plain] = value
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        FileError: It is not there, not TOML, or this Python reads none.
    """
    try:
        reader = import_module("tomllib")
    except ModuleNotFoundError as error:
        raise FileError(
            f"TOML needs Python 3.11 or newer: give the options of {path} on the command line."
        ) from error
    try:
        return reader.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise FileError(f"The configuration {path} is not TOML: {error}.") from error


def words(text: str) -> Sequence[str]:
    """Split a list of names at commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
