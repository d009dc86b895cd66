"""The checkpoints of a run: written beside the training by one thread, the newest whole one found again, old ones removed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import FileProblem
from ...params import Tree
from ..task.config import TrainConfig
from . import checkpoint
from .rundir import CHECKPOINTS, config_hash, expect_config, fixed, writing


class Saver:
    """Writes `checkpoints/step-%08d.npz`, a write at a time; an error of one is raised by the next call. Use it in a `with`."""

    def __init__(self, directory: Path, config: TrainConfig) -> None:
        self.directory, self.config = directory / CHECKPOINTS, config
        self.writer, self.pending = ThreadPoolExecutor(1), Future[None]()
        self.pending.set_result(None)
        with writing(self.directory):
            for left in self.directory.glob("*.tmp"):  # of a process that was killed as it wrote
                left.unlink()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.shutdown()

    def save(self, step: int, tree: Tree, facts: dict[str, Any]) -> None:
        """Takes a copy of `tree` and returns; the file is made meanwhile. Waits for the one before. Raises FileProblem."""
        self.wait()
        about = {"step": step, **facts, "config": fixed(self.config), "config_sha256": config_hash(self.config)}
        self.pending = self.writer.submit(self._write, step, checkpoint.snapshot(tree), about)

    def wait(self) -> None:
        """Waits until the last one is on disk. Raises FileProblem when it could not be written."""
        with writing(self.directory):
            self.pending.result()

    def newest(self, like: Tree, say: Callable[[str], object]) -> tuple[Tree, dict[str, Any]] | None:
        """Returns (tree, header) of the newest whole checkpoint, None when there is none. header["file"] is its path.

        A damaged one is said, renamed to *.damaged so that it never counts again, and the next older one taken. Raises Problem
        for a whole one of another config, network or optimizer, or of another version.
        """
        self.wait()
        for path in reversed(files(self.directory)):
            try:
                header, leaves = checkpoint.read(path)
            except checkpoint.Damaged as error:
                say(f"{error}. Going back to the one before")
                path.rename(path.with_name(f"{path.name}.damaged"))
                continue
            for name in ("step", "config", "progress", "fingerprint", "versions", "backend"):
                if name not in header:
                    raise FileProblem(f"{path}: expected {name} in its header, found none: another version wrote it. Go on "
                                      "with that version, or give `out` another name for another run")
            if path != self.path_of(header["step"]):
                raise FileProblem(f"{path}: expected the name of its step, found step {header['step']} in it")
            expect_config(path, header["config"], self.config)
            return checkpoint.fill(like, leaves, path), {**header, "file": str(path)}
        return None

    def path_of(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}.npz"

    def _write(self, step: int, leaves: dict[str, checkpoint.Stored], facts: dict[str, Any]) -> None:
        checkpoint.write(self.path_of(step), leaves, facts)
        for old in files(self.directory)[: -self.config.keep]:
            old.unlink()


def files(directory: Path) -> list[Path]:
    """Returns the checkpoints in a directory, oldest first."""
    return sorted(directory.glob("step-????????.npz"))
