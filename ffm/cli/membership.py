"""`secagg init` and `secagg join`: how a consortium and its sites come to be."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ffm.cli.output import Output
from ffm.consortium import (
    ConsortiumConfig,
    ConsortiumFile,
    approve,
    create_consortium,
    create_owner,
    load_owner,
    publish,
    read_config,
    welcome,
)
from ffm.joining import accept, create_site, verify_request
from ffm.site import load_site
from protocol.manifest import Manifest
from protocol.rpc.keyfiles import read_public, replace_public


def manifest_for(config: ConsortiumConfig, beside: Path, model: str | None) -> Manifest:
    """The manifest that the consortium's task settings give on this machine."""
    from ffm.task import build_manifest, load_settings

    settings = load_settings(beside / config.task)
    return build_manifest(settings, model or next(iter(settings.models)))


def make_consortium(config_path: Path, folder: Path, model: str | None, owner_only: bool, out: Output) -> None:
    """Everything on one machine, or with `owner_only` the owner's folder alone."""
    config = read_config(config_path)
    if owner_only:
        file = ConsortiumFile(consortium=config.consortium, server=config.server, decryptor=config.decryptor)
        owner = create_owner(folder / "owner", file, datetime.now(UTC))
        made_owner = {"owner": str(owner.folder), "fingerprint": owner.fingerprint}
        text = f"owner's folder {owner.folder}\nread this fingerprint out by phone: {owner.fingerprint}"
        out.result(made_owner, text)
        return
    out.say("pinning the base model and deriving the adapter's schema")
    made = create_consortium(config, folder, manifest_for(config, config_path.parent, model))
    value: dict[str, Any] = {
        "owner": str(made.owner),
        "server": str(made.server),
        "clients": {name: str(path) for name, path in made.clients.items()},
        "fingerprint": made.owner_key.fingerprint(),
    }
    lines = [f"owner's folder   {made.owner} (keep it off every server)", f"secagg server    {made.server}"]
    if made.decryptor is not None:
        value["decryptor"] = str(made.decryptor)
        lines.append(f"secagg decryptor {made.decryptor} (at neither the server's nor a client's organisation)")
    lines += [f"secagg client    {path}" for path in made.clients.values()]
    lines.append(f"owner's fingerprint: {made.owner_key.fingerprint()}")
    out.result(value, "\n".join(lines))


def request(folder: Path, name: str, out: Output) -> None:
    """Make a site's keys and its request."""
    made = create_site(folder, name)
    value = {"request": str(folder / "request.json"), "fingerprint": made.fingerprint()}
    text = f"send {folder}/request.json and request.json.sig to the owner\nread out by phone: {made.fingerprint()}"
    out.result(value, text)


def approve_request(owner_folder: Path, request_path: Path, out: Output) -> None:
    """Approve one request; the fingerprint must have been compared by phone."""
    signature = read_public(request_path.with_name(request_path.name + ".sig"))
    checked = verify_request(read_public(request_path), signature)
    record = approve(load_owner(owner_folder), checked, datetime.now(UTC))
    value = {"name": record.name, "member_id": record.member_id, "fingerprint": checked.fingerprint()}
    out.result(value, f"approved {record.name} as {record.member_id}; fingerprint {checked.fingerprint()}")


def publish_documents(owner_folder: Path, config_path: Path, model: str | None, out: Output) -> None:
    """Sign roster and manifest and write a welcome for every member."""
    owner = load_owner(owner_folder)
    config = read_config(config_path)
    roster = publish(owner, manifest_for(config, config_path.parent, model))
    names = [peer.name for peer in roster.peers]
    folder = owner_folder / "welcome"
    folder.mkdir(exist_ok=True)
    for name in names:
        replace_public(folder / f"{name}.json", welcome(owner, name))
    value = {"version": roster.version, "welcome": [str(folder / f"{name}.json") for name in names]}
    out.result(value, f"roster version {roster.version}; send each member its file in {folder}")


def accept_welcome(folder: Path, welcome_path: Path, fingerprint: str, out: Output) -> None:
    """Check and keep the owner's answer."""
    accept(folder, read_public(welcome_path), fingerprint)
    site = load_site(folder)
    text = f"ready: secagg {site.role} {folder} (owner {site.owner.fingerprint()})"
    out.result({"site": str(folder), "role": site.role}, text)
