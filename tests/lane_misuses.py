"""Wrong arguments of `chorax.lanes`."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from chorax import diff, lanes
from misuses import (
    axes_text,
    bad_filter,
    BadEq,
    BadRepr,
    BIG,
    Count,
    f32,
    filter_text,
    FOUR,
    FOUR_AXES,
    given,
    HUGE,
    i32,
    length_text,
    LONG,
    mask_text,
    Mistake,
    no_array_text,
    of,
    part_text,
    shown_to,
    size_text,
    Static,
    traced,
    wrong,
)


NO_LANES = (
    "No leaf has a lane axis: `axes` is `None` everywhere. Pass the `StateDelta` or "
    "the tree of axes that came with the batched model."
)


def sharding(*entries):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("lanes",))
    return NamedSharding(mesh, PartitionSpec(*entries))


def models_text(got, name="models", function="stack", what="models"):
    return f"`{name}` of `{function}` must be an iterable of {what}, but got {got}."


def batches_text(got):
    return models_text(got, "batches", "concatenate", "batched models")


def items_text(got, name="`models` of `stack`"):
    return (
        f"{name} must be an iterable of models, but got {got}. Pass the models "
        "themselves: a list, or the `.values()` of a dictionary."
    )


def differ_text(place, parts, one, other, cure=True):
    more = (
        " A leaf that is not an array is shared by all lanes; make it an array to have "
        "one per lane."
    )
    return f"{place} of {parts} differ: {one} against {other}.{more if cure else ''}"


def index_text(got):
    return (
        "`index` must be an integer, a slice, a mask or an array of indices, but "
        f"got {got}."
    )


def slice_text(got):
    return (
        "A slice of lanes must have integers that are known while tracing, but got "
        f"{got}. An array of indices may be traced."
    )


def sharding_text(got):
    return (
        "`sharding` of `shard` must be a `jax.sharding.NamedSharding`, of a mesh and "
        f"the name of an axis, but got {got}."
    )


def take(index):
    return lambda target: lanes.take(target, FOUR_AXES, index)


def axes_of(name, act):
    """What each function of lanes says of wrong axes."""
    disagree = {"v": f32(4, 2), "w": f32(3, 2)}
    return {
        f"{name}, axes a string": wrong(
            TypeError,
            axes_text("'x'", name="axes"),
            lambda target: act(target, "x"),
            target=FOUR,
        ),
        f"{name}, axes an array": wrong(
            TypeError,
            axes_text("float32[50, 50]", name="axes"),
            lambda target: act(target, BIG),
            target=FOUR,
        ),
        f"{name}, axes a bool deep in it": wrong(
            TypeError,
            axes_text("True", "`w`", "axes"),
            lambda target: act(target, {"v": 0, "w": True}),
            target=FOUR,
        ),
        f"{name}, axes that raise": wrong(
            KeyError,
            "'no'",
            lambda target: act(target, bad_filter),
            "Raised by the function in `axes` at the root `()`.",
            target=FOUR,
        ),
        f"{name}, axes of another tree": wrong(
            ValueError,
            part_text("the root `()`", "a list of [0]", "a dict of ['v', 'w']", "axes"),
            lambda target: act(target, diff([Count(f32(1))], [Count(f32(1))])),
            target=FOUR,
        ),
        f"{name}, no axes": wrong(
            ValueError, NO_LANES, lambda target: act(target, None), target=FOUR
        ),
        f"{name}, lanes that disagree": wrong(
            ValueError,
            length_text("`w`", 0, 4, "3 there", "(3, 2)", "axes"),
            lambda target: act(target, 0),
            "`v` has 4 lanes.",
            target=disagree,
        ),
        f"{name}, no lane where others have some": wrong(
            ValueError,
            length_text("`w`", 0, 0, "3 there", "(3,)", "axes"),
            lambda target: act(target, 0),
            "`v` has 0 lanes.",
            target={"v": f32(0, 2), "w": f32(3)},
        ),
        f"{name}, an axis that is not there": wrong(
            ValueError,
            length_text("`u`", 0, 4, "no such axis", "()", "axes"),
            lambda target: act(target, 0),
            "`v` has 4 lanes.",
            target={"u": f32(), "v": f32(4)},
        ),
        f"{name}, an axis of a string": wrong(
            ValueError,
            no_array_text("`u`", f"{LONG} of type str", "axes"),
            lambda target: act(target, 0),
            "`v` has 4 lanes.",
            target={"u": "x" * 5000, "v": f32(4)},
        ),
    }


MASK = np.array([True, False, True, False])
LANES: dict[str, Mistake] = {
    **axes_of("unstack", lanes.unstack),
    **axes_of("take", lambda target, axes: lanes.take(target, axes, 0)),
    **axes_of("where", lambda target, axes: lanes.where(MASK, target, target, axes)),
    **axes_of("shard", lambda target, axes: lanes.shard(target, axes, sharding(None))),
    **axes_of("Ensemble", lanes.Ensemble),
    **of(
        "stack",
        shown_to(
            models_text,
            lanes.stack,
            "a key",
            "a long string",
            "an array",
            "a big list",
        ),
    ),
    "stack of nothing": wrong(
        ValueError,
        "There is nothing to stack: no models were given.",
        lambda target: lanes.stack([]),
    ),
    "stack of a dictionary": wrong(
        TypeError,
        items_text("{'a': Box(...), 'b': Box(...)} of type dict"),
        lambda target: lanes.stack({"a": target, "b": target}),
        target=HUGE,
    ),
    "stack of a string": wrong(
        TypeError, items_text("'ab' of type str"), lambda target: lanes.stack("ab")
    ),
    "stack of other models": wrong(
        ValueError,
        "Lanes are models of one structure, but model 0 and model 2 differ at the root "
        "`()`: model 0: a Box; model 2: a Count.",
        lambda target: lanes.stack([target, target, Count()]),
        target=HUGE,
    ),
    "stack of another static field": wrong(
        ValueError,
        "Lanes are models of one structure, but model 0 and model 1 differ at `n`: "
        f"model 0: <BadRepr>; model 1: {LONG}.",
        lambda target: lanes.stack([target, Static("x" * 5000)]),
        target=Static(BadRepr()),
    ),
    "stack of other shapes": wrong(
        ValueError,
        differ_text("`v`", "model 0 and model 1", "float32[2]", "float32[3]", False),
        lambda target: lanes.stack([{"v": f32(2)}, {"v": f32(3)}]),
    ),
    "stack of other dtypes": wrong(
        ValueError,
        differ_text("`v`", "model 0 and model 1", "float32[2]", "int32[2]", False),
        lambda target: lanes.stack([{"v": f32(2)}, {"v": i32(2)}]),
    ),
    "stack of no shape and some": wrong(
        ValueError,
        differ_text("`x`", "model 0 and model 1", "float32[0]", "float32[0, 1]", False),
        lambda target: lanes.stack([Count(f32(0)), Count(f32(0, 1))]),
    ),
    "stack of an array and a string": wrong(
        ValueError,
        "`v` of model 0 and model 1 differ: one is not an array but a str, "
        + LONG
        + ".",
        lambda target: lanes.stack([{"v": f32(2)}, {"v": "x" * 5000}]),
    ),
    "stack of a number and an array": wrong(
        ValueError,
        differ_text("`v`", "model 0 and model 1", "1.0", "float32[50, 50]"),
        lambda target: lanes.stack([{"v": 1.0}, {"v": BIG}]),
    ),
    "stack of what can't be shown": wrong(
        ValueError,
        differ_text("`v`", "model 0 and model 1", "<BadRepr>", "<BadEq>"),
        lambda target: lanes.stack([{"v": BadRepr()}, {"v": BadEq()}]),
    ),
    "stack of what can't be compared": wrong(
        ValueError,
        differ_text("`v`", "model 0 and model 1", "<BadEq>", "<BadEq>"),
        lambda target: lanes.stack([{"v": BadEq()}, {"v": BadEq()}]),
    ),
    "stack that shares other values": wrong(
        ValueError,
        "`v` of model 0 and model 1 have different values, but no lane axis: one of "
        "them would be lost. Give the leaf a lane axis, or make it the same in all.",
        lambda target: lanes.stack([{"v": f32(2)}, {"v": f32(2) + 1}], share=True),
    ),
    "stack that shares by a number": wrong(
        TypeError,
        filter_text("3.5 of type float"),
        lambda target: lanes.stack([target], share=3.5),  # pyright: ignore[reportArgumentType]
        given("share"),
    ),
    "stack that shares by what raises": wrong(
        KeyError,
        "'no'",
        lambda target: lanes.stack([target], share=bad_filter),
        "Raised by the filter bad_filter at `a.1.x`.",
    ),
    **{
        f"take by {name}": wrong(kind, text, take(index), target=FOUR)
        for name, index, kind, text in [
            ("a string", "0", TypeError, index_text("'0' of type str")),
            ("None", None, TypeError, index_text("`None`")),
            ("a float", 1.5, TypeError, index_text("1.5 of type float")),
            ("a model", HUGE, TypeError, index_text("a Box")),
            (
                "what can't be shown",
                BadRepr(),
                TypeError,
                index_text("<BadRepr> of type BadRepr"),
            ),
            (
                "a bool",
                True,
                TypeError,
                "A lane's index must be an integer, but got a `bool`.",
            ),
            (
                "a number too big",
                4,
                IndexError,
                "There are 4 lanes, so there is none at index 4.",
            ),
            (
                "a number too small",
                -5,
                IndexError,
                "There are 4 lanes, so there is none at index -5.",
            ),
            (
                "a number too big among others",
                [0, 9, 1],
                IndexError,
                "There are 4 lanes, so there is none at index 9.",
            ),
            (
                "floats",
                [0.5],
                TypeError,
                "`index` must consist of integers, but got [0.5] of type list.",
            ),
            (
                "an array of floats",
                f32(2),
                TypeError,
                "`index` must consist of integers, but got float32.",
            ),
            (
                "a ragged list",
                [[0], 1],
                TypeError,
                "`index` must be an integer, a slice, a mask or an array of "
                "indices, but got [[0], 1] of type list.",
            ),
            (
                "None in a list",
                [None],
                TypeError,
                "`index` must consist of integers, but got [None] of type list.",
            ),
            (
                "a matrix",
                i32(2, 2),
                ValueError,
                "`index` must have at most one axis, but its shape is (2, 2).",
            ),
            (
                "a mask of another length",
                np.ones(3, bool),
                ValueError,
                "A mask of lanes must have the shape (4,), but has (3,).",
            ),
            (
                "a slice of strings",
                slice("a", None),
                TypeError,
                slice_text("'a' of type str"),
            ),
            (
                "a slice of arrays",
                slice(None, f32(2)),
                TypeError,
                slice_text("an array of dtype float32 and shape (2,)"),
            ),
            (
                "a slice of steps of zero",
                slice(0, 2, 0),
                ValueError,
                "slice step cannot be zero",
            ),
        ]
    },
    "take from no lanes": wrong(
        IndexError,
        "There are 0 lanes, so there is none at index 0.",
        lambda target: lanes.take(target, 0, 0),
        target={"v": f32(0, 2)},
    ),
    "take by a traced mask": wrong(
        ValueError,
        "How many lanes a traced mask keeps is not known while tracing. Choose lane by "
        "lane with `chorax.lanes.where`, or take `jnp.flatnonzero(mask, size=...)`.",
        traced(lambda target, x: take(x)(target), 4, dtype=bool),
        target=FOUR,
    ),
    "take by a traced slice": wrong(
        TypeError,
        slice_text("a traced array of dtype int32 and shape ()"),
        traced(lambda target, x: take(slice(0, x))(target)),
        target=FOUR,
    ),
    "take from an ensemble by a string": wrong(
        TypeError,
        index_text("'a' of type str"),
        lambda target: lanes.Ensemble(target, FOUR_AXES)["a"],
        target=FOUR,
    ),
    "take from an ensemble what is not there": wrong(
        IndexError,
        "There are 4 lanes, so there is none at index 4.",
        lambda target: lanes.Ensemble(target, FOUR_AXES)[4],
        target=FOUR,
    ),
    **of(
        "vmap of an ensemble",
        shown_to(
            lambda got: (
                "`fn` of `vmap` must be a function `(model, *args, **kwargs)`, "
                f"but got {got}."
            ),
            lambda x: lanes.Ensemble(FOUR, FOUR_AXES).vmap(x),
            "a class",
            "a function",
        ),
    ),
    "an ensemble with axes of others": wrong(
        ValueError,
        "`kwargs_in_axes` names ['y'], but `kwargs` has only [].",
        lambda target: lanes.Ensemble(target, FOUR_AXES)(kwargs_in_axes={"y": 0}),
        target=FOUR,
    ),
    **of(
        "concatenate",
        shown_to(
            batches_text,
            lambda x: lanes.concatenate(x, 0),
            "a key",
            "a long string",
            "an array",
            "a big list",
        ),
    ),
    "concatenate of nothing": wrong(
        ValueError,
        "There is nothing to concatenate: no models were given.",
        lambda target: lanes.concatenate([], 0),
    ),
    "concatenate of a dictionary": wrong(
        TypeError,
        items_text(
            "{'a': {'v': float32[4, 2], 'w': float32[2]}} of type dict",
            "`batches` of `concatenate`",
        ),
        lambda target: lanes.concatenate({"a": target}, 0),
        target=FOUR,
    ),
    "concatenate of other structures": wrong(
        ValueError,
        "Lanes are models of one structure, but batch 0 and batch 1 differ at `w`: "
        "batch 0: has it; batch 1: lacks it.",
        lambda target: lanes.concatenate([target, {"v": f32(4, 2)}], 0),
        target=FOUR,
    ),
    "concatenate of other shapes": wrong(
        ValueError,
        differ_text(
            "`v`", "batch 0 and batch 1", "float32[4, 2]", "float32[3, 1]", False
        ),
        lambda target: lanes.concatenate(
            [target, {"v": f32(3, 1), "w": f32(2)}], FOUR_AXES
        ),
        target=FOUR,
    ),
    "concatenate of other dtypes": wrong(
        ValueError,
        differ_text(
            "`v`", "batch 0 and batch 1", "float32[4, 2]", "int32[4, 2]", False
        ),
        lambda target: lanes.concatenate(
            [target, {"v": i32(4, 2), "w": f32(2)}], FOUR_AXES
        ),
        target=FOUR,
    ),
    "concatenate of other shared values": wrong(
        ValueError,
        "`w` of batch 0 and batch 1 have different values, but no lane axis: one of "
        "them would be lost. Give the leaf a lane axis, or make it the same in all.",
        lambda target: lanes.concatenate(
            [target, target | {"w": f32(2) + 1}], FOUR_AXES
        ),
        target=FOUR,
    ),
    "concatenate of what can't be shown": wrong(
        ValueError,
        differ_text("`s`", "batch 0 and batch 1", "<BadRepr>", LONG),
        lambda target: lanes.concatenate(
            [target, target | {"s": "x" * 5000}], {"v": 0, "s": None}
        ),
        target={"v": f32(4), "s": BadRepr()},
    ),
    "concatenate where lanes disagree": wrong(
        ValueError,
        length_text("`w`", 0, 3, "2 there", "(2,)", "axes"),
        lambda target: lanes.concatenate([{"v": f32(1), "w": f32(1)}, target], 0),
        "`v` has 3 lanes.",
        "Raised by batch 1.",
        target={"v": f32(3), "w": f32(2)},
    ),
    "concatenate without axes": wrong(
        ValueError,
        NO_LANES,
        lambda target: lanes.concatenate([target], None),
        "Raised by batch 0.",
        target=FOUR,
    ),
    **{
        f"where by {name}": wrong(
            kind,
            mask_text(but, "mask"),
            lambda target, mask=mask: lanes.where(mask, target, target, FOUR_AXES),
            target=FOUR,
        )
        for name, mask, kind, but in [
            ("None", None, TypeError, "got `None`"),
            ("a bool", True, TypeError, "got True of type bool"),
            ("a model", HUGE, TypeError, "got a Box"),
            (
                "what can't be shown",
                BadRepr(),
                TypeError,
                "got <BadRepr> of type BadRepr",
            ),
            ("floats", f32(4), TypeError, "its dtype is float32"),
            (
                "a ragged list",
                [[True], True],
                TypeError,
                "got [[True], True] of type list",
            ),
            ("a mask too short", [True], ValueError, "its shape is (1,)"),
            ("a mask of no lanes", np.ones(0, bool), ValueError, "its shape is (0,)"),
        ]
    },
    "where of other structures": wrong(
        ValueError,
        "Lanes are models of one structure, but `old` and `new` differ at `w`: `old`: "
        "lacks it; `new`: has it.",
        lambda target: lanes.where(MASK, target, {"v": f32(4, 2)}, 0),
        target=FOUR,
    ),
    "where of other lanes": wrong(
        ValueError,
        differ_text("`v`", "`old` and `new`", "float32[3, 2]", "float32[4, 2]", False),
        lambda target: lanes.where(MASK, target, target | {"v": f32(3, 2)}, FOUR_AXES),
        target=FOUR,
    ),
    "where of other dtypes": wrong(
        ValueError,
        differ_text("`v`", "`old` and `new`", "int32[4, 2]", "float32[4, 2]", False),
        lambda target: lanes.where(MASK, target, target | {"v": i32(4, 2)}, FOUR_AXES),
        target=FOUR,
    ),
    "where of other strings": wrong(
        ValueError,
        differ_text("`s`", "`old` and `new`", LONG, "'a'"),
        lambda target: lanes.where(
            MASK, target, target | {"s": "x" * 5000}, {"v": 0, "s": None}
        ),
        target={"v": f32(4), "s": "a"},
    ),
    **{
        f"broadcast to {name}": wrong(
            ValueError,
            size_text(got),
            lambda target, size=size: lanes.broadcast(target, size),
            target=FOUR,
        )
        for name, size, got in [
            ("nothing", None, "it is missing"),
            ("zero", 0, "got 0 of type int"),
            ("a float", 2.0, "got 2.0 of type float"),
            ("a bool", True, "got True of type bool"),
            ("an array", BIG, "got an array of dtype float32 and shape (50, 50)"),
            ("a model", HUGE, "got a Box"),
        ]
    },
    "broadcast by a number": wrong(
        TypeError,
        filter_text("3.5 of type float"),
        lambda target: lanes.broadcast(target, 3, 3.5),  # pyright: ignore[reportArgumentType]
        given("filter"),
        target=FOUR,
    ),
    "broadcast by what raises": wrong(
        KeyError,
        "'no'",
        lambda target: lanes.broadcast(target, 3, bad_filter),
        "Raised by the filter bad_filter at `v`.",
        target=FOUR,
    ),
    **of("shard", shown_to(sharding_text, lambda x: lanes.shard(FOUR, FOUR_AXES, x))),
    **{
        f"shard by {len(entries)} entries": wrong(
            ValueError,
            "`sharding` must have a specification of one entry, the mesh axis of the "
            f"lanes, but has {PartitionSpec(*entries)}.",
            lambda target, entries=entries: lanes.shard(
                target, FOUR_AXES, sharding(*entries)
            ),
            target=FOUR,
        )
        for entries in [(), ("lanes", None)]
    },
}
