"""What brainstate and Flax NNX get right: the same calls there and here, compared."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
import scipy.stats

import chorax
import oracle
from chorax import call_order, filters, replace
from peers import (
    as_list,
    brainstate,
    brainstate_values,
    dotted,
    drawn,
    lenient,
    make_nnx,
    make_ours,
    make_theirs,
    Nnx,
    nnx,
    nnx_modules,
    nnx_values,
    normals,
    our_class,
    random_spec,
    Spec,
    their_class,
)


LANES = 3
SEEDS = range(6)
SMALL = Spec(
    0,
    1,
    {
        "a": Spec(1, 0, [Spec(2), Spec(3, "absent", [Spec(4, 0)])]),
        "b": Spec(5, None, {"a": Spec(6, 1), "c": Spec(7)}),
    },
)


def once(visits):
    # To find out what there is, brainstate calls everything one more time.
    return list(dict.fromkeys(visits))


# brainstate: states, order, exclusion and tags


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_states_in_the_same_order(seed):
    seen: tuple[list, list] = [], []
    spec = random_spec(seed, children_first=True)
    net, peer = make_ours(spec, seen[0].append), make_theirs(spec, seen[1].append)
    options: dict[str, Any] = {"axis_size": LANES, "fn_if_not_exist": "pass"}
    brainstate.nn.vmap_call_all_fns(peer, "make", 2, **options, state_tag="made")
    batched, delta = chorax.vmap_call_all_fns(
        net, "make", 2, **options, state_tag="made"
    )
    assert seen[0] == once(seen[1])
    oracle.assert_same(delta.to_dict(), brainstate_values(peer))
    tags = {dotted(path): state.tag for path, state in peer.states().items()}
    assert dict(delta.tags) == tags
    assert set(jtu.tree_leaves(delta.in_axes)) == {0}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_order_by_levels_and_exclusion(seed):
    seen: tuple[list, list] = [], []
    spec = random_spec(seed)
    net, peer = make_ours(spec, seen[0].append), make_theirs(spec, seen[1].append)
    options: dict[str, Any] = {
        "node_to_exclude": lambda path, node: node.number % 3 == 2 or "d" in path,
        "fn_if_not_exist": "pass",
    }
    brainstate.nn.call_all_fns(peer, "make", **options)
    model, delta = chorax.call_all_fns(net, "make", **options)
    assert seen[0] == seen[1]
    oracle.assert_same(delta.to_dict(), brainstate_values(peer))


NODE_FILTERS: dict[str, Callable[[Any, Callable], Any]] = {
    "None": lambda f, kind: None,
    "False": lambda f, kind: False,
    "class": lambda f, kind: kind(0),
    "classes": lambda f, kind: (kind(0), kind(1)),
    "OfType": lambda f, kind: f.OfType(kind(None)),
    "PathContains": lambda f, kind: f.PathContains("a"),
    "PathContains an index": lambda f, kind: f.PathContains(0),
    "tag": lambda f, kind: "1",
    "WithTag": lambda f, kind: f.WithTag("2"),
    "list": lambda f, kind: [kind(1), "2"],
    "Any": lambda f, kind: f.Any(kind(0), f.PathContains("c")),
    "All": lambda f, kind: f.All(f.PathContains("b"), f.Not("1")),
    "Not": lambda f, kind: f.Not(kind(None)),
    "nested": lambda f, kind: [f.All(f.Not(kind(0)), f.Any("0", "1")), f.Nothing()],
    "function": lambda f, kind: lambda path, node: len(path) == 2,
    "Not everything": lambda f, kind: f.Not(f.Everything()),
    "Not a function": lambda f, kind: f.Not(lambda path, node: path[-1:] == (0,)),
}


@pytest.mark.parametrize("name", NODE_FILTERS)
def test_the_same_filter_excludes_the_same_nodes(name):
    excluded = NODE_FILTERS[name](filters, our_class)
    their_excluded = NODE_FILTERS[name](brainstate.util.filter, their_class)
    options: dict[str, Any] = {"fn_if_not_exist": "none"}
    peer = make_theirs(SMALL)
    brainstate.nn.call_all_fns(peer, "make", node_to_exclude=their_excluded, **options)
    _, delta = chorax.call_all_fns(
        make_ours(SMALL), "make", node_to_exclude=excluded, **options
    )
    oracle.assert_same(delta.to_dict(), brainstate_values(peer))


@pytest.mark.parametrize("excluded", [..., True, [...], (False, True)])
def test_everything_excluded(excluded):
    options: dict[str, Any] = {"node_to_exclude": excluded, "fn_if_not_exist": "pass"}
    peer, net = make_theirs(SMALL), make_ours(SMALL)
    brainstate.nn.call_all_fns(peer, "make", **options)
    assert brainstate_values(peer) == {}
    with pytest.warns(UserWarning, match="`make` wrote nothing at all"):
        _, delta = chorax.call_all_fns(net, "make", **options)
    assert delta.paths == ()


ARGUMENTS = {
    "one": (3, None),
    "tuple": ((3,), None),
    "keyword": ((), {"by": 3}),
    "array": (jnp.asarray(3, jnp.int32), None),
    "array in a tuple": ((np.asarray(3, np.int32),), {}),
    "none": ((), None),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    args, kwargs = ARGUMENTS[name]
    options: dict[str, Any] = {"args": args, "kwargs": kwargs, "axis_size": LANES}
    options["fn_if_not_exist"] = "pass"
    spec = Spec(1, None, [Spec(2), Spec(4, "absent")])
    peer = make_theirs(spec)
    brainstate.nn.vmap_call_all_fns(peer, "make", **options)
    _, delta = chorax.vmap_call_all_fns(make_ours(spec), "make", **options)
    oracle.assert_same(delta.to_dict(), brainstate_values(peer))


class OurDraws(eqx.Module):
    noise: Any = None
    gain: Any = None

    def init_state(self, size, *, key):
        noise, gain = jax.random.split(key)
        noise = jax.random.normal(noise, (size,))
        return replace(self, noise=noise, gain=jax.random.uniform(gain, (size,)))


class TheirDraws(brainstate.nn.Module):
    def init_state(self, size):
        self.noise = brainstate.ShortTermState(brainstate.random.normal(size=size))
        self.gain = brainstate.HiddenState(brainstate.random.uniform(size=size))


class TheirNet(brainstate.nn.Module):
    def __init__(self, *below):
        super().__init__()
        self.below = list(below)

    def init_state(self, *args):
        pass


def test_draws_are_alike_and_differ_between_nodes_and_lanes(key):
    net = {"below": [OurDraws(), OurDraws()]}
    peer = TheirNet(TheirDraws(), TheirDraws())
    brainstate.random.seed(0)
    with lenient():
        brainstate.nn.vmap_init_all_states(peer, 500, axis_size=8)
    _, delta = chorax.vmap_init_all_states(net, 500, axis_size=8, key=key)
    both = delta.to_dict(), brainstate_values(peer)
    kinds = [{name: (x.shape, x.dtype) for name, x in d.items()} for d in both]
    assert kinds[0] == kinds[1]
    for name in ("noise", "gain"):
        draws = [np.stack([d[f"below.{i}.{name}"] for i in (0, 1)]) for d in both]
        for each in draws:
            assert len(np.unique(each[..., 0])) == 16
        # Two samples of one distribution are less alike than this once in 1000 times.
        test: Any = scipy.stats.ks_2samp(draws[0].ravel(), draws[1].ravel())
        assert test.pvalue > 1e-3


class OurStates(eqx.Module):
    v: Any = None
    g: Any = None
    count: Any = None

    def init_state(self):
        return replace(self, v=jnp.zeros(2), g=jnp.ones(4), count=jnp.arange(5))


class TheirStates(brainstate.nn.Module):
    def init_state(self):
        self.v = brainstate.ShortTermState(jnp.zeros(2))
        self.g = brainstate.HiddenState(jnp.ones(4))
        self.count = brainstate.LongTermState(jnp.arange(5))


their = brainstate.util.filter
# What brainstate's filter sees of a state is the state; what ours sees, path and value.
STATES_TO_EXCLUDE = {
    "nothing": (None, None),
    "a class": (their.OfType(brainstate.LongTermState), filters.PathContains("count")),
    "not a class": (
        their.Not(their.OfType(brainstate.HiddenState)),
        filters.Not(lambda path, x: path[-1] == "g"),
    ),
    "any": (
        their.Any(brainstate.LongTermState, brainstate.HiddenState),
        [lambda x: x.dtype == jnp.arange(5).dtype, filters.PathContains("g")],
    ),
    "by shape": (lambda path, state: state.value.size < 5, lambda x: x.size < 5),
    "everything": (their.Everything(), ...),
}


@pytest.mark.parametrize("name", STATES_TO_EXCLUDE)
def test_excluded_states_have_no_lanes(name):
    theirs, ours = STATES_TO_EXCLUDE[name]
    peer = TheirNet(TheirStates(), TheirStates())
    brainstate.nn.vmap_init_all_states(peer, axis_size=3, state_to_exclude=theirs)
    net = {"below": [OurStates(), OurStates()]}
    _, delta = chorax.vmap_init_all_states(net, axis_size=3, state_to_exclude=ours)
    expected = brainstate_values(peer)
    oracle.assert_same(delta.to_dict(), expected)
    with_lanes = {dotted(path) for path in oracle.leaves_by_path(delta.in_axes)}
    assert with_lanes == {path for path, x in expected.items() if x.ndim == 2}


def test_states_are_found_by_tag():
    spec = Spec(1, None, [Spec(2), Spec(3)])
    peer, net = make_theirs(spec), make_ours(spec)
    options: dict[str, Any] = {"axis_size": LANES}
    brainstate.nn.vmap_call_all_fns(peer, "make", **options, state_tag="first")
    net, first = chorax.vmap_call_all_fns(net, "make", **options, state_tag="first")
    # Then one node anew.
    options |= {"state_tag": "second"}
    options |= {"node_to_exclude": lambda path, node: node.number != 3}
    brainstate.nn.vmap_call_all_fns(peer, "make", **options)
    net, second = chorax.vmap_call_all_fns(net, "make", **options)

    def found(tag):
        return {dotted(path) for path in peer.states(tag)}

    assert set(second.select("second").paths) == found("second") == {"below.1.x"}
    both = first | second
    assert set(both.select("second").paths) == found("second")
    only_first = both.select(filters.All("first", filters.Not("second")))
    assert set(only_first.paths) == found("first") == {"x", "below.0.x"}
    assert both.select("third").paths == ()
    assert found("third") == set()


# Each is asked of both libraries: what is raised, what brainstate says, and we.
BAD_USE: dict[str, tuple[Callable[[Any, Any], Any], type, str, str]] = {
    "no axis_size": (
        lambda lib, net: lib.vmap_call_all_fns(net, "make"),
        ValueError,
        "axis_size must be a positive integer, got None",
        "`axis_size` must be a positive integer, the number of lanes",
    ),
    "axis_size 0": (
        lambda lib, net: lib.vmap_init_all_states(net, axis_size=0),
        ValueError,
        "axis_size must be greater than 0",
        "`axis_size` must be a positive integer.* but got 0",
    ),
    "axis_size negative": (
        lambda lib, net: lib.vmap_reset_all_states(net, axis_size=-2),
        ValueError,
        "axis_size must be a positive integer, got -2",
        "`axis_size` must be a positive integer.* but got -2",
    ),
    "kwargs a list": (
        lambda lib, net: lib.vmap_call_all_fns(net, "make", (), [1], 2),
        TypeError,
        "kwargs must be a mapping",
        "`kwargs` must be a mapping or `None`",
    ),
    "fn_name a number": (
        lambda lib, net: lib.call_all_fns(net, 3),
        TypeError,
        "fn_name must be a string",
        "`fn_name` must be the name of a method or a callable",
    ),
    "a filter of another type": (
        lambda lib, net: lib.call_all_fns(net, "make", node_to_exclude=3.5),
        TypeError,
        "Invalid collection filter: 3.5",
        "Not a filter: 3.5 of type float",
    ),
    "no such method": (
        lambda lib, net: lib.vmap_call_all_fns(net, "nope", axis_size=2),
        AttributeError,
        r"Module Node with the path \('below', 0\) does not have method 'nope'",
        r"Node at `below\.0` has no method `nope`",
    ),
    "a warning of it": (
        lambda lib, net: lib.call_all_fns(net, "nope", fn_if_not_exist="warn"),
        UserWarning,
        "does not have method 'nope'. Skipping.",
        "has no method `nope`; it is skipped",
    ),
    "an unknown mode": (
        lambda lib, net: lib.call_all_fns(net, "nope", fn_if_not_exist="oops"),
        ValueError,
        "fn_if_not_exist must be one of",
        "`fn_if_not_exist` must be one of",
    ),
    "too many arguments": (
        lambda lib, net: lib.call_all_fns(net, "make", (1, 2, 3)),
        TypeError,
        "takes from 1 to 2 positional arguments but 4 were given",
        "takes from 1 to 2 positional arguments but 4 were given",
    ),
    "an unknown keyword": (
        lambda lib, net: lib.vmap_call_all_fns(
            net, "make", kwargs={"z": 1}, axis_size=2
        ),
        TypeError,
        "unexpected keyword argument 'z'",
        "unexpected keyword argument 'z'",
    ),
    "a level that is too high": (
        lambda lib, net: lib.call_order(10),
        ValueError,
        r'"level" must be an integer in \[0, 10\), but got 10',
        r"`level` must be an integer in \[0, 10\), but got 10",
    ),
    "a negative level": (
        lambda lib, net: lib.call_order(-1),
        ValueError,
        r'"level" must be an integer in \[0, 10\), but got -1',
        r"`level` must be an integer in \[0, 10\), but got -1",
    ),
    "not callable": (
        lambda lib, net: lib.call_all_fns(net, "odd"),
        TypeError,
        "'odd' must be callable, but got float",
        "`odd` of Node at `below.0` is not callable",
    ),
}


@pytest.mark.parametrize("name", BAD_USE)
def test_bad_use_is_refused_alike(name):
    call, error, theirs, ours = BAD_USE[name]
    spec = Spec(0, None, [Spec(1)])
    with pytest.raises(error, match=theirs):
        call(brainstate.nn, make_theirs(spec))
    with pytest.raises(error, match=ours):
        call(chorax, make_ours(spec))


def test_levels_without_bounds():
    class Peer(brainstate.nn.Module):
        @brainstate.nn.call_order(-3, check_order_boundary=False)
        def make(self):
            seen[0].append("below")

    class PeerAround(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.below = Peer()

        @brainstate.nn.call_order(-20, check_order_boundary=False)
        def make(self):
            seen[0].append("around")

    class Node(eqx.Module):
        x: Any = None

        @call_order(-3, check_order_boundary=False)
        def make(self):
            seen[1].append("below")
            return replace(self, x=1)

    class Around(eqx.Module):
        below: Node

        @call_order(-20, check_order_boundary=False)
        def make(self):
            seen[1].append("around")
            return self

    seen: tuple[list, list] = [], []
    brainstate.nn.call_all_fns(PeerAround(), "make")
    chorax.call_all_fns(Around(Node()), "make")
    assert seen[0] == seen[1] == ["around", "below"]


STATE_DICTS = {
    "dotted": ({"x": 7.0, "below.0.x": 8.0},),
    "tuples": ({("below", 0, "x"): 8.0, ("x",): 7.0},),
    "both": ({"x": 7.0}, {("below", 1, "x"): 9.0}),
    "unexpected": ({"x": 7.0, "below.2.x": 8.0, "y": 9.0},),
    "the last one wins": ({"x": 7.0}, {"x": 8.0}),
    "nothing": ({},),
}


@pytest.mark.parametrize("name", STATE_DICTS)
def test_state_dicts(name):
    spec = Spec(1, None, [Spec(2), Spec(3)])
    mappings = [
        {path: jnp.full(2, value) for path, value in mapping.items()}
        for mapping in STATE_DICTS[name]
    ]
    peer = make_theirs(spec)
    brainstate.nn.call_all_fns(peer, "make")
    net, _ = chorax.call_all_fns(make_ours(spec), "make")
    unexpected, missing = brainstate.nn.assign_state_values(peer, *mappings)
    # brainstate takes other shapes and dtypes.
    new, our_unexpected, our_missing = chorax.assign_state_values(
        net, *mappings, check=False
    )
    assert sorted(our_unexpected) == unexpected
    assert sorted(our_missing) == [dotted(path) for path in missing]
    named = {dotted(p): x for p, x in oracle.leaves_by_path(new).items()}
    oracle.assert_same(named, brainstate_values(peer))


# What one who comes from brainstate has to know


def test_siblings_go_by_their_fields_not_by_name():
    class Node(eqx.Module):
        b: Any
        a: Any

    seen: tuple[list, list] = [], []
    peer = their_class("absent")(0, id, None)
    peer.b, peer.a = (make_theirs(Spec(i), seen[0].append) for i in (1, 2))
    brainstate.nn.call_all_fns(peer, "make", fn_if_not_exist="pass")
    net = Node(*(make_ours(Spec(i), seen[1].append) for i in (1, 2)))
    chorax.call_all_fns(net, "make", fn_if_not_exist="pass")
    assert seen == ([2, 1], [1, 2])


def test_a_reset_keeps_lanes():
    class Peer(brainstate.nn.Module):
        def init_state(self):
            self.x = brainstate.ShortTermState(jnp.arange(2.0))

        def reset_state(self):
            self.x.value = jnp.zeros(2)

    class Node(eqx.Module):
        x: Any = None

        def init_state(self):
            return replace(self, x=jnp.arange(2.0))

        def reset_state(self):
            return replace(self, x=jnp.zeros(2))

    peer = Peer()
    brainstate.nn.vmap_init_all_states(peer, axis_size=LANES, state_tag="made")
    brainstate.nn.vmap_reset_all_states(peer, axis_size=LANES, state_tag="reset")
    net, made = chorax.vmap_init_all_states(Node(), axis_size=LANES, state_tag="made")
    net, reset = chorax.vmap_reset_all_states(
        net, axis_size=LANES, in_axes=made, state_tag="reset"
    )
    # Only states that are new have lanes and tags in brainstate.
    assert peer.x.value.shape == (2,)
    assert peer.x.tag == {"made"}
    assert net.x.shape == (LANES, 2)
    assert reset.tags == {"x": {"reset"}}
    assert (made | reset).tags == {"x": {"made", "reset"}}


def test_an_ensemble_is_of_parameters_too(key):
    # The example of `brainstate.nn.vmap_init_all_states`: what `__init__` made has no
    # lanes afterwards.
    peer = brainstate.nn.Linear(10, 20, w_init=jnp.zeros)
    brainstate.nn.vmap_init_all_states(peer, axis_size=8)
    assert peer.weight.value["weight"].shape == (10, 20)

    def ensemble(key):
        linear = eqx.nn.Linear(10, 20, key=key)
        reset = chorax.reset_parameters
        return chorax.vmap_call_all_fns(linear, reset, axis_size=8, key=key)[0]

    assert eqx.filter_eval_shape(ensemble, key).weight.shape == (8, 20, 10)


def test_a_module_at_two_places_is_two():
    seen: tuple[list, list] = [], []
    peer = their_class(None)(0, seen[0].append, [make_theirs(Spec(1), seen[0].append)])
    peer.below.append(peer.below[0])
    brainstate.nn.call_all_fns(peer, "make")
    node = Nnx(1, None)
    for _, module in nnx_modules(Nnx(0, as_list([node, node]))):
        if isinstance(module, Nnx):
            seen[1].append(module.number)
    assert seen[0] == seen[1] == [1, 0]
    # Here it is not called once, since each place is a value of its own.
    shared, _ = chorax.call_all_fns(make_ours(Spec(1)), "make")
    with pytest.warns(UserWarning, match=r"at `0` and at `1`.*use `eqx\.nn\.Shared`"):
        _, delta = chorax.call_all_fns([shared, shared], "make", 2)
    assert delta.paths == ("0.x", "1.x")


# NNX: the same keys, so the same draws


@pytest.mark.parametrize("seed", SEEDS[:4])
def test_iter_modules_in_the_same_order_with_the_same_draws(seed, lane_key):
    seen: tuple[list, list] = [], []
    spec = random_spec(seed, levels=(None,))
    keys = jax.random.split(lane_key, LANES)

    @nnx.vmap
    def lane(key):
        net = make_nnx(spec)
        for path, module in nnx_modules(net):
            if isinstance(module, Nnx):
                seen[0].append(module.number)
                module.draw(oracle.node_key(key, path))
        return net

    peer = lane(keys)
    _, delta = chorax.vmap_call_all_fns(
        make_ours(spec, seen[1].append),
        "draw",
        axis_size=LANES,
        key=keys,
        fn_if_not_exist="pass",
    )
    assert seen[0] == seen[1]
    oracle.assert_same(delta.to_dict(), nnx_values(peer))


def test_split_rngs_gives_lanes_the_same_draws():
    class Peer(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Variable(drawn(rngs(), (3,)))
            self.b = nnx.Variable(drawn(rngs(), (2,)))

    class Node(eqx.Module):
        a: Any = None
        b: Any = None

        def make(self, stream):
            a, b = (jax.random.fold_in(stream, count) for count in (0, 1))
            return replace(self, a=drawn(a, (3,)), b=drawn(b, (2,)))

    peer = nnx.split_rngs(splits=4)(nnx.vmap(Peer))(nnx.Rngs(5))
    rngs: Any = nnx.Rngs(5)
    nnx.split_rngs(rngs, splits=4)
    streams = rngs.default.key[...]
    _, delta = chorax.vmap_call_all_fns(
        Node(), "make", streams, axis_size=4, args_in_axes=0
    )
    oracle.assert_same(delta.to_dict(), nnx_values(peer))


class NnxCell(nnx.Module):
    def __init__(self, x):
        self.w = nnx.Param(jnp.ones(2))
        self.x = nnx.Variable(x)

    def center(self, by):
        x = self.x[...]
        self.x[...] = x - jax.lax.pmean(x, "lanes") + by * self.w[0]


class NnxNet(nnx.Module):
    def __init__(self, a, b, c):
        self.a, self.b = as_list([NnxCell(a), NnxCell(b)]), NnxCell(c)


class Cell(eqx.Module):
    w: jax.Array
    x: jax.Array

    def center(self, by):
        x = self.x - jax.lax.pmean(self.x, "lanes") + by * self.w[0]
        return replace(self, x=x)


def cells(a, b, c):
    return {
        "a": [Cell(jnp.ones(2), a), Cell(jnp.ones(2), b)],
        "b": Cell(jnp.ones(2), c),
    }


LEAF_FILTERS: dict[str, Callable[[Any], Any]] = {
    "PathContains": lambda f: f.PathContains("x"),
    "PathContains a part": lambda f: f.PathContains("a"),
    "Not": lambda f: f.Not(f.PathContains("w")),
    "Any": lambda f: f.Any(f.PathContains("b"), f.PathContains(1)),
    "All": lambda f: f.All(f.PathContains("a"), f.PathContains("x")),
    "Everything": lambda f: f.Everything(),
    "Nothing": lambda f: f.Nothing(),
    "...": lambda f: ...,
    "None": lambda f: None,
    "True": lambda f: True,
    "False": lambda f: False,
    "list": lambda f: [f.PathContains("b"), f.All(f.PathContains(0), True)],
    "function": lambda f: lambda path, x: len(path) == 2 or x.shape == (),
    "nested": lambda f: f.Not(f.Any(f.All(f.PathContains("a"), ...), None)),
}


@pytest.mark.parametrize("name", LEAF_FILTERS)
def test_the_same_filter_keeps_the_same_leaves(name):
    (x,) = normals(())
    kept = nnx_values(NnxNet(x, x, x), LEAF_FILTERS[name](nnx))
    spec = filters.to_filter_spec(cells(x, x, x), LEAF_FILTERS[name](filters))
    ours = {dotted(p) for p, keep in oracle.leaves_by_path(spec).items() if keep}
    assert ours == set(kept)


def test_states_of_lanes_that_meet_over_shared_weights():
    starts, (by,) = normals((4,), (4,), (4,)), normals((4,), seed=1)
    peer, net = NnxNet(*starts), cells(*starts)
    axes = nnx.StateAxes({nnx.Param: None, ...: 0})

    @nnx.vmap(in_axes=(axes, 0), axis_name="lanes")
    def step(peer, by):
        for _, module in nnx_modules(peer):
            if isinstance(module, NnxCell):
                module.center(by)

    is_state = filters.to_filter_spec(net, filters.PathContains("x"))
    options: dict[str, Any] = {
        "axis_size": 4,
        "in_axes": jtu.tree_map(lambda is_one: 0 if is_one else None, is_state),
        "args_in_axes": 0,
        "axis_name": "lanes",
    }
    for _ in range(2):
        step(peer, by)
        net, delta = chorax.vmap_call_all_fns(net, "center", by, **options)
        theirs = nnx_values(peer, nnx.PathContains("x"))
        oracle.assert_same(delta.to_dict(), theirs, exact=False)
    assert peer.b.w[...].shape == net["b"].w.shape == (2,)
