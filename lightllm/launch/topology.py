"""Which workers a server has and who talks to whom. Plain data: nothing is started or allocated here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightllm.workers.process import SUPERVISOR

ENGINE_ENTRY = "lightllm.workers.entries:engine"
DETOKENIZER_ENTRY = "lightllm.workers.entries:detokenizer"
FRONTEND_ENTRY = "lightllm.server.entry:frontend"
"""By name only: the server stands above this floor."""

Role = Literal["frontend", "engine", "rank", "detokenizer"]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker: its name among all, its role, the function it runs ("package.module:function")."""

    name: str
    role: Role
    entry: str
    index: int = 0
    """Number among the workers of its role."""
    listens: bool = False
    """It inherits the listening socket."""
    sees_all_boards: bool = False
    """It reads the metrics of every process."""


@dataclass(frozen=True, slots=True)
class Link:
    """A ring from one worker to another."""

    writer: str
    reader: str
    capacity_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True)
class Topology:
    """Workers and links. Links with the supervisor need not be listed: every worker has one each way."""

    workers: tuple[WorkerSpec, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.workers]
        assert len(set(names)) == len(names), "two workers share a name"
        ends = {end for link in self.links for end in (link.writer, link.reader)}
        assert ends <= set(names), f"links name workers that are none: {ends - set(names)}"

    def of_role(self, role: Role) -> tuple[WorkerSpec, ...]:
        return tuple(spec for spec in self.workers if spec.role == role)

    @property
    def all_links(self) -> tuple[Link, ...]:
        """The links of the workers, then those with the supervisor."""
        down = (Link(SUPERVISOR, spec.name, 1 << 20) for spec in self.workers)
        up = (Link(spec.name, SUPERVISOR, 1 << 20) for spec in self.workers)
        return (*self.links, *down, *up)


def serving_topology(
    frontends: int = 1,
    *,
    frontend_entry: str = FRONTEND_ENTRY,
    engine_entry: str = ENGINE_ENTRY,
    detokenizer_entry: str = DETOKENIZER_ENTRY,
) -> Topology:
    """One engine, one detokenizer, and `frontends` processes that share the listening socket."""
    fronts = tuple(
        WorkerSpec(f"frontend-{index}", "frontend", frontend_entry, index, listens=True, sees_all_boards=True)
        for index in range(frontends)
    )
    links = [Link("engine", "detokenizer"), Link("detokenizer", "engine", 1 << 20)]
    for spec in fronts:
        links += [Link(spec.name, "engine"), Link("detokenizer", spec.name)]
    engine = WorkerSpec("engine", "engine", engine_entry)
    detokenizer = WorkerSpec("detokenizer", "detokenizer", detokenizer_entry)
    return Topology((engine, detokenizer, *fronts), tuple(links))
