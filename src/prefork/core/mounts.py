"""Which file systems are on other machines, by /proc/self/mountinfo: a look at a file there may never return.

Pure: the text of the file goes in. See proc(5).
"""

from __future__ import annotations

#: File systems whose answers come from another machine, or from a process (fuse.sshfs and the like begin with "fuse").
_REMOTE = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs"),
    }
)


def remote_type(mounts: str, major: int, minor: int) -> str:
    """Return the type of a file system, by the numbers of its device, if it is on another machine; otherwise ""."""
    wanted = f"{major}:{minor}"
    for line in mounts.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if separator and len(fields) > 2 and fields[2] == wanted:
            kind = right.split(" ")[0]
            return kind if kind in _REMOTE or kind.startswith("fuse") else ""
    return ""
