"""The Dockerfile of deploy/docker: built and run without Docker, in namespaces, as far as that goes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import dockerfile
from helpers.deployment import DEPLOY, ROOT
from helpers.support import need, need_root, run_script

DOCKER = DEPLOY / "docker"
ECHO = "async def handle(stream):\n    async for line in stream: stream.write(line)\n"


def test_the_image_runs_the_supervisor_as_process_1_of_a_user_without_rights() -> None:
    *_, image = dockerfile.read(DOCKER / "Dockerfile")
    command = [*image.last("ENTRYPOINT").words(), *image.last("CMD").words()]
    # A shell as process 1 would get TERM in place of the supervisor.
    assert command[:2] == ["prefork", "serve"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.last("USER").text), "Kubernetes' runAsNonRoot needs numbers"
    assert image.last("HEALTHCHECK").words() == ["prefork", "status"]


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    copied = {
        source
        for stage in dockerfile.read(DOCKER / "Dockerfile")
        for each in stage.instructions
        if each.name == "COPY" and "from" not in each.flags
        for source in each.text.split()[:-1]
    }
    ignored = [line for line in (DOCKER / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored[1:]} == copied


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
@pytest.mark.deadline(180)
def test_what_the_file_says_is_built_runs_read_only_and_stops(tmp_path: Path) -> None:
    """Every RUN and COPY in a root of its own; then process 1, health, TERM. Not: the base image, and apt-get."""
    need("unshare", "setpriv", "nsenter", "ip")
    need_root()
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(DOCKER / name, tmp_path)
    (tmp_path / "requirements.txt").write_text(f"prefork[metrics] @ file://{ROOT}\n")
    (tmp_path / "app.py").write_text(ECHO)
    script = Path(__file__).with_name("in_container.py")
    arguments = [str(tmp_path / "Dockerfile"), str(tmp_path), sys.base_prefix]
    done = run_script(
        script, *arguments, prefix=("unshare", "--mount"), deadline=170, env={"PREFORK_REQUIRE_NATIVE": "1"}
    )
    assert done.stdout == "well\n", done.stderr
