"""A consortium on this machine that goes on with another manifest: the next phase of a model's life, or the next period
of its data (docs/adr/0061).

Keys, certificates, roster and the privacy ledger of each site stay. What belongs to one manifest is named by its
digest, at every site: journals, the server's first model, personal tensors, the note of the run folder. So a link of
the chain is begun by exactly what a real consortium does: the owner publishes, each site accepts, everybody starts
again.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ffm.consortium import load_owner, publish, welcome
from ffm.demo import Layout, hand_out
from ffm.joining import accept
from ffm.models import locate
from ffm.site import change_settings
from protocol.manifest import Manifest


def next_link(
    layout: Layout, run: Path, manifest: Manifest, local: Mapping[str, str], records: Mapping[str, Path] | None = None
) -> Layout:
    """Sign `manifest` and make it that of every site; play the result as any other layout.

    Args:
        layout: The link before, whose processes have ended.
        run: New folder for the server's run.
        manifest: For the same clients.
        local: What each site has to be told of this machine, as `ffm.demo.local_settings` gives it.
        records: The new records of some sites by their names, moved into their folders; others keep theirs.

    Raises:
        DocumentError: E354 if the manifest does not fit the roster, before any site is asked; whatever a site has
            against the owner's answer. FileExistsError for a run folder that is there already.
    """
    run.mkdir(parents=True)
    consortium = layout.consortium
    owner = load_owner(consortium.owner)
    publish(owner, manifest)
    trainers = (consortium.server, *consortium.clients.values())
    for site in (*trainers, *([] if consortium.decryptor is None else [consortium.decryptor])):
        accept(site, welcome(owner, site.name), owner.fingerprint)
    for site in trainers:
        change_settings(site, local)
    site_files = hand_out(consortium, records or {})
    base_model = locate(local["base_model"] or manifest.base_model.name)
    return replace(layout, run=run, manifest=manifest, site_files=site_files, base_model=base_model)
