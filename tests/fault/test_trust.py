"""A worker that was given a user tries to be root again, by every path that the supervisor touches.

The service's directory belongs to that user (`nobody`, 65534), as a working directory often does.
"""

from __future__ import annotations

import grp
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.opened import open_folder, run_opened
from helpers.servers import command
from helpers.support import need, need_root, wait_until

from prefork.errors import ExitCode

NOBODY = 65534
SERVICE = """
import os
async def handle(stream):
    async for line in stream:
        stream.write(b"%d %d\\n" % (os.getuid(), os.getgid()))
"""
#: Every script begins with it: a server in a directory of `nobody`, the users of its workers, and code run as `nobody`.
PRELUDE = """
import ctypes, os, re, signal, socket, subprocess, sys, time
from pathlib import Path
from prefork.testing import run_server
from helpers.support import wait_until

def who(server):
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(b"x\\n")
        return sock.makefile().readline().strip()

def reload(server, outcome="reloaded: "):
    seen = server.stderr().count(outcome)
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count(outcome) > seen, what=server.stderr())

def nobody(code, *arguments, wait=True):
    script = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(script, user=65534, group=65534, extra_groups=[])
    if wait:
        assert process.wait(30) == 0
    return process

OPTIONS = ("--user", "nobody", "-w", "1")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    need_root()
    with open_folder() as above:
        place = above / "app"
        place.mkdir(mode=0o755)
        (place / "service.py").write_text(SERVICE)
        os.chown(place, NOBODY, NOBODY)
        yield place


def run(code: str, folder: Path) -> str:
    return run_opened(PRELUDE + code, folder)


# --- the configuration ------------------------------------------------------------------------------------------------


def test_a_default_file_that_appears_later_is_not_adopted(folder: Path) -> None:
    code = """
with run_server("service:handle", *OPTIONS) as server:
    before = who(server)
    nobody('open("prefork.toml", "w").write("group = \\\\"shadow\\\\"\\\\nuser = \\\\"root\\\\"\\\\n")')
    reload(server)
    print(before == who(server), before)
"""
    assert run(code, folder) == "True 65534 65534\n"


@pytest.mark.slow
def test_a_default_file_that_appears_later_is_not_adopted_by_an_upgrade(folder: Path) -> None:
    code = """
with run_server("service:handle", *OPTIONS) as server:
    nobody('open("prefork.toml", "w").write("group = \\\\"shadow\\\\"\\\\nuser = \\\\"root\\\\"\\\\n")')
    server.signal(signal.SIGUSR2)
    wait_until(lambda: "upgraded: " in server.stderr(), what=server.stderr())
    print(who(server))
"""
    assert run(code, folder) == "65534 65534\n"


def test_a_default_file_that_was_there_is_mandatory(folder: Path) -> None:
    path = folder / "prefork.toml"
    path.write_text('bind = ["127.0.0.1:0"]\n')
    with _serving(folder) as (process, log):
        path.unlink()
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloading (SIGHUP): --config prefork.toml: no such file any more" in log.read_text())
        assert process.poll() is None


@contextmanager
def _serving(folder: Path, *options: str, stderr: Path | None = None) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a server whose workers are root, so that no path is checked."""
    log = folder.parent / "log" if stderr is None else stderr
    bind = () if "--bind" in options or (folder / "prefork.toml").exists() else ("--bind", "127.0.0.1:0")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "prefork",
                "serve",
                "service:handle",
                "-w",
                "1",
                "--control",
                "off",
                *bind,
                *options,
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "ready: " in log.read_text(), what=log.read_text())
        yield process, log
    finally:
        process.terminate()
        process.wait(20)


CHECK = ["check", "service:handle", "--user", "nobody"]


def let_write(path: Path, uid: int) -> None:
    """Do what `setfacl -m u:UID:rw` does (linux/posix_acl_xattr.h)."""
    entries = [(0x01, 6, -1), (0x02, 6, uid), (0x04, 4, -1), (0x10, 6, -1), (0x20, 4, -1)]
    try:
        os.setxattr(
            path,
            "system.posix_acl_access",
            struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries),
        )
    except OSError as exc:
        pytest.skip(f"no access lists in this file system: {exc}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["owner", "mode", "group", "list", "folder", "link"])
def test_a_file_that_others_can_change_is_refused_with_the_path_and_the_cure(folder: Path, how: str) -> None:
    safe = folder.parent / "etc"
    safe.mkdir()
    config = (folder if how in ("folder", "link") else safe) / "my.toml"
    weak = config
    if how == "link":
        (safe / "my.toml").write_text("workers = 1\n")
        config.symlink_to(safe / "my.toml")
        weak = folder
    else:
        config.write_text("workers = 1\n")
    if how == "folder":
        weak = folder
    elif how == "owner":
        os.chown(config, NOBODY, 0)
    elif how == "mode":
        config.chmod(0o646)
    elif how == "group":
        os.chown(config, 0, NOBODY)
        config.chmod(0o664)
    elif how == "list":
        # In the mode only the mask shows, and root's group is trusted.
        config.chmod(0o644)
        let_write(config, NOBODY)
    done = subprocess.run(
        [sys.executable, "-m", "prefork", *CHECK, "--config", str(config)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"prefork: --config: {weak}: ")
    cure = {"mode": "chmod o-w", "group": "chmod g-w", "list": "setfacl -b"}.get(how, "chown 0")
    assert f"({cure} {weak}, or allow it by --insecure-paths)" in line


def test_each_untrusted_option_has_a_line(folder: Path, certs: dict[str, str]) -> None:
    for name in ("cert", "key"):
        (folder.parent / name).write_bytes(Path(certs[name]).read_bytes())
        os.chown(folder.parent / name, NOBODY, 0)
    library = folder.parent / "library"
    library.mkdir()
    os.chown(library, NOBODY, 0)
    files = ["--tls-cert", "../cert", "--tls-key", "../key"]
    options = [*files, "--user", "nobody"]
    done = _serve(folder, *options, env={**os.environ, "PYTHONPATH": str(library)})
    assert done.returncode == 2
    found = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert found == ["--tls-cert", "--tls-key", "the code of prefork"]
    assert str(library) in done.stderr


def _serve(folder: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    arguments = ["serve", "service:handle", "--bind", "127.0.0.1:0", "--control", "off", *options]
    return subprocess.run(
        [sys.executable, "-m", "prefork", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, env=env
    )


def test_a_reload_of_an_untrusted_file_changes_nothing(folder: Path) -> None:
    """A worker leaves a prefork.toml for the next start, which would overwrite and remove another program's pidfile."""
    other = folder.parent / "other.pid"
    other.write_text("4242\n")
    (folder / "prefork.toml").write_text(f'pidfile = "{other}"\n')
    done = _serve(folder, "--user", "nobody")
    assert done.returncode == 2
    assert "--config: " in done.stderr
    assert other.read_text() == "4242\n"


@pytest.mark.parametrize("members", [False, True])
def test_a_group_is_trusted_while_there_is_no_user_in_it(folder: Path, members: bool) -> None:
    """As on Debian, where /usr/local/lib/python3 has mode 2775 and belongs to group staff."""
    safe = folder.parent / "etc"
    safe.mkdir()
    (safe / "my.toml").write_text("workers = 1\n")
    os.chown(safe, 0, grp.getgrnam("staff").gr_gid)
    safe.chmod(0o2775)
    group = ["--group", "staff"] if members else []
    done = command_line(folder, *CHECK, "--config", str(safe / "my.toml"), *group)
    assert done.returncode == (2 if members else 0), done.stderr
    if members:
        assert "can write to it" in done.stderr


def test_workers_in_the_group_of_root_are_refused(folder: Path) -> None:
    done = command_line(folder, *CHECK, "--group", "root")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "group 0" in line


def command_line(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "prefork", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **variables},
    )


def test_a_file_cannot_vouch_for_itself(folder: Path) -> None:
    (folder / "prefork.toml").write_text("insecure_paths = true\n")
    done = _serve(folder, "--user", "nobody")
    assert done.returncode == 2
    assert "a file cannot vouch for itself" in done.stderr


def test_insecure_paths_accepts_untrusted_files(folder: Path) -> None:
    (folder / "prefork.toml").write_text("workers = 1\n")
    code = """
with run_server("service:handle", *OPTIONS, "--insecure-paths") as server:
    print(who(server))
"""
    assert run(code, folder) == "65534 65534\n"


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_supervisor_does_not_import_from_the_current_directory(folder: Path) -> None:
    """The command imports difflib, and so does the successor of an upgrade."""
    code = """
with run_server("service:handle", *OPTIONS) as server:
    said = 'import os; open("/dev/shm/pwned", "a").write(str(os.getuid()))'
    nobody(f'open("difflib.py", "w").write({said!r})')
    Path("/dev/shm/pwned").unlink(missing_ok=True)
    server.signal(signal.SIGUSR2)
    wait_until(lambda: "upgrad" in server.stderr() and re.search("upgraded|upgrade failed", server.stderr()))
    print("upgraded: " in server.stderr(), Path("/dev/shm/pwned").exists())
    print(who(server))
"""
    assert run(code, folder) == "True False\n65534 65534\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHONPYCACHEPREFIX", "{folder}/cache"),
        ("LD_LIBRARY_PATH", "/usr/lib:"),
        ("LD_PRELOAD", "{folder}/hook.so"),
        ("OPENSSL_CONF", "{folder}/openssl.cnf"),
    ],
)
def test_an_environment_variable_that_names_code_is_checked(folder: Path, name: str, value: str) -> None:
    """An empty entry of LD_LIBRARY_PATH is the current directory."""
    done = command_line(folder, *CHECK, **{name: value.format(folder=folder)})
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"prefork: {name}: {folder}: it belongs to uid 65534")


@pytest.mark.slow
def test_an_environment_variable_that_names_no_file_is_accepted(folder: Path) -> None:
    done = command_line(folder, *CHECK, PYTHONPYCACHEPREFIX="/dev/null", OPENSSL_CONF="/dev/null", LD_LIBRARY_PATH="")
    assert done.returncode == 0, done.stderr


def test_files_that_python_would_load_later_are_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import site

    from prefork.assembly import code_paths, trust

    def weak() -> set[str]:
        return {each.path for _, each in trust._code_weaknesses()}

    before = weak()
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(folder / ".local" / "site-packages"))
    assert weak() - before == {str(folder)}
    monkeypatch.undo()
    library = folder.parent / "library"
    # Data of the workers' user beside a program is no code; a directory named like an imported package is.
    for name in ("data", "json", "sub/__pycache__"):
        (library / name).mkdir(parents=True)
        os.chown(library / name, NOBODY, 0)
    (library / "sub" / "__pycache__" / "x.pyc").touch()
    monkeypatch.syspath_prepend(library)
    module = types.ModuleType("sub.x")
    module.__file__ = str(library / "sub" / "x.py")
    monkeypatch.setitem(sys.modules, "sub.x", module)
    assert weak() - before == {f"{library}/json", f"{library}/sub/__pycache__"}
    assert all(path.startswith("/") for _, path in (*code_paths.load_paths(), *code_paths.loadable_files()))


def test_a_program_that_is_named_by_a_link_of_another_user_is_not_upgraded_to(folder: Path) -> None:
    """After `cd current && bin/prefork ...` the link `current` may lead to another directory at an upgrade."""
    release = folder.parent / "release"
    (release / "bin").mkdir(parents=True)
    (release / "service.py").write_text(SERVICE)
    (release / "bin" / "prefork").write_text("from prefork.cli.main import main\nraise SystemExit(main())\n")
    (folder / "current").symlink_to(release)
    options = ["serve", "service:handle", "--control", "off", "--bind", "127.0.0.1:0", "--user", "nobody"]
    done = subprocess.run(
        [sys.executable, "bin/prefork", *options],
        cwd=folder / "current",
        env={**os.environ, "PWD": str(folder / "current")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert f"prefork: the code of prefork: {folder}: it belongs to uid 65534" in done.stderr


@pytest.mark.slow
def test_check_imports_the_service_as_the_user_that_runs_it(folder: Path) -> None:
    (folder / "service.py").write_text("import os\nprint('as', os.getuid())\n" + SERVICE)
    code = """
done = subprocess.run([sys.executable, "-m", "prefork", "check", "service:handle", "--user", "nobody"],
                      capture_output=True, text=True)
print(done.returncode, done.stdout.strip(), done.stderr)
open("service.py", "w").write("import os; os.nice(0)\\nraise RuntimeError(os.getuid())\\n")
done = subprocess.run([sys.executable, "-m", "prefork", "check", "service:handle", "--user", "nobody"],
                      capture_output=True, text=True)
print(done.returncode, done.stderr)
"""
    lines = run(code, folder).splitlines()
    assert lines[0].startswith("0 as 65534")
    assert "ok: service:handle is a " in "\n".join(lines[:2])
    assert "3 prefork: service service:handle: RuntimeError: 65534" in "\n".join(lines)


def test_code_that_others_can_change_by_now_is_not_upgraded_to(folder: Path) -> None:
    library = folder.parent / "library"
    library.mkdir()
    code = f"""
with run_server("service:handle", *OPTIONS, env={{"PYTHONPATH": {str(library)!r}}}) as server:
    os.chmod({str(library)!r}, 0o757)
    server.signal(signal.SIGUSR2)
    wait_until(lambda: "upgrade failed" in server.stderr(), what=server.stderr())
    (line,) = [line for line in server.stderr().splitlines() if "upgrade failed" in line]
    print({str(library)!r} + ": any user can write to it" in line, who(server))
"""
    assert run(code, folder) == "True 65534 65534\n"


def test_a_key_that_others_can_change_by_now_is_not_reloaded(folder: Path, certs: dict[str, str]) -> None:
    key = folder.parent / "key"
    key.write_bytes(Path(certs["key"]).read_bytes())
    cert = folder.parent / "cert"
    cert.write_bytes(Path(certs["cert"]).read_bytes())
    code = f"""
with run_server("service:handle", *OPTIONS, "--tls-cert", {str(cert)!r}, "--tls-key", {str(key)!r}) as server:
    os.chown({str(key)!r}, 65534, 0)
    reload(server, "not reloading (SIGHUP): --tls-key: ")
    print("chown 0 " + {str(key)!r} in server.stderr())
"""
    assert run(code, folder) == "True\n"


# --- unix sockets -----------------------------------------------------------------------------------------------------

EXCHANGE = """
import ctypes, os, sys
libc, folder = ctypes.CDLL(None), os.open(sys.argv[1], os.O_RDONLY)
os.symlink(sys.argv[2], "trap", dir_fd=folder)
while True:
    libc.syscall(316 if os.uname().machine == "x86_64" else 276, folder, b"s", folder, b"trap", 2)
"""


@pytest.mark.deadline(90)
def test_a_link_at_the_path_of_a_socket_opens_no_other_file(folder: Path) -> None:
    victim = folder.parent / "victim"
    victim.write_text("secret")
    victim.chmod(0o600)
    code = f"""
EXCHANGE = {EXCHANGE!r}
with run_server("service:handle", *OPTIONS, bind=["127.0.0.1:0", "unix:s,mode=666"]) as server:
    attacker = nobody(EXCHANGE, os.getcwd(), {str(victim)!r}, wait=False)
    try:
        wait_until(lambda: os.path.lexists("trap"))
        for _ in range(8):
            reload(server)
    finally:
        attacker.kill()
        attacker.wait()
    print(oct(Path({str(victim)!r}).stat().st_mode & 0o777))
"""
    assert run(code, folder) == "0o600\n"


def test_a_socket_of_root_that_is_put_there_while_we_bind_is_left_alone(folder: Path) -> None:
    """Two sockets of root in a directory of another user: one does not get the mode of the other."""
    need("strace")
    with socket.socket(socket.AF_UNIX) as other:
        os.fchmod(other.fileno(), 0o600)
        other.bind(str(folder / "private"))
        other.listen()
        trace = folder.parent / "trace"
        strace = ["strace", "-qq", "-o", str(trace), "-e", "trace=bind", "-e", "inject=bind:delay_exit=700000"]
        code = f"import os, prefork; os.umask(0o077); prefork.bind_unix_socket({str(folder / 's')!r}, 0o666)"
        process = subprocess.Popen([*strace, sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        wait_until((folder / "s").exists)
        os.rename(folder / "private", folder / "s")
        error = process.communicate(timeout=20)[1]
        assert "another file replaced it while it was bound" in error
        assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600
        # It is not removed either.
        assert command(folder, "status").returncode == ExitCode.NOT_RUNNING


def test_a_socket_is_bound_where_stat_tells_another_device_than_the_kernel(folder: Path) -> None:
    """As on overlayfs with layers on two file systems, and on btrfs."""
    code = """
Path("lower").mkdir()
Path("upper").mkdir()
Path("merged").mkdir()
subprocess.run(["mount", "-t", "tmpfs", "none", "upper"], check=True)
Path("upper/a").mkdir()
Path("upper/work").mkdir()
options = "lowerdir=lower,upperdir=upper/a,workdir=upper/work,xino=off"
if subprocess.run(["mount", "-t", "overlay", "none", "-o", options, "merged"]).returncode:
    print("no overlayfs")
    sys.exit()
import prefork
with prefork.bind_unix_socket("merged/s") as bound, socket.socket(socket.AF_UNIX) as sock:
    sock.connect("merged/s")
    print("bound")
"""
    said = run(code, folder)
    if said == "no overlayfs\n":
        pytest.skip("overlayfs cannot be mounted here")
    assert said == "bound\n"


@pytest.mark.slow
def test_a_link_of_another_user_to_a_directory_is_not_followed(folder: Path) -> None:
    target = folder.parent / "etc"
    target.mkdir()
    (folder / "run").symlink_to(target)
    for option in (["--bind", "unix:run/s"], ["--pidfile", "run/pid"], ["--control", "run/control"]):
        done = _serve(folder, *option)
        assert done.returncode in (2, 4)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("prefork: ")]
        assert f"{folder}/run is a symbolic link that another user can change" in line
    assert not list(target.iterdir())


def test_a_directory_inside_one_of_another_user_is_held_open_during_the_bind(folder: Path) -> None:
    """Otherwise it could be exchanged meanwhile. The socket works, and the log shows its plain path."""
    (folder / "run").mkdir()
    with _serving(folder, "--bind", "unix:run/s", "--bind", "127.0.0.1:0") as (process, log):
        assert f"listening on unix:{folder}/run/s (unix)" in log.read_text()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(folder / "run" / "s"))
            sock.sendall(b"x\n")
            assert sock.recv(100) == b"0 0\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not (folder / "run" / "s").exists()


def test_an_exchanged_directory_loses_no_file(folder: Path) -> None:
    """At the end the name is removed from the directory that it was made in, or not at all."""
    (folder / "run").mkdir()
    precious = folder.parent / "etc"
    precious.mkdir()
    with _serving(folder, "--bind", "unix:run/s", "--bind", "127.0.0.1:0") as (process, _):
        (precious / "s").write_text("precious")
        (folder / "run").rename(folder / "away")
        (folder / "run").symlink_to(precious)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert (precious / "s").read_text() == "precious"


def test_a_relative_path_does_not_follow_the_current_folder_elsewhere(folder: Path) -> None:
    """The workers' user replaces the current directory by a link before a reload."""
    (folder / "run").mkdir()
    target = folder.parent / "etc"
    target.mkdir()
    config = folder.parent / "my.toml"
    config.write_text('bind = ["127.0.0.1:0"]\n')
    code = f"""
config = Path({str(config)!r})
os.environ.pop("PWD", None)
options = (*OPTIONS, "--config", str(config))
with run_server("service:handle", *options, bind=(), cwd="run") as server:
    nobody('import os; os.rename("run", "away"); os.symlink("{target}", "run")')
    config.write_text('bind = ["127.0.0.1:0", "unix:s"]\\n')
    reload(server, "not reloading")
    print(os.listdir({str(target)!r}), server.stderr().splitlines()[-1])
"""
    (folder / "run" / "service.py").write_text(SERVICE)
    out = run(code, folder)
    assert out.startswith("[] ")
    assert f"{folder}/run is a symbolic link that another user can change" in out


# --- log files --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["symlink", "dangling", "hard link", "owner"])
def test_a_foreign_file_at_the_path_of_a_log_is_not_written_to(folder: Path, how: str) -> None:
    log = folder / "log"
    victim = folder.parent / "victim"
    if how != "dangling":
        victim.write_text("secret\n")
    with _serving(folder, stderr=log) as (process, _):
        log.rename(folder / "log.1")
        if how == "hard link":
            os.link(victim, log)
        elif how == "owner":
            log.touch()
            os.chown(log, NOBODY, NOBODY)
        else:
            log.symlink_to(victim)
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "cannot be opened again: " in (folder / "log.1").read_text())
    if how == "dangling":
        assert not victim.exists()
    else:
        assert victim.read_text() == "secret\n"


def test_a_new_log_file_does_not_copy_rights_given_by_another_owner(folder: Path) -> None:
    """The new file belongs to root until its owner is changed: set-user-ID would make it a program of root's."""
    need("strace")
    log = folder / "log"
    log.touch()
    os.chown(log, NOBODY, NOBODY)
    log.chmod(0o6777)
    trace = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=fchown", "-e", "inject=fchown:error=EPERM"]
    code = f"import sys; sys.path[:0] = {sys.path!r}; from prefork.observe.reopen import LogFiles; import os; "
    code += f"files = LogFiles(); os.rename({str(log)!r}, {str(log)!r} + '.1'); files.reopen(print)"
    with log.open("ab") as out:
        subprocess.run([*trace, sys.executable, "-c", code], stderr=out, check=True, timeout=30)
    assert log.stat().st_uid == 0
    assert stat.S_IMODE(log.stat().st_mode) & 0o7111 == 0


def test_a_log_file_of_another_user_stays_that_users(folder: Path) -> None:
    """The new file after a rotation has the owner of the renamed one."""
    log = folder / "log"
    log.touch()
    os.chown(log, NOBODY, NOBODY)
    with _serving(folder, stderr=log) as (process, _):
        for turn in range(2):
            log.rename(folder / f"log.{turn}")
            process.send_signal(signal.SIGUSR1)
            wait_until(log.exists)
            wait_until(lambda: log.stat().st_uid == NOBODY)


# --- the control socket -----------------------------------------------------------------------------------------------


def test_a_socket_of_another_user_is_not_asked(folder: Path) -> None:
    """Otherwise a worker that replaces the control socket could tell root that the server has stopped."""
    path = folder / "control"
    code = f"""
import os, socket
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sock = socket.socket(socket.AF_UNIX)
sock.bind({str(path)!r})
sock.listen()
print("listening", flush=True)
connection, _ = sock.accept()
print(connection.recv(100), flush=True)
"""
    fake = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert fake.stdout is not None
    with fake.stdout as said:
        assert said.readline() == "listening\n"
        done = command(folder, "stop")
        assert done.returncode == 2
        assert f"uid {NOBODY} listens there, which is not root" in done.stderr
        assert said.readline() == "b''\n"
        fake.wait(10)


@pytest.mark.slow
def test_a_worker_that_answers_on_a_socket_of_roots_is_not_believed(folder: Path) -> None:
    """The service's socket is moved to the control socket's path: root has bound it, and a worker accepts."""
    (folder / "service.py").write_text(
        'async def handle(stream):\n    await stream.readline()\n    stream.write(b\'{"ok": true, "pid": 1}\\n\')\n'
    )
    code = """
with run_server("service:handle", *OPTIONS, bind=["unix:s,mode=666"]) as server:
    nobody('import os; os.rename("s", "control")')
    done = subprocess.run([sys.executable, "-P", "-m", "prefork", "stop", "--control", "control"],
                          capture_output=True, text=True, timeout=30)
    print(done.returncode, done.stdout, done.stderr)
"""
    out = run(code, folder)
    assert out.startswith("2 ")
    assert "uid 65534 answers there, which is not root" in out


def test_a_link_in_the_place_of_the_control_socket_leads_to_no_other_server(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder.parent / "other"))
        other.listen()
        (folder / "control").symlink_to(folder.parent / "other")
        (folder / "run").symlink_to(folder.parent)
        for path in ("control", "run/other"):
            done = command_line(folder, "stop", "--control", str(folder / path))
            assert done.returncode == 2
            assert f"{folder}/{path.split('/')[0]} is a symbolic link that another user can change" in done.stderr
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
        # A file of that user leads nowhere else either.
        (folder / "prefork.toml").write_text(f'control = "{folder.parent}/other"\n')
        done = command_line(folder, "stop")
        assert done.returncode == 2
        assert "--config prefork.toml: " in done.stderr
        assert (
            f"root does not trust the control socket named there (use --control {folder.parent}/other)" in done.stderr
        )
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
def test_no_folder_is_made_through_a_link_of_another_user(folder: Path, variable: str) -> None:
    target = folder.parent / "etc"
    target.mkdir()
    (folder / "run").symlink_to(target)
    variables = {"XDG_RUNTIME_DIR": "", "TMPDIR": "", variable: str(folder / "run")}
    code = f"""
with run_server("service:handle", *OPTIONS, "--control", "", env={variables!r}) as server:
    print(os.listdir({str(target)!r}), "no control socket" in server.stderr(), server.stderr())
"""
    out = run(code, folder)
    assert out.startswith("[] True"), out


# --- the terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_has_no_terminal_to_type_into(folder: Path) -> None:
    """Otherwise TIOCSTI could type root's next command."""
    (folder / "service.py").write_text(
        "import fcntl, os, termios\n"
        "def attempt(call, *arguments):\n"
        "    try:\n"
        "        return str(call(*arguments))\n"
        "    except OSError as exc:\n"
        "        return type(exc).__name__\n"
        "async def handle(stream):\n"
        "    said = [attempt(os.open, '/dev/tty', os.O_RDWR), attempt(fcntl.ioctl, 2, termios.TIOCSTI, b'x')]\n"
        "    said += [attempt(os.read, fd, 100) for fd in (0, 1, 2)]\n"
        "    stream.write('; '.join(said).encode() + b'\\n')\n"
    )
    code = """
import pty
pid, terminal = pty.fork()
if pid == 0:
    arguments = ["serve", "service:handle", *OPTIONS, "--bind", "unix:s", "--control", "off"]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "prefork", *arguments])
said = b""
while b"ready: " not in said:
    said += os.read(terminal, 1000)
os.write(terminal, b"secret\\n")
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("s")
    print(sock.makefile().readline())
os.kill(pid, signal.SIGKILL)
"""
    said = run(code, folder).strip().split("; ")
    assert said[0] == "OSError"  # ENXIO
    assert said[1] in ("PermissionError", "OSError")
    assert said[2:] == ["b''", "OSError", "OSError"]


# --- files that a failure leaves --------------------------------------------------------------------------------------


def test_a_pidfile_with_another_name_is_not_taken(folder: Path) -> None:
    other = folder.parent / "other.pid"
    other.write_text("4242\n")
    os.link(other, folder / "pid")
    done = _serve(folder, "--pidfile", "pid")
    assert done.returncode == 2
    assert f"--pidfile {folder}/pid: it has a second name (a hard link)" in done.stderr
    assert other.read_text() == "4242\n"


@pytest.mark.parametrize("call", ["listen", "flock"])
def test_what_fails_after_a_file_was_made_removes_it(folder: Path, call: str) -> None:
    need("strace")
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error=ENOLCK"]
    options = ["--bind", "unix:s", "--control", "off", *(["--pidfile", "pid"] if call == "flock" else [])]
    done = subprocess.run(
        [*trace, sys.executable, "-m", "prefork", "serve", "service:handle", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode in (2, 4)
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["service.py"]


def test_checking_paths_in_threads_leaks_no_descriptor(folder: Path) -> None:
    """Threads that walk at the same time have descriptors of their own."""
    from prefork.system import paths

    before = len(os.listdir("/proc/self/fd"))

    def walk() -> None:
        for _ in range(50):
            assert paths.weaknesses(folder / "service.py")
            with paths.resolve(folder / "service.py") as entry:
                assert entry.stat()

    threads = [threading.Thread(target=walk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == before
