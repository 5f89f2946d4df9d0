"""Shape annotations, checked as one lane sees the arrays."""

import collections
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jaxtyping import Float, Int, Int64, PyTree, Shaped

import annotated
import annotated_late
import chorax
from annotated import f, i
from chorax._annotations._fits import check_fields
from chorax._annotations._hints import hinted_fields


def touch(node):
    """Writes something, so that no call warns about having no effect."""
    if not hasattr(node, "touched"):
        return node
    return chorax.replace(node, touched=node.touched + 1)


def holder(annotation: Any) -> Any:
    """A class with one field that has this annotation."""
    annotations = {"x": annotation, "touched": jax.Array}
    return types.new_class(
        "Holder",
        (eqx.Module,),
        {},
        lambda ns: ns.update(__annotations__=annotations, __module__="annotated"),
    )


def with_touch(cls: type) -> Any:
    """A subclass with one more field, which `touch` writes."""
    return types.new_class(
        cls.__name__,
        (cls,),
        {},
        lambda ns: ns.update(
            __annotations__={"touched": jax.Array},
            touched=eqx.field(kw_only=True),
            __module__=cls.__module__,
        ),
    )


def ways(node: Any) -> list[Any]:
    """A batched call and the check by itself, which must have the same outcome."""

    def vmapped(x):
        return chorax.vmap_call_all_fns(x, touch, axis_size=5)[0]

    return [
        lambda: eqx.filter_eval_shape(vmapped, node),
        lambda: chorax.check_annotations(node),
    ]


def rows(index: int):
    """Each value of the table with its annotation."""
    return [
        pytest.param(row[0], value, id=f"{name}-{number}")
        for name, row in annotated.ANNOTATIONS.items()
        for number, value in enumerate(row[index])
    ]


@pytest.mark.parametrize(("annotation", "value"), rows(1))
def test_a_value_that_fits(annotation, value):
    node = holder(annotation)(value, jnp.zeros(()))
    for way in ways(node):
        way()


@pytest.mark.parametrize(("annotation", "value"), rows(2))
def test_a_value_that_does_not_fit(annotation, value):
    node = holder(annotation)(value, jnp.zeros(()))
    for way in ways(node):
        with pytest.raises(chorax.AnnotationError, match="The field `x` of the Holder"):
            way()


def modules(index: int):
    return [
        pytest.param(row[0], arguments, id=f"{name}-{number}")
        for name, row in annotated.MODULES.items()
        for number, arguments in enumerate(row[index])
    ]


@pytest.mark.parametrize(("cls", "arguments"), modules(1))
def test_fields_that_fit_together(cls, arguments):
    for way in ways(with_touch(cls)(**arguments, touched=jnp.zeros(()))):
        way()


@pytest.mark.parametrize(("cls", "arguments"), modules(2))
def test_fields_that_do_not_fit_together(cls, arguments):
    for way in ways(with_touch(cls)(**arguments, touched=jnp.zeros(()))):
        with pytest.raises(chorax.AnnotationError, match=rf"of the {cls.__name__} at"):
            way()


def test_annotations_that_are_strings():
    node = annotated_late.Late(f(3), [f(3, 4), f(3, 4)])
    chorax.check_annotations(node)
    with pytest.raises(chorax.AnnotationError, match=r"`w\.1`"):
        chorax.check_annotations(annotated_late.Late(f(3), [f(3, 4), f(3, 5)]))
    chorax.check_annotations(annotated_late.LateChild({"a": f(3)}, f(3)))
    with pytest.raises(chorax.AnnotationError, match="item"):
        chorax.check_annotations(annotated_late.LateChild({"a": f(3)}, f(4)))


def test_an_annotation_that_nobody_can_resolve_is_skipped():
    chorax.check_annotations(annotated_late.Unknown("anything", f(3)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(chorax.AnnotationError, match="`w` of the Unknown"):
        chorax.check_annotations(annotated_late.Unknown("anything", f(3, 3)))  # pyright: ignore[reportArgumentType]


def test_a_class_of_a_function_is_skipped_where_its_names_are_gone():
    Alias = annotated.Vector

    class Local(eqx.Module):
        v: "list[Alias]"
        w: "Float[Array, 'n']"

    chorax.check_annotations(Local([f(3, 3)], f(3)))
    with pytest.raises(chorax.AnnotationError, match="`w` of the Local"):
        chorax.check_annotations(Local([f(3, 3)], f(3, 3)))


def test_a_record_that_holds_its_like():
    link = annotated_late.Link(f(3), annotated_late.Link(f(4)))
    chorax.check_annotations(annotated_late.Chain(link))
    wrong = annotated_late.Link(f(3), annotated_late.Link(f(4, 4)))
    with pytest.raises(chorax.AnnotationError, match=r"`links\.rest\.v`"):
        chorax.check_annotations(annotated_late.Chain(wrong))


@pytest.mark.parametrize(
    "annotation",
    [
        Float[Array, "n-1"],
        Float[Array, "{missing}"],
        Float[Array, "{self.missing}"],
        Float[Array, "?n"],
        PyTree[Float[Array, "..."], "S T"],
        list[Float[Array, "m*2"]],
    ],
    ids=str,
)
def test_what_jaxtyping_can_not_tell_is_skipped(annotation):
    value = [f(3)] if isinstance(annotation, types.GenericAlias) else f(3)
    for way in ways(holder(annotation)(value, jnp.zeros(()))):
        way()


def test_a_field_that_was_never_set():
    # Equinox refuses to construct such a module, so its constructor is not run.
    node = object.__new__(annotated.Unset)
    object.__setattr__(node, "v", f(3))
    chorax.check_annotations(node)
    object.__setattr__(node, "v", f(3, 3))
    with pytest.raises(chorax.AnnotationError, match="`v` of the Unset"):
        chorax.check_annotations(node)


def test_a_value_that_shared_has_taken_away():
    class Tied(eqx.Module):
        v: Float[Array, "n"]

    pair = eqx.nn.Shared(
        (Tied(f(3)), Tied(f(3))), where=lambda p: p[1].v, get=lambda p: p[0].v
    )
    chorax.check_annotations(pair)


def test_other_annotations_are_their_authors_own():
    class Loose(eqx.Module):
        n: int
        xs: list[int]
        v: Float[Array, "n"]

    chorax.check_annotations(Loose(0.5, ("a",), f(3)))  # pyright: ignore[reportArgumentType]


def test_a_property_is_not_asked():
    class Lazy(eqx.Module):
        v: Float[Array, "n"]

        @property
        def w(self) -> Float[Array, "n"]:
            raise RuntimeError

    chorax.check_annotations(Lazy(f(3)))


def test_a_generator_is_not_used_up():
    class Countdown:
        left = 2

        def __iter__(self):
            return self

        def __next__(self):
            self.left -= 1
            return self.left

    class Stream(eqx.Module):
        items: Iterator[Float[Array, "n"]] = eqx.field(static=True)

    stream = Stream(Countdown())  # pyright: ignore[reportArgumentType]
    chorax.check_annotations(stream)
    assert stream.items.left == 2  # pyright: ignore[reportAttributeAccessIssue]


if sys.version_info >= (3, 12):
    NEW_SYNTAX = """
import equinox as eqx
from jax import Array
from jaxtyping import Float
type Vector = Float[Array, "n"]
type Many[T] = list[T]
class Base[T](eqx.Module):
    item: T
    late: "Many[T]"
class Child(Base[Vector]):
    other: Many[Vector] | None
type Gone = Missing | Vector
type Loop = Loop
class Lost(eqx.Module):
    gone: Gone
    loop: Loop
    inner: "list[Gone]"
    v: Vector
"""

    def test_the_syntax_of_later_pythons():
        module = types.ModuleType("later")
        sys.modules["later"] = module
        exec(compile(NEW_SYNTAX, "later", "exec"), vars(module))
        chorax.check_annotations(module.Child(f(3), [f(3)], [f(3)]))
        for wrong in [(f(3), [f(4)], None), (f(3), [f(3)], [f(4)]), (1.0, [], None)]:
            with pytest.raises(chorax.AnnotationError, match="the Child"):
                chorax.check_annotations(module.Child(*wrong))
        chorax.check_annotations(module.Lost(1, 2, 3, f(3)))
        with pytest.raises(chorax.AnnotationError, match="`v` of the Lost"):
            chorax.check_annotations(module.Lost(1, 2, 3, f(3, 3)))


class Cell(eqx.Module):
    """A neuron whose state is made by a call."""

    w: Float[Array, "n m"]
    v: Float[Array, "n"] = None  # pyright: ignore[reportAssignmentType]

    def init_state(self, size=None):
        size = size or self.w.shape[0]
        return chorax.replace(self, v=jnp.zeros(size, self.w.dtype))


class Layer(eqx.Module):
    scale: Float[Array, "n"]
    cell: Cell

    def init_state(self, size=None):
        return chorax.replace(self, scale=self.scale + 1)


def test_lanes_are_checked_one_at_a_time():
    batched, delta = chorax.vmap_init_all_states(Cell(f(3, 4)), axis_size=8)
    assert batched.v.shape == (8, 3)
    chorax.check_annotations(batched, in_axes=delta)
    chorax.check_annotations(batched, in_axes=delta.in_axes)
    with pytest.raises(chorax.AnnotationError, match="Without the first axis"):
        chorax.vmap_call_all_fns(
            batched, lambda node: chorax.replace(node, w=node.w * 2), axis_size=8
        )
    new, _ = chorax.vmap_call_all_fns(
        batched,
        lambda node: chorax.replace(node, v=node.v + 1),
        axis_size=8,
        in_axes=delta,
    )
    assert new.v.shape == (8, 3)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_lane_axis_anywhere(axis):
    cell = Cell(jnp.moveaxis(f(8, 3, 4), 0, axis), f(3))
    chorax.check_annotations(cell, in_axes=Cell(axis, None))  # pyright: ignore[reportArgumentType]


def test_names_are_bound_within_a_node_only():
    chorax.init_all_states(Layer(f(7), Cell(f(3, 4))))
    with pytest.raises(chorax.AnnotationError, match="the Cell at `cell`"):
        chorax.init_all_states(Layer(f(7), Cell(f(3, 4))), 5)


def test_only_called_nodes_are_checked():
    wrong = Layer(f(7), Cell(f(3, 4), f(9)))
    chorax.init_all_states(wrong, node_to_exclude=Cell)
    with pytest.raises(chorax.AnnotationError, match="the Cell at `cell`"):
        chorax.check_annotations(wrong)


def test_a_called_node_that_a_call_around_it_changes():
    class Outer(eqx.Module):
        cell: Cell

        def init_state(self):
            return eqx.tree_at(lambda o: o.cell.v, self, jnp.zeros(5))

    outer = Outer(Cell(f(3, 4)))
    with pytest.raises(chorax.AnnotationError, match="`init_state` of the node at `0`"):
        chorax.vmap_init_all_states([outer], axis_size=2)
    # Without a call of its own it is not checked.
    chorax.vmap_init_all_states([outer], axis_size=2, node_to_exclude=Cell)


def test_a_node_around_that_mends_what_it_changed():
    class Outer(eqx.Module):
        cell: Cell

        def init_state(self):
            return eqx.tree_at(lambda o: o.cell.v, self, jnp.ones(3))

    outer, _ = chorax.vmap_init_all_states(Outer(Cell(f(3, 4))), axis_size=2)
    assert outer.cell.v.shape == (2, 3)


def test_what_a_later_call_mends_is_no_error():
    class Part(eqx.Module):
        w: Float[Array, "n"]
        v: Float[Array, "n"]

        def init_state(self):
            return chorax.replace(self, v=jnp.ones(5, jnp.int32))

    class Whole(eqx.Module):
        part: Part

        def init_state(self):
            return eqx.tree_at(lambda o: o.part.v, self, jnp.ones(3, jnp.float32))

    whole, _ = chorax.vmap_init_all_states(Whole(Part(f(3), f(3))), axis_size=2)
    assert whole.part.v.shape == (2, 3)
    with pytest.raises(chorax.AnnotationError, match="`v` of the Part at `part`"):
        chorax.vmap_init_all_states(
            Whole(Part(f(3), f(3))), axis_size=2, node_to_exclude=Whole
        )


def test_a_called_node_that_a_later_call_takes_away():
    class Taker(eqx.Module):
        cell: Cell | None

        def init_state(self, size):
            return chorax.replace(self, cell=None)

    taker, _ = chorax.init_all_states(Taker(Cell(f(3, 4))), 5)
    assert taker.cell is None


def test_errors_are_raised_again_and_leave_nothing_behind():
    cell = Cell(f(3, 4))
    for _ in range(2):
        with pytest.raises(chorax.AnnotationError, match="`v` of the Cell"):
            chorax.vmap_init_all_states(cell, 5, axis_size=2)
    assert cell.v is None
    chorax.vmap_init_all_states(cell, 3, axis_size=2)


def test_inside_of_transformations():
    def loss(w, size):
        net, _ = chorax.vmap_init_all_states(Cell(w), size, axis_size=2)
        return net.w.sum() + net.v.sum()

    def scanned(w, size):
        return jax.lax.scan(lambda c, _: (c + loss(w, size), None), 0.0, None, 2)[0]

    calls = [
        loss,
        jax.jit(loss, static_argnums=1),
        jax.grad(loss),
        lambda w, size: jax.vmap(lambda x: loss(x, size))(jnp.stack([w, w])),
        scanned,
        lambda w, size: eqx.filter_eval_shape(loss, w, size),
        lambda w, size: eqx.filter_checkpoint(loss)(w, size),
    ]
    for call in calls:
        call(f(3, 4), 3)
        with pytest.raises(chorax.AnnotationError, match="`v` of the Cell"):
            call(f(3, 4), 5)


class Watched:
    """A value like an array that counts how often its shape is read."""

    def __init__(self) -> None:
        self.looks = 0
        self.dtype = np.dtype("float32")

    @property
    def shape(self) -> tuple[int, ...]:
        self.looks += 1
        return (3,)


class Watching(eqx.Module):
    touched: jax.Array
    seen: Float[Any, "n"] = eqx.field(static=True)


@pytest.mark.usefixtures("needs_jit")
def test_once_a_kind_and_not_at_all_when_it_comes_again():
    one = Watched()
    chorax.call_all_fns(Watching(f(), one), touch)
    looks = one.looks
    assert looks > 0
    many = Watched()
    model = [Watching(f(), many) for _ in range(50)]
    for _ in range(3):
        chorax.vmap_call_all_fns(model, touch, axis_size=7)
        assert many.looks == looks
    chorax.check_annotations(model)
    assert many.looks == looks


def test_the_program_has_no_trace_of_the_check():
    def node_class(state: Any, weight: Any) -> Any:
        class Node(eqx.Module):
            v: state  # pyright: ignore[reportInvalidTypeForm]
            w: weight  # pyright: ignore[reportInvalidTypeForm]

            def init_state(self):
                return chorax.replace(self, v=self.w.sum(1) * 2)

        return Node

    def program(cls):
        def call(w):
            return chorax.vmap_init_all_states([cls(None, w)], axis_size=4)[0][0].v

        return str(jax.make_jaxpr(call)(f(3, 2))), jax.jit(call).lower(
            f(3, 2)
        ).as_text()

    checked = node_class(Float[Array, "n"], Float[Array, "n m"])
    assert program(checked) == program(node_class(Any, Any))


@pytest.mark.slow
def test_layers_that_stand_in_a_stack():
    # As for `lax.scan` over depth: the parameters have a leading axis, which
    # `reset_parameters` keeps.
    class Block(eqx.Module):
        gain: Float[Array, "n"]
        norm: eqx.nn.LayerNorm
        linear: eqx.nn.Linear

    def block(key):
        return Block(f(3), eqx.nn.LayerNorm(3), eqx.nn.Linear(3, 3, key=key))

    chorax.reset_parameters.register(Block, lambda node, *, key: node)
    stack = eqx.filter_vmap(block)(jax.random.split(jax.random.key(0), 4))
    new, _ = chorax.vmap_call_all_fns(
        stack, chorax.reset_parameters, axis_size=2, key=jax.random.key(1)
    )
    assert new.linear.weight.shape == (2, 4, 3, 3)
    chorax.check_annotations(stack, in_axes=eqx.if_array(0))
    with pytest.raises(chorax.AnnotationError, match="`gain` of the Block"):
        chorax.check_annotations(stack)
    with pytest.raises(chorax.AnnotationError, match="`gain` of the Block"):
        chorax.call_all_fns(stack, lambda node: node)
    wrong = eqx.tree_at(lambda b: b.gain, stack, f(4))
    with pytest.raises(chorax.AnnotationError, match="`gain` of the Block"):
        chorax.vmap_call_all_fns(
            chorax.replace(wrong, gain=f(5, 3)),
            chorax.reset_parameters,
            axis_size=2,
            key=jax.random.key(1),
        )


def test_check_annotations_finds_the_same_fault_again():
    wrong = Layer(f(7), Cell(f(3, 4), f(9)))
    for model in (wrong, [wrong, wrong]):
        for _ in range(2):
            with pytest.raises(chorax.AnnotationError, match="`v` of the Cell"):
                chorax.check_annotations(model)


def test_check_annotations_wants_modules():
    with pytest.raises(ValueError, match=r"contain an `eqx\.Module`, but is a dict"):
        chorax.check_annotations({"a": f(3)})


def test_check_annotations_wants_lanes_that_agree():
    with pytest.raises(ValueError, match="`in_axes` maps `v` along axis 0"):
        chorax.check_annotations(Cell(f(8, 3, 4), f(7, 3)), in_axes=0)
    with pytest.raises(ValueError, match="has no such axis"):
        chorax.check_annotations(Cell(f(3, 4), f(3)), in_axes=Cell(2, None))  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_the_scope_of_a_check_does_not_reach_into_methods(tmp_path):
    # In a separate process, because the import hook of the tests opens scopes too.
    program = """
import chorax, equinox as eqx, jax.numpy as jnp
from jax import Array
from jaxtyping import Float

class Node(eqx.Module):
    w: Array

def fn(node):
    assert isinstance(node.w, Float[Array, "n"])
    return chorax.replace(node, w=node.w + 1)

model = [Node(jnp.zeros(3)), Node(jnp.zeros(4))]
batched, _ = chorax.vmap_call_all_fns(model, fn, axis_size=2)
assert [node.w.shape for node in batched] == [(2, 3), (2, 4)]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class Indexed(eqx.Module):
    ids: Int64[np.ndarray, "n"]
    scale: float | Float[Array, "n"]
    touched: Any


def test_numpy_leaves_as_they_are():
    node = Indexed(np.arange(3), np.float64(0.5), f())
    for way in ways(node):
        way()
    with pytest.raises(chorax.AnnotationError, match="found: float32 of shape"):
        chorax.check_annotations(Indexed(np.ones(3, np.float32), 0.5, f()))
    with pytest.raises(chorax.AnnotationError, match="found: int64 of shape"):
        chorax.check_annotations(Indexed(np.zeros((3, 1), np.int64), 0.5, f()))


@pytest.mark.parametrize("annotation", [float | Float[Array, "n"], PyTree[float]])
def test_numbers_under_a_plain_jit(annotation):
    node = holder(annotation)(0.5, f())
    chorax.call_all_fns(node, touch)
    jax.jit(lambda n: chorax.call_all_fns(n, touch)[0])(node)
    jax.lax.scan(lambda n, _: (chorax.call_all_fns(n, touch)[0], None), node, None, 2)


def test_a_first_axis_without_elements():
    with pytest.raises(chorax.AnnotationError, match="of shape \\(0, 3\\)"):
        chorax.check_annotations(annotated.Base(f(0, 3)))


def test_what_is_tied_inside_of_containers():
    class Many(eqx.Module):
        ws: list[Float[Array, "n"]]
        tree: PyTree[Float[Array, "n"]]

    many = Many([f(3), f(3)], {"a": f(3), "b": f(3)})
    shared = eqx.nn.Shared(
        many,
        where=lambda m: (m.ws[1], m.tree["b"]),
        get=lambda m: (m.ws[0], m.tree["a"]),
    )
    chorax.check_annotations(shared)


class Picky(type):
    def __instancecheck__(cls, x):
        raise RuntimeError("It can't be asked.")


class Strange(metaclass=Picky):
    pass


class Groups(dict[str, list[annotated.T]], Generic[annotated.T]):
    pass


STRANGE = {
    "literal": (Literal[0, 1] | Float[Array, "n"], f(3)),
    "iterable": (Iterable[Float[Array, ""]] | Float[Array, ""], f()),
    "picky": (Strange | Float[Array, "n"], f(3)),
    "both kinds": (
        PyTree[Float[Array, "n"] | Int[np.ndarray, "k"]],
        [f(3), np.zeros(2, np.int32)],
    ),
    "a pair of both kinds": (
        PyTree[tuple[Float[Array, "n"], Float[np.ndarray, "n"]]],
        [(f(3), np.zeros(3, np.float32))],
    ),
    "own generic": (Groups[Float[Array, "n"]], Groups(a=[f(3)])),
    "counter": (
        tuple[collections.Counter[str], Float[Array, "n"]],
        (collections.Counter(a=1), f(3)),
    ),
    "both dtypes": (Shaped[Float[Array, "n"], "m"], f(2, 3)),
}


@pytest.mark.parametrize(("annotation", "value"), STRANGE.values(), ids=STRANGE)
def test_what_others_accept(annotation, value):
    if isinstance(value, Groups):
        node = Static(value)
        chorax.check_annotations(node)
        return
    chorax.check_annotations(holder(annotation)(value, f()))
    chorax.call_all_fns(holder(annotation)(value, f()), touch)


class Static(eqx.Module):
    x: Groups[Float[Array, "n"]] = eqx.field(static=True)


def test_dtypes_of_a_hint_within_a_hint():
    node = holder(Shaped[Float[Array, "n"], "m"])(jnp.zeros((2, 3), jnp.int32), f())
    with pytest.raises(chorax.AnnotationError, match="found: int32"):
        chorax.check_annotations(node)


def test_what_can_not_be_told_hides_nothing_else():
    pair = tuple[Float[Array, "n-1"], Float[Array, "n"]]
    wrong = holder(pair)((f(2), jnp.zeros(3, int)), f())
    with pytest.raises(chorax.AnnotationError, match=r"at `x\.1`"):
        chorax.check_annotations(wrong)
    with pytest.raises(chorax.AnnotationError, match=r"at `x\.0`"):
        chorax.check_annotations(holder(pair)((f(3), f(3)), f()))
    chorax.check_annotations(holder(pair)((f(2), f(3)), f()))


def test_a_record_with_a_cycle():
    link = annotated_late.Link(f(3))
    link.rest = link
    # Neither `repr` nor `hash` is called on it: only the check walks it.
    object.__setattr__(link, "v", f(3))
    check_fields(link, hinted_fields(annotated_late.Link))


def test_a_tree_with_leaves_of_any_size_names_them():
    node = holder(PyTree[Float[Array, "?n"], "T"])({"a": f(3), "b": i(3)}, f())
    text = r"found: int32 of shape \(3,\), at `x\.b`"
    with pytest.raises(chorax.AnnotationError, match=text):
        chorax.check_annotations(node)


def test_an_outer_hint_on_what_a_later_call_changes():
    class Inner(eqx.Module, Generic[annotated.T]):
        item: annotated.T

        @chorax.call_order(1)
        def go(self):
            return chorax.replace(self, item=f(4))

    class Outer(eqx.Module):
        inner: Inner[Float[Array, "3"]]
        touched: Any

        def go(self):
            return touch(self)

    text = r"`inner` of the Outer .* after `go` of the node at `inner`"
    with pytest.raises(chorax.AnnotationError, match=text):
        chorax.call_all_fns(Outer(Inner(f(3)), f()), "go")


def test_many_trees_are_checked_in_linear_time():
    # Each tree is checked by itself, not together with all earlier ones.
    asked = []

    class Counted:
        dtype = np.dtype("float32")

        @property
        def shape(self):
            asked.append(1)
            return (3,)

    class Many(eqx.Module):
        xs: list[PyTree[Float[Any, "..."]]] = eqx.field(static=True)

    counts = []
    for size in (10, 20):
        asked.clear()
        chorax.check_annotations(Many([Counted() for _ in range(size)]))
        counts.append(len(asked))
    assert counts[1] == 2 * counts[0]
