"""Users that can change a file, by its owner, group and mode."""

from __future__ import annotations

import stat
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.trust import weakness, weakness_of_entry


@dataclass
class Found:
    st_mode: int
    st_uid: int = 0
    st_gid: int = 0


@pytest.mark.parametrize(
    ("found", "reason", "cure"),
    [
        (Found(0o755, 1001), "it belongs to uid 1001", "chown 0"),
        (Found(0o757), "any user can write to it", "chmod o-w"),
        (Found(0o775, 0, 50), "group 50 can write to it", "chmod g-w"),
    ],
)
def test_paths_that_others_can_change_are_named(found: Found, reason: str, cure: str) -> None:
    told = weakness("/x", found, own=0)
    assert told is not None
    assert (told.path, told.reason, told.cure) == ("/x", reason, cure)


@pytest.mark.parametrize("found", [Found(0o700), Found(0o755, 7), Found(0o775, 0, 0), Found(0o444, 7, 50)])
def test_paths_that_no_other_user_can_change_pass(found: Found) -> None:
    assert weakness("/x", found, own=7) is None


@given(st.integers(0, 0o7777), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_no_permission_of_another_user_is_overlooked(mode: int, uid: int, gid: int, own: int, listed: bool) -> None:
    """As the kernel decides for any user but root and our own: by owner, then by group or list, then by the rest."""
    writable = uid not in (0, own) or bool(mode & stat.S_IWOTH) or bool(mode & stat.S_IWGRP and (gid != 0 or listed))
    assert (weakness("/x", Found(mode, uid, gid), own, listed) is not None) == writable


def test_a_group_is_named_if_only_its_members_can_change_a_path() -> None:
    told = [
        weakness("/x", found, 0, listed)
        for found, listed in ((Found(0o775, 0, 50), False), (Found(0o775, 0, 50), True))
    ]
    assert [None if each is None else each.group for each in told] == [50, None]


@pytest.mark.parametrize(
    ("holder", "entry", "safe"),
    [
        (Found(0o1777), Found(0o600), True),
        (Found(0o1777), Found(0o600, 1001), False),
        (Found(0o0777), Found(0o600), False),
        (Found(0o1777, 1001), Found(0o600), False),
        (Found(0o0755), Found(0o666, 1001), True),
        (Found(0o1777), Found(stat.S_IFLNK | 0o777, 1001), False),
    ],
)
def test_a_sticky_directory_protects_its_files(holder: Found, entry: Found, safe: bool) -> None:
    assert (weakness_of_entry("/tmp", holder, entry, own=0) is None) == safe
