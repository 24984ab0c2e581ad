"""CpuGraph: stands in for a CUDA graph on the CPU, so that recorded actions can be tested there.

What a thread gives to torch between begin() and end() is written down, operator by operator, with
the addresses that it reads and writes; launch() does it again, at these addresses, whatever lies
there by then. As on a device:

- nothing is computed while it is recorded: what existed before is left as it was, and results are
  numbers that nobody may use;
- a call that waits for the device, such as `.item()`, is refused;
- memory comes from a pool that graphs share: what dies is used again by whatever comes next, and
  graphs that are launched in another order than they were recorded in find other numbers.
"""

import ctypes
import weakref

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# Arguments that batch norm writes to without saying so.
_UNMARKED = ("running_mean", "running_var")
_SYNCS = ("_local_scalar_dense", "nonzero", "equal")


class Pool:
    """Memory in blocks. A block that is free is taken again, the one that was freed last first."""

    def __init__(self):
        self._free = {}  # by size
        self._before = {}  # of blocks that a recording took: what launches may still read there
        self.num_reused = 0
        self.num_blocks = 0

    def take(self, num_bytes):
        """A ctypes array; when it dies, its memory is free."""
        free = self._free.setdefault(num_bytes, [])
        if free:
            memory = free.pop()
            self.num_reused += 1
            numbers = memory.raw
        else:
            memory = ctypes.create_string_buffer(num_bytes)
            self.num_blocks += 1
            numbers = b"\xff" * num_bytes  # no numbers at all
        self._before.setdefault(ctypes.addressof(memory), (memory, numbers))
        block = (ctypes.c_char * num_bytes).from_address(ctypes.addressof(memory))
        weakref.finalize(block, free.append, memory)
        return block

    def undo(self):
        """What a recording wrote is as if it had not been."""
        for memory, numbers in self._before.values():
            memory.raw = numbers
        self._before = {}

    def like(self, tensor):
        """A tensor of the same form and with the same numbers, in this pool."""
        span = tensor.untyped_storage().nbytes() if tensor.numel() else 0
        if span == 0:
            return tensor
        flat = torch.frombuffer(self.take(span), dtype=torch.uint8)
        mine = torch.empty(0, dtype=tensor.dtype).set_(
            flat.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        return mine.copy_(tensor)


def _alias(tensor):
    """The same memory, not owned."""
    span = tensor.untyped_storage().nbytes()
    if span == 0:
        return tensor.detach()
    memory = (ctypes.c_char * span).from_address(tensor.untyped_storage().data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    return torch.empty(0, dtype=tensor.dtype).set_(
        flat.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _aliases(tree):
    return pytree.tree_map_only(Tensor, _alias, tree)


def _address(tensor):
    return tensor.untyped_storage().data_ptr()


class _Log(TorchDispatchMode):
    """Writes down what the thread does."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        if name in _SYNCS:
            raise RuntimeError(f"operation not permitted when stream is capturing ({name})")
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = self._written(function, args, kwargs)
        before = [(tensor, tensor.clone()) for tensor in written]
        noted = (_aliases(args), _aliases(kwargs))
        result = function(*args, **kwargs)
        for tensor, numbers in before:
            if tensor.size() == numbers.size():
                tensor.copy_(numbers)
        if name.startswith(("empty", "new_empty")):
            return self.pool.like(result.zero_())
        known = {_address(tensor) for tensor in given if tensor.numel()}
        leaves, structure = pytree.tree_flatten(result)
        is_new = [
            isinstance(leaf, Tensor) and leaf.numel() > 0 and _address(leaf) not in known
            for leaf in leaves
        ]
        if not any(is_new) and not written:
            return result  # a view, or a number
        leaves = [
            self.pool.like(leaf) if new else leaf for leaf, new in zip(leaves, is_new, strict=True)
        ]
        made = [_alias(leaf) if new else None for leaf, new in zip(leaves, is_new, strict=True)]
        self.calls.append((function, *noted, made))
        return pytree.tree_unflatten(leaves, structure)

    @staticmethod
    def _written(function, args, kwargs):
        written = []
        for index, argument in enumerate(function._schema.arguments):
            is_marked = argument.alias_info is not None and argument.alias_info.is_write
            if not is_marked and argument.name not in _UNMARKED:
                continue
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written += [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
        return written


class CpuGraph:
    """See above. Its pool is shared by all that one maker makes."""

    def __init__(self, pool):
        self._pool = pool
        self._log = None
        self._calls = None

    def begin(self):
        self._random = torch.get_rng_state()
        self._log = _Log(self._pool)
        self._log.__enter__()

    def _stop(self):
        log, self._log = self._log, None
        log.__exit__(None, None, None)
        torch.set_rng_state(self._random)
        self._pool.undo()
        return log.calls

    def end(self):
        self._calls = self._stop()

    def abandon(self):
        self._stop()

    def launch(self):
        with torch.no_grad():
            for function, args, kwargs, made in self._calls:
                results = pytree.tree_leaves(function(*args, **kwargs))
                for mine, result in zip(made, results, strict=True):
                    if mine is not None:
                        mine.copy_(result)


def graphs_on_cpu(monkeypatch=None):
    """Has pipert take them for graphs of the CPU. Returns the pool of those made next."""
    from pipert.captured.graphs import make_graph

    pool = Pool()

    def make():
        return CpuGraph(pool)

    if monkeypatch is None:
        make_graph["cpu"] = make
    else:
        monkeypatch.setitem(make_graph, "cpu", make)
    return pool
