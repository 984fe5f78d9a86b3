"""CUDA graphs on a CPU, operation by operation: what a capture refuses, freezes and leaves undone.

`install` puts stand-ins for streams and graphs into torch.cuda; the recorder that is tested is the
real one. As on a GPU: work inside a capture does not happen, a replay repeats the recorded kernels
on the recorded memory, reading a value back inside a capture is an error, and memory that a graph
made for itself is another graph's between two replays (here it is filled with rubbish).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear")
READS_BACK = ("aten::_local_scalar_dense", "aten::item", "aten::lift_fresh", "aten::is_nonzero")


def _storages(values: Any) -> set[int]:
    leaves = tree_flatten(values)[0]
    return {x.untyped_storage().data_ptr() for x in leaves if isinstance(x, torch.Tensor)}


class FakeGraph:
    """torch.cuda.CUDAGraph. wrong: replays scale the first product of two matrices by this."""

    made: list[FakeGraph]
    wrong = 1.0
    refuses = False

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.own: list[torch.Tensor] = []
        self.replays = 0
        FakeGraph.made.append(self)

    def replay(self) -> None:
        """Every recorded kernel once more, in place."""
        for graph in FakeGraph.made:
            graph.spoil()
        self.replays += 1
        factor = FakeGraph.wrong
        for operation, args, kwargs, out in self.calls:
            again = operation(*args, **kwargs)
            if out is None:
                continue
            if factor != 1.0 and operation.name() in PRODUCTS:
                again, factor = again * factor, 1.0
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)

    def spoil(self) -> None:
        """What the graph computed for itself is gone."""
        for tensor in self.own:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -77)


class _Capture(TorchDispatchMode):
    """Notes what runs; puts back what it changed outside."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph
        self.fresh: set[int] = set()
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.name().split(".")[0] in READS_BACK:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        if writes:
            self._save(func, args, kwargs)
        out = func(*args, **kwargs)
        if writes:
            self.graph.calls.append((func, args, kwargs, None))
        elif not _storages(out) <= _storages((args, kwargs)):  # no view of what it was given
            self.graph.calls.append((func, args, kwargs, out))
            self.fresh |= _storages(out)
            self.graph.own += [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        return out

    def _save(self, func: Any, args: Any, kwargs: Any) -> None:
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if not (argument.alias_info and argument.alias_info.is_write):
                continue
            for tensor in tree_flatten(named.get(argument.name))[0]:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.fresh | self.before.keys():
                    whole = torch.empty(0, dtype=tensor.dtype).set_(storage)
                    self.before[storage.data_ptr()] = (whole, whole.clone())

    def put_back(self) -> None:
        """As if nothing had run."""
        for whole, before in self.before.values():
            whole.copy_(before)
        self.graph.spoil()


@contextlib.contextmanager
def _graph(graph: FakeGraph, **options: Any) -> Iterator[None]:
    assert options.get("capture_error_mode") == "thread_local", "another thread could break it"
    if FakeGraph.refuses:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    capture = _Capture(graph)
    with pytest.MonkeyPatch.context() as patch, capture:
        patch.setattr(torch.Tensor, "tolist", _refused)  # it asks no operation for its numbers
        yield
    capture.put_back()


def _refused(self: torch.Tensor) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing: tolist")


class FakeStream:
    """torch.cuda.Stream: there is one order only."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: FakeStream) -> None:
        """Nothing to wait for."""


def install(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    """Put the stand-ins into torch.cuda; FakeGraph.made lists all graphs from now on."""
    FakeGraph.made, FakeGraph.wrong, FakeGraph.refuses = [], 1.0, False
    cuda: Any = torch.cuda
    monkeypatch.setattr(cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(cuda, "graph", _graph)
    monkeypatch.setattr(cuda, "Stream", FakeStream)
    monkeypatch.setattr(cuda, "current_stream", lambda device=None: FakeStream(device))
    monkeypatch.setattr(cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "graph_pool_handle", lambda: (0, 0))
    return FakeGraph
