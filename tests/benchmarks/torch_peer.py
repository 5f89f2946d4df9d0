"""The same work in PyTorch: a loop, and `torch.func.stack_module_state`."""

import importlib
from collections.abc import Callable
from typing import Any


def stack_module_state(task: str, nodes: int, lanes: int) -> Callable[[], Any] | None:
    """Makes the model once a lane and stacks what it holds."""
    if task != "create":
        return None
    torch: Any = importlib.import_module("torch")

    class Neuron(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = torch.nn.Parameter(torch.randn(8))
            self.g = torch.nn.Parameter(torch.rand(8))
            self.register_buffer("spikes", torch.zeros(8))

    def run() -> None:
        members = [
            torch.nn.ModuleList([Neuron() for _ in range(nodes)]) for _ in range(lanes)
        ]
        torch.func.stack_module_state(members)

    return run
