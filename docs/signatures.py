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
                member.annotation = _spelt_out(member.annotation, pkg)
            elif member.is_function:
                if member.overloads:
                    _merge_overloads(member)
                for parameter in member.parameters:
                    parameter.annotation = _spelt_out(parameter.annotation, pkg)
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
        default = None
        if each.default is not each.empty:
            default = "..." if each.default is ... else repr(each.default)
        elif name in old:
            default = old[name].default
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


def _spelt_out(annotation: Any, package: griffe.Module) -> Any:
    """The annotation without names of types that only this package's code can use."""
    if isinstance(annotation, griffe.ExprName):
        root, _, path = annotation.canonical_path.partition(".")
        is_private = "_" in (part[:1] for part in path.split("."))
        if root != package.name or not is_private:
            return annotation
        value = getattr(package[path], "value", None)
        if not isinstance(value, griffe.Expr):
            return annotation
        if str(value).startswith("TypeVar("):
            return annotation.name  # Without a link: there is nothing to read there.
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
