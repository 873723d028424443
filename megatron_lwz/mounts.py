"""Which mounts keep locks to one host, although they are shared: the system grants such a lock and nobody else sees it."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

_BY_OPTION = {
    "nfs": ("nolock", "local_lock=all", "local_lock=posix"),
    "nfs4": ("nolock", "local_lock=all", "local_lock=posix"),
    "lustre": ("localflock",),
    "cifs": ("nobrl", "nolock"),
    "smb3": ("nobrl", "nolock"),
}
"""File system → mount options under which its record locks hold on one host only."""
_ALWAYS = ("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.mount-s3", "fuse.rclone", "fuse.blobfuse2", "fuse.goofys")
"""File systems that never pass a lock on."""


def local_locks(path: Path) -> str:
    """Returns the file system and the mount option that keep locks on `path` to this host; empty if nothing does.

    A local disk is no such mount: only this host writes to it. Outside Linux nothing is known, and nothing is said.
    """
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    where, longest, found = path.resolve(), 0, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, (kind, *_, options) = before.split(" "), after.split(" ")
        place = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))  # a space is \040
        if len(place.parts) >= longest and where.is_relative_to(place):  # of equal places the last lies on top
            longest, found = len(place.parts), _local(kind, {*fields[5].split(","), *options.split(",")})
    return found


def _local(kind: str, options: set[str]) -> str:
    if kind in _ALWAYS:
        return kind
    given = [option for option in _BY_OPTION.get(kind, ()) if option in options]
    return f"{kind}, {given[0]}" if given else ""
