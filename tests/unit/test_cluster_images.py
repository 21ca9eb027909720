"""What decides whether an image is built again, what a build sees of the machine, and what a node is sent."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from cluster import archives, images, machine
from cluster.dockerfile import copied_files, parse
from cluster.errors import ClusterError
from cluster.keys import content_key

DOCKERFILE = """\
# syntax=docker/dockerfile:1
ARG SUITE=bookworm
FROM debian:${SUITE}-slim AS build
RUN apt-get update \\
 && apt-get install -y python3  # COPY nothing here
COPY pyproject.toml \\
     README.md ./
COPY --chown=1:1 operator operator
RUN <<EOF
COPY not-an-instruction .
EOF
FROM build AS venv
COPY ["requirements.lock", "/"]
FROM --platform=linux/amd64 debian:bookworm-slim
COPY --from=venv /opt /opt
ADD https://example.invalid/x /x
"""


def test_a_dockerfile_tells_what_it_depends_on() -> None:
    parsed = parse(DOCKERFILE)
    assert parsed.bases == ("debian:bookworm-slim",)
    assert parsed.stages == ("build", "venv")
    assert parsed.sources == ("pyproject.toml", "README.md", "operator", "requirements.lock")


def test_a_default_in_a_variable_is_used() -> None:
    assert parse("FROM debian:${SUITE:-trixie}-slim").bases == ("debian:trixie-slim",)


def test_a_dockerfile_without_a_base_is_refused() -> None:
    with pytest.raises(ClusterError, match="no FROM"):
        parse("RUN true")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("operator", ["operator/a.py", "operator/b/c.py"]),
        ("./operator/", ["operator/a.py", "operator/b/c.py"]),
        ("*.lock", ["one.lock"]),
        ("operator/*.py", ["operator/a.py"]),
        (".", ["one.lock", "operator/a.py", "operator/b/c.py", "operators"]),
        ("missing", []),
    ],
)
def test_copy_takes_files_folders_and_patterns(source: str, expected: list[str]) -> None:
    files = [Path(name) for name in ("one.lock", "operator/a.py", "operator/b/c.py", "operators")]
    assert [str(path) for path in copied_files((source,), files)] == expected


def test_an_image_is_built_again_only_for_what_it_holds(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    (tmp_path / "operator").mkdir()
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM debian:bookworm-slim\nCOPY operator /operator\n")

    def key(base: str = "sha256:1", target: str | None = None) -> str:
        return images.build_key(dockerfile, tmp_path, target, [base])

    keys = [key()]
    (tmp_path / "README.md").write_text("not copied")
    (tmp_path / "operator" / "cached.pyc").write_text("ignored")
    assert key() == keys[0]
    (tmp_path / "operator" / "new.py").write_text("not yet added to git")
    keys.append(key())
    (tmp_path / "operator" / "new.py").write_text("changed")
    keys.append(key())
    (tmp_path / "operator" / "new.py").chmod(0o755)
    keys.append(key())
    dockerfile.write_text(dockerfile.read_text() + "USER 1\n")
    keys += [key(), key(base="sha256:2"), key(target="operator")]
    assert len(set(keys)) == len(keys)


def test_a_key_is_of_the_content_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
        (root / "a").write_text("x")
        (root / "b").write_text("y")
    assert content_key(one, [one / "a", one / "b"]) == content_key(two, [two / "b", two / "a"])
    # The end of a name must not be taken for the beginning of a content.
    (one / "ab").write_text("c")
    (two / "a").write_text("bc")
    assert content_key(one, [one / "ab"]) != content_key(two, [two / "a"])
    assert content_key(one, [one / "missing"]) != content_key(one, [])


SOURCES = """\
Types: deb
# a comment
URIs: http://archive.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb-src
URIs: http://archive.invalid/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.invalid/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://comment.invalid/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://security.invalid/debian-security bookworm-security main non-free # note
deb https://tools.invalid/apt tools-bookworm main
deb https://other.invalid/apt bookworm stable
"""


def test_the_base_image_comes_from_the_machines_own_debian_archives(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d" / "debian.sources").write_text(SOURCES)
    (tmp_path / "sources.list.d" / "debian.sources.save").write_text("deb http://backup.invalid bookworm main")
    found = machine.debian_sources("bookworm", machine.apt_sources(tmp_path))
    archive = ("http://archive.invalid/debian", "/usr/share/keyrings/archive.gpg")
    assert [(source.uri, source.suite, source.keyring) for source in found] == [
        ("http://security.invalid/debian-security", "bookworm-security", "/k.gpg"),
        (archive[0], "bookworm", archive[1]),
        (archive[0], "bookworm-updates", archive[1]),
    ]


def test_a_build_sees_the_machines_authorities_and_package_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities, wheels = tmp_path / "ca.crt", tmp_path / "wheels"
    authorities.touch()
    wheels.mkdir()
    monkeypatch.setenv("PIP_CERT", str(authorities))
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.invalid/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} /not/there")
    mounts = machine.build_mounts(tmp_path / "made")
    assert mounts[machine.BUILD_CA] == authorities
    assert mounts[wheels] == wheels
    settings = mounts[Path("/etc/pip.conf")].read_text().splitlines()
    assert settings[0] == "[global]"
    assert {
        f"cert = {machine.BUILD_CA}",
        "index-url = https://index.invalid/simple",
        f"find-links = {wheels}",
    } <= set(settings)


def _sent(image: archives.Loadable, present: set[str]) -> dict[str, bytes]:
    output = io.BytesIO()
    image.write(output, present)
    output.seek(0)
    with tarfile.open(fileobj=output) as tar:
        return {member.name: content.read() for member in tar if (content := tar.extractfile(member))}


def test_a_node_is_sent_only_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF and so on")
    saved = archives.of_program(program, "localhost/program:1")
    image = archives.Layers("localhost/other:2", saved.identity, saved.path)

    everything = _sent(image, set())
    blobs = {name: content for name, content in everything.items() if name.startswith("blobs/")}
    assert all(name == f"blobs/sha256/{sha256(content).hexdigest()}" for name, content in blobs.items())
    described = json.loads(everything["index.json"])["manifests"][0]
    assert described["annotations"] == {"io.containerd.image.name": "localhost/other:2"}
    manifest = json.loads(blobs[f"blobs/{described['digest'].replace(':', '/')}"])
    assert manifest["config"]["digest"] == saved.identity
    (layer,) = manifest["layers"]
    assert layer["size"] == len(blobs[f"blobs/{layer['digest'].replace(':', '/')}"])

    again = _sent(image, {layer["digest"]})
    assert set(everything) - set(again) == {f"blobs/{layer['digest'].replace(':', '/')}"}


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="there is no archive"):
        images.find(str(tmp_path / "image.tar"))
