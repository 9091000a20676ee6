"""Keys of models, data and options by their content: equal where results would be."""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from pyro_nfvi._error_text import first_line

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
#: Attributes that a call leaves behind: the cache of a Pyro module.
_OF_A_CALL = {"_pyro_context"}
_CONTAINERS = (tuple, list, dict, set, frozenset, types.MappingProxyType, types.CodeType)
_NATIVE = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.MethodWrapperType, types.ClassMethodDescriptorType,
)  # fmt: skip
#: Entries of a class that are made with it and say nothing of what it does.
_OF_CLASS = {
    "__dict__", "__weakref__", "__module__", "__doc__", "__qualname__", "__firstlineno__",
    "__static_attributes__", "_abc_impl", "__annotations__", "__annotate__", "__slotnames__",
    "__annotate_func__", "__annotations_cache__",
}  # fmt: skip


class NoKey(TypeError):
    """Something has no content that could be told apart, such as a lock or an open file."""


def content_key(value: Any, known: dict[int, tuple[Any, str]] | None = None) -> str:
    """Return a key of 32 hexadecimal digits for anything a fit is made of.

    Numbers, words and containers count by their values, tensors and arrays by their bytes, dtype
    and shape. A function counts by its compiled code (comments and line breaks do not), its
    defaults, what it has enclosed, and the globals that it names: the user's own functions and
    classes in the same way, what is installed by its name. Objects count by their class and their
    attributes. What cannot be told apart for sure gets another key rather than the same one.

    Args:
        value: Functions, modules, data, options, in any nesting.
        known: Digests of tensors and arrays by identity, to be shared by several calls.

    Raises:
        NoKey: A part cannot be looked into; the message names it.

    Cost:
        One pass over the data.

    Example:
        >>> import torch
        >>> a, b = 1.0, 2.0
        >>> content_key(lambda x: x + a) == content_key(lambda x: x + b)
        False
        >>> content_key({"y": torch.ones(2)}) == content_key({"y": torch.ones(2)})
        True
    """
    try:
        return _Digest({} if known is None else known).of(value)[:32]
    except RecursionError as error:
        raise NoKey("objects nested beyond measure") from error


class _Digest:
    """One walk over a value.

    Functions, classes and objects that were met before are written as their number, containers that
    lead back to themselves as the number of levels up.
    """

    def __init__(self, known: dict[int, tuple[Any, str]]) -> None:
        self._known = known
        self._path: dict[int, int] = {}
        self._met: dict[int, tuple[Any, int]] = {}

    def of(self, value: Any) -> str:
        if isinstance(value, _PLAIN) and type(value) in _PLAIN:
            return _hash(type(value).__name__, repr(value))
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return self._array(value)
        key = id(value)
        if not isinstance(value, _CONTAINERS):
            if key in self._met:
                return _hash("met", str(self._met[key][1]))
            self._met[key] = value, len(self._met)  # held, so that its id is not given anew
            return _hash(*self._parts(value))
        if key in self._path:
            return _hash("above", str(len(self._path) - self._path[key]))
        self._path[key] = len(self._path)
        try:
            return _hash(*self._parts(value))
        finally:
            del self._path[key]

    def _array(self, value: torch.Tensor | np.ndarray) -> str:
        if id(value) in self._known:
            return self._known[id(value)][1]
        try:
            if isinstance(value, torch.Tensor):
                if value.layout != torch.strided or value.is_quantized or value.is_meta:
                    raise NoKey(f"a tensor of layout {value.layout} on {value.device}")
                held = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            elif value.dtype.hasobject:
                return _hash("array", str(value.shape), self.of(value.tolist()))
            else:
                held = np.ascontiguousarray(value)
        except (RuntimeError, NotImplementedError) as error:
            raise NoKey(f"a {type(value).__name__}: {error}") from error
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        known = hashlib.sha256(f"{kind} {value.dtype} {tuple(value.shape)}".encode())
        known.update(held.tobytes())
        found = known.hexdigest()
        if type(value) in (torch.Tensor, np.ndarray):
            self._known[id(value)] = value, found
        return found

    def _parts(self, value: Any) -> Iterator[str]:
        yield type(value).__name__
        if isinstance(value, (tuple, list)) and _library(type(value)):
            yield from map(self.of, value)
        elif isinstance(value, (dict, types.MappingProxyType)) and _library(type(value)):
            for name, item in value.items():
                if isinstance(name, str) and name in _OF_A_CALL:
                    continue
                yield self.of(name)
                yield self.of(item)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(_Digest(self._known).of(item) for item in value)
        elif isinstance(value, enum.Enum):
            yield f"{type(value).__qualname__}.{value.name}"
        elif isinstance(value, (PurePath, range, slice, np.generic, torch.dtype, torch.device)):
            yield repr(value)
        elif isinstance(value, types.ModuleType):
            yield value.__name__
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from (self.of(value.__func__), self.of(value.__self__))
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, functools.partial):
            yield from (self.of(part) for part in (value.func, value.args, value.keywords))
        elif isinstance(value, (staticmethod, classmethod)):
            yield self.of(value.__func__)
        elif isinstance(value, property):
            yield from (self.of(part) for part in (value.fget, value.fset))
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, _NATIVE):
            yield f"{getattr(value, '__module__', '')}.{value.__qualname__}"
            owner = getattr(value, "__self__", None)
            if owner is not None and not isinstance(owner, (types.ModuleType, type)):
                yield self.of(owner)
        else:
            yield from self._object(value)

    def _function(self, value: types.FunctionType) -> Iterator[str]:
        # Not its __module__ and __qualname__, which a decorator may have taken from elsewhere.
        code = value.__code__
        if _library(value):
            yield str(value.__globals__["__name__"])
            yield getattr(code, "co_qualname", f"{code.co_name}:{code.co_firstlineno}")
        else:
            yield code.co_name
            yield self.of(code)
            yield self.of(value.__defaults__)
            yield self.of(value.__kwdefaults__)
            yield from self._names(value.__code__, value.__globals__)
        for cell in value.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not given a value yet
                yield "empty"
            else:
                yield self.of(held)
        if value.__dict__:  # a function inside of a decorator's, options
            yield self.of(value.__dict__)

    def _names(self, code: types.CodeType, scope: Mapping[str, Any]) -> Iterator[str]:
        """Yield the globals that a code names, and of the user's modules what it asks of them."""
        names = _all_names(code)
        for name in sorted(names):
            if name not in scope:
                continue
            held = scope[name]
            yield name
            if isinstance(held, types.ModuleType) and not _library(held):
                for inner in sorted(names & set(vars(held))):
                    yield inner
                    yield self.of(getattr(held, inner))
            else:
                yield self.of(held)

    def _code(self, code: types.CodeType) -> Iterator[str]:
        yield code.co_code.hex()
        yield from (" ".join(part) for part in (code.co_names, code.co_varnames, code.co_freevars))
        yield from map(self.of, code.co_consts)

    def _class(self, value: type) -> Iterator[str]:
        yield value.__qualname__.replace("<locals>.", "")
        if _library(value):
            yield value.__module__
            return
        yield from map(self.of, value.__bases__)
        for name, held in sorted(vars(value).items()):
            if name not in _OF_CLASS and not isinstance(held, types.GetSetDescriptorType):
                yield name
                yield self.of(held)

    def _object(self, value: Any) -> Iterator[str]:
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise NoKey(f"a {type(value).__name__} ({first_line(error)})") from error
        if isinstance(reduced, str):
            # A name, which may be borrowed: what is wrapped stands among the attributes.
            yield reduced
            yield self.of(dict(getattr(value, "__dict__", {})))
            return
        for part in reduced:
            yield self.of(list(part) if isinstance(part, Iterator) else part)


def _hash(*parts: str) -> str:
    known = hashlib.sha256()
    for part in parts:
        known.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
    return known.hexdigest()


def _all_names(code: types.CodeType) -> set[str]:
    """Return the names that a code and the functions inside of it look up."""
    names = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names |= _all_names(inner)
    return names


def _library(value: types.ModuleType | types.FunctionType | type) -> bool:
    """Tell whether something is installed, or of this package, so that its name says all."""
    if isinstance(value, types.FunctionType):
        name = value.__globals__.get("__name__")
    else:
        name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    top = str(name).partition(".")[0]
    module = sys.modules.get(str(name))
    if module is None or top in ("__main__", "__mp_main__"):  # of a notebook, a script, a prompt
        return False
    if isinstance(value, types.FunctionType) and vars(module) is not value.__globals__:
        return False  # made by exec
    if top == "pyro_nfvi" or top in sys.stdlib_module_names:
        return True
    file = getattr(module, "__file__", None)
    if file is None:
        return isinstance(getattr(module, "__spec__", None), ModuleSpec)
    return any(Path(file).is_relative_to(folder) for folder in _installed())


@functools.lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return tuple(folders | {os.path.realpath(folder) for folder in folders})
