"""How this machine reaches packages: its apt sources, proxies, pip's configuration and its certificate authorities.

A build gets all of it mounted read-only while it runs. None of it becomes part of an image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

APT = Path("/etc/apt")
BUILD_CA = Path("/run/host-ca.crt")
_PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "timeout")
_CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True)
class AptSource:
    """One archive that packages come from.

    Attributes:
        uri: where it is.
        suite: such as ``bookworm`` or ``bookworm-updates``.
        components: such as ``main``.
        keyring: the file that it is signed by, if the source names one.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    keyring: str | None = None


def _one_line_sources(text: str) -> Iterator[AptSource]:
    """The format of sources.list, man 5 sources.list."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<rest>[^#]+)", line)
        if match is None:
            continue
        keyring = re.search(r"signed-by=(\S+)", match["options"] or "")
        yield AptSource(match["uri"], match["suite"], tuple(match["rest"].split()), keyring and keyring.group(1))


def _deb822_sources(text: str) -> Iterator[AptSource]:
    """The format of \\*.sources, man 5 sources.list."""
    for stanza in re.split(r"\n\s*\n", text):
        lines = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
        fields = {
            name.lower(): " ".join(value.split())
            for name, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", lines, re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        keyring = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptSource(
                    uri,
                    suite,
                    tuple(fields.get("components", "").split()),
                    keyring if keyring.startswith("/") else None,
                )


def apt_sources(directory: Path = APT) -> list[AptSource]:
    """The archives that this machine's apt uses."""
    found: list[AptSource] = []
    for path in [directory / "sources.list", *sorted((directory / "sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            read = _deb822_sources if path.suffix == ".sources" else _one_line_sources
            found += read(path.read_text())
    return found


def debian_sources(suite: str, sources: list[AptSource]) -> list[AptSource]:
    """Those archives that are Debian's own of a release: the release itself, its updates and security fixes."""
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    return [source for source in sources if source.suite in wanted and "main" in source.components]


def _pip_configuration() -> dict[str, str]:
    """What pip was told by files and by the environment; the environment wins, as it does for pip."""
    pip = shutil.which("pip") or shutil.which("pip3")
    if pip is None:
        return {}
    # Inside a virtual environment, pip still reads the machine's configuration.
    output = subprocess.run([pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    settings: dict[str, str] = {}
    for scope in (r"(?!:env:)[\w-]+", ":env:"):
        for match in re.finditer(rf"^{scope}\.([\w-]+)='(.*)'$", output, re.MULTILINE):
            settings[match.group(1)] = match.group(2).replace("\\n", " ")
    return settings


def _authorities(pip: dict[str, str]) -> Path | None:
    """The file of certificate authorities that this machine was told to trust, if it was told any."""
    for value in [*(os.environ.get(name, "") for name in _CA_VARIABLES), pip.get("cert", "")]:
        if value and Path(value).is_file():
            return Path(value).resolve()
    return None


def _apt_configuration() -> str:
    """The machine's settings for reaching archives: proxies, time limits, certificates."""
    if shutil.which("apt-config") is None:
        return ""
    output = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    wanted = re.compile(r'^Acquire::(https?)::(Proxy|Timeout|Verify|Pipeline)[^ ]* ".+";$')
    return "\n".join(line for line in output.splitlines() if wanted.match(line))


def build_mounts(folder: Path) -> dict[Path, Path]:
    """What a build must see of this machine to reach packages: files here by their paths in the build.

    Args:
        folder: where to write those files that have to be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounts: dict[Path, Path] = {}
    pip = _pip_configuration()
    settings = {name: value for name, value in pip.items() if name in _PIP_SETTINGS}
    if authorities := _authorities(pip):
        mounts[BUILD_CA] = authorities
        settings["cert"] = str(BUILD_CA)
    local = [link for link in settings.get("find-links", "").split() if link.startswith("/")]
    for link in local:
        if Path(link).exists():
            mounts[Path(link)] = Path(link)
        else:
            settings["find-links"] = " ".join(word for word in settings["find-links"].split() if word != link)
    if settings:
        lines = [f"{name} = {value}" for name, value in sorted(settings.items()) if value]
        path = folder / "pip.conf"
        path.write_text("\n".join(["[global]", *lines, ""]))
        mounts[Path("/etc/pip.conf")] = path
    if apt := _apt_configuration():
        path = folder / "apt.conf"
        path.write_text(apt + "\n")
        mounts[Path("/etc/apt/apt.conf.d/90machine")] = path
    return mounts
