"""Signatures as readers need them: an overloaded function's as one, types spelt out.

An extension of griffe, which reads the source for the reference.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import griffe


class ReadableSignatures(griffe.Extension):
    """Gives implementations the types of their overloads, and replaces private names
    of types by what they stand for."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for member in _members(pkg):
            if member.is_attribute:
                if str(member.annotation) == "TypeAlias":
                    member.value = _spelt_out(member.value, pkg)
                member.annotation = _spelt_out(member.annotation, pkg)
            elif member.is_function:
                if member.overloads:
                    _merge_overloads(member)
                for parameter in member.parameters:
                    parameter.annotation = _spelt_out(parameter.annotation, pkg)
                    parameter.default = _default(parameter.default, pkg)
                member.returns = _spelt_out(member.returns, pkg)


def _members(scope: Any) -> Iterator[Any]:
    for member in scope.members.values():
        if member.is_alias:
            continue
        yield member
        if member.is_module or member.is_class:
            yield from _members(member)


def _merge_overloads(function: griffe.Function) -> None:
    """One signature: names and defaults as `help` shows them, types of the overloads.

    A decorator may have made them, so they are those of the function itself.
    """
    overloads, function.overloads = function.overloads or [], None
    path = function.path.removeprefix(f"{function.module.path}.").split(".")
    module = importlib.import_module(function.module.path)
    signature = inspect.signature(functools.reduce(getattr, path, module))
    old, kinds = function.parameters, griffe.ParameterKind
    parameters: list[griffe.Parameter] = []
    for name, each in signature.parameters.items():
        types = [
            x.parameters[name].annotation for x in overloads if name in x.parameters
        ]
        default = old[name].default if name in old else None
        if default is None and each.default is not each.empty:
            default = repr(each.default)
        kind = getattr(kinds, each.kind.name.lower())
        parameters.append(
            griffe.Parameter(name, annotation=_union(types), kind=kind, default=default)
        )
    function.parameters = griffe.Parameters(*parameters)
    function.returns = _union([each.returns for each in overloads])


def _union(types: list[Any]) -> Any:
    """All of them, each once: `Literal[True]` and `Literal[False]` are a `bool`."""
    parts = [part for each in types for part in _parts(each)]
    distinct = list({str(each): each for each in parts}.values())
    if {str(each) for each in distinct} == {"Literal[True]", "Literal[False]"}:
        return "bool"
    while len(distinct) > 1:
        distinct[:2] = [griffe.ExprBinOp(distinct[0], "|", distinct[1])]
    return distinct[0] if distinct else None


def _parts(annotation: Any) -> list[Any]:
    if isinstance(annotation, griffe.ExprBinOp):
        return _parts(annotation.left) + _parts(annotation.right)
    return [] if annotation is None else [annotation]


def _value_of(name: griffe.ExprName, package: griffe.Module) -> Any:
    """What a name stands for that only this package's code can use, else `None`."""
    root, _, path = name.canonical_path.partition(".")
    is_private = "_" in (part[:1] for part in path.split("."))
    if root != package.name or not is_private:
        return None
    for module in (package, package["lanes"], package["filters"]):
        member = module.members.get(name.name)
        is_alias = member is not None and member.is_alias
        if is_alias and member.target_path == name.canonical_path:
            return None  # Its place is private, and its name is public.
    return getattr(package[path], "value", None)


def _default(default: Any, package: griffe.Module) -> Any:
    """A default without private names; an object for "not given" is `...`."""
    if not isinstance(default, griffe.ExprName):
        return default
    value = _value_of(default, package)
    return "..." if str(value) == "object()" else value or default


def _spelt_out(annotation: Any, package: griffe.Module) -> Any:
    """The annotation without names of types that only this package's code can use."""
    if isinstance(annotation, griffe.ExprName):
        value = _value_of(annotation, package)
        if not isinstance(value, griffe.Expr):
            return annotation
        if str(value).startswith("TypeVar("):
            # Without a link: there is nothing to read there.
            return annotation.name.lstrip("_")
        return _spelt_out(value, package)
    if isinstance(annotation, griffe.Expr):
        for field in dataclasses.fields(annotation):
            part = getattr(annotation, field.name)
            if isinstance(part, griffe.Expr):
                setattr(annotation, field.name, _spelt_out(part, package))
            elif isinstance(part, list):
                spelt = [_spelt_out(each, package) for each in part]
                setattr(annotation, field.name, spelt)
    return annotation
