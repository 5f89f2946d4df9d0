"""Compiled programs, looked into."""

import equinox as eqx
import jax


COLLECTIVES = (
    r"all-gather|all-reduce|all-to-all|collective-|reduce-scatter|send\b|recv\b"
)


def compiled(function, *inputs):
    """The program of one device, of a function of trees."""
    dynamic, static = eqx.partition(inputs, eqx.is_array)

    def run(dynamic):
        out = function(*eqx.combine(dynamic, static))
        return eqx.filter(out, eqx.is_array)

    return jax.jit(run).lower(dynamic).compile()


def peak(program):
    """The bytes of inputs, outputs, and what is between them, on one device."""
    stats = program.memory_analysis()
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
    )
