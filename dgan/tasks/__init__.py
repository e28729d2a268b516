"""Tasks: what a batch means to the players."""

from dgan.tasks.task import Setting, Task

__all__ = ["Setting", "Task"]
