"""The memory of a process and all its children."""

from pathlib import Path


def resident(pid: int, *, shared_in_full: bool = False) -> int:
    """Return the resident bytes of the process and its descendants; what they share is divided, or counts in full."""
    wanted = "Rss:" if shared_in_full else "Pss:"
    total = 0
    for one in [pid, *_descendants(pid)]:
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(wanted)) * 1024
    return total


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found
