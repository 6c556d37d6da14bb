"""What has to outlast the compilation of one graph: who watches, which modules its nodes are in, and the records that a later
backward will need.

Torch keeps one tracing context for a graph from Dynamo. The backward is compiled in the same context, but later, and perhaps on
another thread (on CUDA it is). The context dies when no backward can come any more. So all of this is kept by context, weakly:
who watches is decided once for a context, and its records live no longer than it does.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from torch.fx import GraphModule

from .. import _torch
from ..passes.nodes import module_path, subgraphs

if TYPE_CHECKING:
    from .graph_record import Record
    from .record import Recorder

_watchers: WeakKeyDictionary[Any, tuple[Recorder, ...]] = WeakKeyDictionary()
_places: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_waiting: WeakKeyDictionary[Any, list[Record]] = WeakKeyDictionary()  # holds the records
# (context, id of a record) whose backward is compiled: the record may go, and the context may live on for long.
_done: deque[tuple[ref[Any], int]] = deque()
_outside: deque[Record] = deque(maxlen=8)  # records made outside any context
_records: WeakValueDictionary[int, Record] = WeakValueDictionary()


def decided(watchers: tuple[Recorder, ...]) -> tuple[Recorder, ...]:
    """Who watches the compilation under way: `watchers`, or whoever was decided on when its context was first asked about."""
    context = _torch.context()
    return watchers if context is None else _watchers.setdefault(context, watchers)


def decide_again() -> None:
    """Forget who watches: the same graph from Dynamo may be compiled again, and watched by others."""
    if (context := _torch.context()) is not None:
        _watchers.pop(context, None)


def place(gm: GraphModule) -> None:
    """Note a hash of which module each node of a graph from Dynamo is in. No compile cache looks at this metadata."""
    if (context := _torch.context()) is not None:
        paths = [(node.name, module_path(node)) for each in subgraphs(gm) for node in each.graph.nodes]
        _places[context] = hashlib.sha256(repr(paths).encode()).hexdigest()


def places() -> str | None:
    """The hash from `place` for the compilation under way; None where no backend of this package was handed the graph."""
    context = _torch.context()
    return None if context is None else _places.get(context)


def keep(record: Record) -> None:
    """Hold a record until all graphs that come from it are compiled. One whose backward is compiled is let go when the next
    record begins, no sooner: a higher-order operator's graph in a backward is compiled before that, and looks like a backward."""
    with contextlib.suppress(IndexError):
        while True:
            where, number = _done.popleft()
            before, done = where(), _records.get(number)
            held = _waiting.get(before, []) if before is not None else []
            if done in held:
                held.remove(done)
    _records[record.id] = record
    context = _torch.context()
    if context is None:
        _outside.append(record)
    else:
        _waiting.setdefault(context, []).append(record)


def backward_compiled(record: Record) -> None:
    """The record need not be held any longer."""
    if (context := _torch.context()) is not None:
        _done.append((ref(context), record.id))


def find(ids: Collection[int]) -> Record | None:
    """The record that the graph being compiled comes from. `ids` are those that `tag` left on the graph's sites; without any, the
    newest record of this compilation."""
    if ids:
        return next(filter(None, map(_records.get, sorted(ids, reverse=True))), None)
    context, compilation = _torch.context(), _torch.compilation()
    records = [] if context is None else _waiting.get(context, [])
    return next((record for record in reversed(tuple(records)) if record.compilation == compilation is not None), None)
