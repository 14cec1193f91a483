"""Progress: the one callback that all chapters report to while they work, and what shows it."""

from octavo.progress.event import Event, Progress, silent
from octavo.progress.showing import ProgressLike, showing

__all__ = ["Event", "Progress", "ProgressLike", "showing", "silent"]
