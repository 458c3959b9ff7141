"""Write the test vectors: `python tests/vectors/generate.py [FOLDER]`. The same bytes on every machine and every run.

tests/test_vectors.py reads the files and recomputes them with code of its own. See README.md here for the schema.
"""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from vectors import attempts, frames, he, noise_shares, primitives, refusals, second_lock, server_step  # noqa: E402

from secagg.types import Phase  # noqa: E402

SINGLE: dict[str, Callable[[], Any]] = {
    "transcript": primitives.transcript,
    "bad_bitmap": primitives.bad_bitmap,
    "bad_merkle_path": primitives.bad_merkle,
    "keys": primitives.keys,
    "bad_keys": primitives.bad_keys,
    "aead": primitives.sealed,
    "bad_aead": primitives.bad_sealed,
    "prg": primitives.keystream,
    "shamir": primitives.sharing,
    "bad_shamir": primitives.bad_sharing,
    "slots": primitives.slots,
    "bad_slots": primitives.bad_slots,
    "bad_sum": primitives.bad_sum,
    "params": primitives.thresholds,
    "bad_params": primitives.bad_params,
    "graph": primitives.graphs,
    "roots": primitives.roots,
    "commitments": primitives.commitments,
    "noise_shares": noise_shares.noise_in_shares,
    "server_step": server_step.server_steps,
    "bad_frame": frames.bad_frames,
    "he": he.parameters,
    "bad_he_params": he.bad_parameters,
    "bad_he_sum": he.bad_sums,
    "bad_he_ciphertext": he.bad_ciphertexts,
    "bad_he_public_key": he.bad_public_keys,
    "second_lock": second_lock.digests,
    "opening_request": second_lock.requests,
    "bad_opening_request": second_lock.bad_requests,
    "attempt": lambda: attempts.attempt(None),
    "attempt_advertise_keys": lambda: attempts.attempt(Phase.ADVERTISE_KEYS),
    "attempt_share_keys": lambda: attempts.attempt(Phase.SHARE_KEYS),
    "attempt_masked_input": lambda: attempts.attempt(Phase.MASKED_INPUT),
    "attempt_consistency_check": lambda: attempts.attempt(Phase.CONSISTENCY_CHECK),
    "attempt_unmasking": lambda: attempts.attempt(Phase.UNMASKING),
    "attempt_ring": attempts.ring_attempt,
}
MANY: tuple[Callable[[], refusals.Files], ...] = (
    refusals.join_files,
    refusals.client_files,
    refusals.order_files,
    refusals.server_files,
    refusals.dealer_files,
    refusals.document_files,
)


@cache
def rendered() -> dict[str, bytes]:
    """The exact bytes of every file, by name without .json."""
    files: dict[str, Any] = {name: make() for name, make in SINGLE.items()}
    for make in MANY:
        made = make()
        assert not set(made) & set(files)
        files |= made
    return {name: (json.dumps(value, indent=1, sort_keys=True) + "\n").encode() for name, value in files.items()}


def main(folder: Path) -> None:
    """Write all files."""
    for name, data in rendered().items():
        (folder / f"{name}.json").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
