"""Runs kernels written in Gluon for Hopper's warp groups on a CPU, as a machine no kinder than the real one may be.

Triton's interpreter does not know them. Here a kernel's own Python functions run, with tensors of torch in place of
Triton's. What runs at the same time on the GPU takes turns, drawn by a seed: the warp groups, which stop at barriers
and may be passed at any operation, and the copies, which complete in any order. So what the kernel only gets right if
it waits enough, it gets wrong here if it does not:

    copies into shared memory    fill it with NaN when they are asked for, with what they bring some time later
    products of a warp group     read their operands when they are waited for, and no sooner
    copies out of shared memory  read it when they are waited for, or later
    barriers                     count arrivals and bytes as the hardware does; too many of either is an error
    pointers                     are checked: no kernel may read or write beyond its tensors

Waiting for what never comes is an error that says who waits.
"""

from __future__ import annotations

import random
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.experimental.gluon import language as gluon_language

Action = Callable[[], None]

SPEEDS = (1.0, 1.0, 0.02)
"""How often something gets its turn, beside others that could have it."""


class Machine:
    """One multiprocessor: the warp groups of a program and the copies under way."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._groups: list[_Group] = []
        self._copies: list[deque[Action]] = []
        self._here = threading.Semaphore(0)
        self.program, self.num_programs = 0, 1

    def run(self, bodies: list[Action]) -> None:
        """Run warp groups until all have ended and every copy is complete. Each is fast or slow."""
        self._groups = [_Group(body, self._here, self._random.choice(SPEEDS)) for body in bodies]
        speed_of_copies = self._random.choice(SPEEDS)
        while True:
            ready = [group for group in self._groups if group.may_run()]
            self._copies = [queue for queue in self._copies if queue]
            if not ready and not self._copies:
                break
            speeds = [group.speed for group in ready] + [speed_of_copies] * len(self._copies)
            (chosen,) = self._random.choices([*ready, *self._copies], speeds)
            if isinstance(chosen, _Group):
                chosen.turn()
            else:
                chosen.popleft()()
        stuck = [(index, group.waits_for) for index, group in enumerate(self._groups) if not group.ended]
        for group in self._groups:
            if group.error is not None:
                raise group.error
        assert not stuck, f"warp groups wait for ever: {stuck}"

    def copy(self, action: Action, after: deque[Action] | None = None) -> None:
        """A copy that completes at any time, but for those it comes after."""
        queue = deque() if after is None else after
        if not queue:
            self._copies.append(queue)
        queue.append(action)
        self.pause()

    def pause(self) -> None:
        """Others may go on before this warp group does."""
        self.wait(lambda: True, "")

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Let this warp group go on when a condition holds. What runs before the warp groups does not wait."""
        group = _this_group()
        if group is not None:
            group.wait(until, what)


class _Group:
    """A warp group: a thread of its own, which runs only in its turns."""

    def __init__(self, body: Action, here: threading.Semaphore, speed: float) -> None:
        self._go = threading.Semaphore(0)
        self._here = here
        self.speed = speed
        self._until: Callable[[], bool] = lambda: True
        self.waits_for = ""
        self.ended = False
        self.error: BaseException | None = None
        self.products: deque[tuple[_Sum, Action]] = deque()
        self.stores: deque[Action] = deque()
        self.gathers: deque[Action] = deque()
        threading.Thread(target=self._run, args=(body,), daemon=True).start()

    def may_run(self) -> bool:
        return not self.ended and self._until()

    def turn(self) -> None:
        self._go.release()
        self._here.acquire()

    def wait(self, until: Callable[[], bool], what: str) -> None:
        self._until, self.waits_for = until, what
        self._here.release()
        self._go.acquire()

    def _run(self, body: Action) -> None:
        self._go.acquire()
        _threads.group = self
        try:
            body()
            assert not self.products, "products that nobody waited for"
            while self.stores:
                self.stores.popleft()()
        except BaseException as error:
            self.error = error
        self.ended = True
        self._here.release()


_threads = threading.local()


def _this_group() -> Any:
    return getattr(_threads, "group", None)


class Shared:
    """Memory of a multiprocessor."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, index: Any) -> Shared:
        return Shared(self.data[int(index)])

    def slice(self, start: int, length: int, dim: int) -> Shared:
        return Shared(self.data.narrow(dim, int(start), length))

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.data.permute(order))

    def store(self, value: Tensor) -> None:
        assert value.dtype == self.dtype and value.shape == self.data.shape
        self.data.copy_(value)

    def load(self, layout: object = None) -> Tensor:
        return self.data.clone()


class Barriers:
    """Barriers in shared memory: `index` gives one."""

    def __init__(self, count: int) -> None:
        self._all = [Barrier() for _ in range(count)]

    def index(self, index: Any) -> Barrier:
        return self._all[int(index)]


class Barrier:
    """Completes a phase when all have arrived and all expected bytes have come."""

    def __init__(self) -> None:
        self.count = self._missing = self._bytes = self._phase = 0

    def init(self, count: int) -> None:
        self.count = self._missing = count

    def expect(self, num_bytes: int) -> None:
        self._bytes += num_bytes
        self.arrive(1)

    def arrive(self, count: int) -> None:
        self._missing -= count
        assert self._missing >= 0, "more arrivals than a phase of this barrier has"
        self._check()

    def receive(self, num_bytes: int) -> None:
        self._bytes -= num_bytes
        self._check()

    def passed(self, parity: int) -> bool:
        return self._phase % 2 != parity

    def _check(self) -> None:
        if self._missing == 0 and self._bytes == 0:
            self._phase += 1
            self._missing = self.count


class Pointer:
    """Places in a tensor, as offsets in elements."""

    def __init__(self, tensor: Tensor, offset: Any = 0) -> None:
        assert tensor.is_contiguous()
        self._flat = tensor.view(-1)
        self._offset = offset
        self.dtype = SimpleNamespace(element_ty=tensor.dtype)

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self._flat, self._offset + more)

    def load(self, mask: Any = True, other: Any = 0) -> Tensor:
        offset, mask = torch.broadcast_tensors(torch.as_tensor(self._offset), torch.as_tensor(mask))
        self._check(offset[mask])
        found = torch.full(offset.shape, other, dtype=self._flat.dtype)
        found[mask] = self._flat[offset[mask]]
        return found

    def store(self, value: Tensor, mask: Any = True) -> None:
        offset, mask, value = torch.broadcast_tensors(self._offset, torch.as_tensor(mask), value)
        self._check(offset[mask])
        self._flat[offset[mask]] = value[mask].to(self._flat.dtype)

    def _check(self, offset: Tensor) -> None:
        assert ((offset >= 0) & (offset < len(self._flat))).all(), "a place beyond the tensor"


class Descriptor:
    """A tensor that the copy engine reads and writes in blocks; beyond its edges it reads zeros and writes nothing."""

    def __init__(self, host: Any) -> None:
        self.base, self.block_shape, self.layout, self.dtype = host.base, host.block_shape, host.layout, host.base.dtype

    def read(self, place: list[Any]) -> Tensor:
        block = torch.zeros(self.block_shape, dtype=self.dtype)
        inside = self._inside(place)
        block[: inside.shape[0], : inside.shape[1]] = inside
        return block

    def write(self, place: list[Any], block: Tensor) -> None:
        inside = self._inside(place)
        inside.copy_(block[: inside.shape[0], : inside.shape[1]])

    def _inside(self, place: list[Any]) -> Tensor:
        row, column = (int(p) for p in place)
        return self.base[row : row + self.block_shape[0], column : column + self.block_shape[1]]


class _Sum:
    """The sums of products, some of which may not be computed yet."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def _multiply(a: Any, b: Shared, total: Any, *, use_acc: bool = True, is_async: bool = False) -> _Sum:
    result = total if isinstance(total, _Sum) else _Sum(total)
    left = a.clone() if isinstance(a, Tensor) else a

    def compute() -> None:
        product = (left if isinstance(left, Tensor) else left.data).float() @ b.data.float()
        result.value = result.value + product if use_acc else product

    assert is_async
    _this_group().products.append((result, compute))
    return result


class _Language(SimpleNamespace):
    """Triton's and Gluon's functions on tensors of torch. Layouts mean nothing here."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(
            float32=torch.float32,
            int32=torch.int32,
            int64=torch.int64,
            constexpr=object,
            static_range=range,
            program_id=lambda axis: machine.program,
            num_programs=lambda axis: machine.num_programs,
            load=lambda pointer, mask=True, other=0: pointer.load(mask, other),
            store=lambda pointer, value, mask=True: pointer.store(value, mask),
            arange=lambda begin, end, layout=None: torch.arange(begin, end),
            zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, layout=None: torch.full(
                shape, getattr(value, "value", value), dtype=dtype
            ),
            minimum=lambda a, b: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
            maximum=lambda a, b: torch.maximum(torch.as_tensor(a), torch.as_tensor(b)),
            where=torch.where,
            max=lambda value, axis: value.amax(axis),
            sum=lambda value, axis: value.sum(axis),
            exp=torch.exp,
            exp2=torch.exp2,
            log2=torch.log2,
            erf=torch.erf,
            cdiv=lambda a, b: -(-a // b),
            split=lambda value: (value[..., 0], value[..., 1]),
            convert_layout=lambda value, layout: value,
            thread_barrier=machine.pause,
            NVMMASharedLayout=gluon_language.NVMMASharedLayout,
            inline_asm_elementwise=_inline,
            allocate_shared_memory=_allocate,
            warp_specialize=lambda groups, *_: machine.run([_bind(*group) for group in groups]),
            **dict.fromkeys(LAYOUTS, lambda *_, **__: None),
        )


LAYOUTS = ("BlockedLayout", "SliceLayout", "DotOperandLayout", "NVMMADistributedLayout")


def _bind(function: Callable[..., None], arguments: tuple[Any, ...]) -> Action:
    return lambda: function(*arguments)


def _allocate(dtype: torch.dtype, shape: list[int], layout: object) -> Any:
    if dtype == torch.int64:
        return Barriers(shape[0])
    return Shared(torch.full(shape, float("nan"), dtype=dtype))


def _inline(code: str, constraints: str, arguments: list[Tensor], dtype: torch.dtype, is_pure: bool, pack: int) -> Any:
    """Some instructions of PTX on one tensor of float32, `pack` neighbours of a row at a time."""
    (value,) = arguments
    assert constraints == ",".join(["=f"] * pack + ["f"] * pack) and dtype == value.dtype == torch.float32
    parts = {f"${pack + i}": value[..., i::pack] for i in range(pack)}
    operations = {
        "mul.f32": torch.mul,
        "add.f32": torch.add,
        "min.f32": torch.fmin,
        "ex2.approx.ftz.f32": torch.exp2,
        "rcp.approx.ftz.f32": torch.reciprocal,
        "mov.f32": torch.clone,
    }

    def operand(text: str) -> Tensor:
        if text.startswith("0f"):
            return torch.tensor(int(text[2:], 16), dtype=torch.int64).to(torch.int32).view(torch.float32)
        return parts[text]

    for name, operands in re.findall(r"(\S+) ([^;]+);", code):
        if name != ".reg":
            to, *read = operands.split(", ")
            parts[to] = operations[name](*(operand(text) for text in read))
    return torch.stack([parts[f"${i}"] for i in range(pack)], dim=-1).flatten(-2)


def _barrier_functions(machine: Machine) -> SimpleNamespace:
    def wait(barrier: Barrier, phase: Any, pred: Any = True) -> None:
        if pred:
            machine.wait(lambda: barrier.passed(int(phase)), f"phase {int(phase)} of a barrier of {barrier.count}")

    def arrive(barrier: Barrier, *, count: int = 1, pred: Any = True) -> None:
        if pred:
            barrier.arrive(count)
            machine.pause()

    def expect(barrier: Barrier, num_bytes: int, pred: Any = True) -> None:
        if pred:
            barrier.expect(num_bytes)

    return SimpleNamespace(
        MBarrierLayout=lambda: None,
        init=lambda barrier, count: barrier.init(count),
        wait=wait,
        arrive=arrive,
        expect=expect,
    )


def _tensor_copies(machine: Machine) -> SimpleNamespace:
    def read(source: Descriptor, place: list[Any], barrier: Barrier, to: Shared, pred: Any = True) -> None:
        if not pred:
            return
        assert to.shape == tuple(source.block_shape)
        where = [int(p) for p in place]
        to.data.fill_(float("nan"))

        def complete() -> None:
            to.data.copy_(source.read(where))
            barrier.receive(to.data.numel() * to.data.element_size())

        machine.copy(complete)

    def write(target: Descriptor, place: list[Any], source: Shared) -> None:
        where = [int(p) for p in place]
        _this_group().stores.append(lambda: target.write(where, source.data))
        machine.pause()

    def store_wait(pending: int) -> None:
        stores = _this_group().stores
        while len(stores) > pending:
            stores.popleft()()

    return SimpleNamespace(async_copy_global_to_shared=read, async_copy_shared_to_global=write, store_wait=store_wait)


def _row_copies(machine: Machine) -> SimpleNamespace:
    def read(to: Shared, source: Pointer) -> None:
        found = source.load()
        to.data.fill_(float("nan"))
        machine.copy(lambda: to.data.copy_(found), after=_this_group().gathers)

    def arrive(barrier: Barrier, increment_count: bool) -> None:
        """All threads of the warp group arrive when their copies before are complete."""
        assert not increment_count
        machine.copy(lambda: barrier.arrive(128), after=_this_group().gathers)

    return SimpleNamespace(async_copy_global_to_shared=read, mbarrier_arrive=arrive)


def _wait_for_products(outstanding: int, deps: list[Any]) -> Any:
    products = _this_group().products
    while len(products) > outstanding:
        products.popleft()[1]()
    open_sums = {id(total) for total, _ in products}
    results = [total if id(total) in open_sums else total.value for total in deps]
    return results[0] if len(results) == 1 else tuple(results)


class _Launchable:
    """A kernel: `kernel[grid](...)` runs its programs one after another."""

    def __init__(self, function: Callable[..., None], machine: Machine) -> None:
        self._function, self._machine = function, machine

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, launch_pdl: bool = False, **constants: Any) -> None:
            given = [_as_argument(argument) for argument in arguments]
            self._machine.num_programs = grid[0]
            for self._machine.program in range(grid[0]):
                self._function(*given, **constants)

        return launch


def _as_argument(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Pointer(argument)
    return Descriptor(argument) if hasattr(argument, "block_shape") else argument


@contextmanager
def machine_for(module: ModuleType, kernel: str, seed: int, *helpers: ModuleType) -> Iterator[Machine]:
    """Within, `module.kernel` runs on a machine; `helpers` have functions of Triton that it calls."""
    machine = Machine(seed)
    language = _Language(machine)
    with pytest.MonkeyPatch.context() as patch:
        for part in (module, *helpers):
            for name, value in list(vars(part).items()):
                function = getattr(value, "fn", None)
                if callable(function):
                    patch.setattr(part, name, function)
            patch.setattr(part, "gl" if part is module else "tl", language)
        patch.setattr(module, "tlx", SimpleNamespace(gdc_launch_dependents=lambda: None, gdc_wait=lambda: None))
        patch.setattr(module, "mbarrier", _barrier_functions(machine))
        patch.setattr(module, "fence_async_shared", lambda: None)
        patch.setattr(module, "warpgroup_mma", _multiply)
        patch.setattr(module, "warpgroup_mma_wait", _wait_for_products)
        patch.setattr(module, "tma", _tensor_copies(machine), raising=False)
        patch.setattr(module, "async_copy", _row_copies(machine), raising=False)
        patch.setattr(module, kernel, _Launchable(getattr(module, kernel), machine))
        yield machine
