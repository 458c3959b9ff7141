"""`secagg server`, `secagg client` and `secagg decryptor`."""

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from ffm.cli.output import Output
from ffm.plateau import Plateau
from ffm.site import load_site
from ffm.start import ClientOptions, ServerOptions, decrypt, participate, serve
from ffm.validation import Validation
from protocol.rpc.limits import Deadlines

T = TypeVar("T")


def validation_of(data: Path | None, patience: int, least: float) -> Validation | None:
    """How the server judges released models, where it was given records to do so."""
    return None if data is None else Validation(data, Plateau(patience, least))


def run_server(
    folder: Path,
    run: Path | None,
    seconds: tuple[float, float, float, float],
    validation: Validation | None,
    out: Output,
) -> None:
    """Run all rounds, or those until the plateau; prints the run folder."""
    site = load_site(folder)
    phase, training, grace, connect = seconds
    deadlines = Deadlines(
        advertise_keys=phase,
        share_keys=phase,
        masked_input=training,
        consistency_check=phase,
        unmasking=phase,
        grace=grace,
    )
    written = run_until_signal(serve(site, ServerOptions(run, deadlines, connect, validation=validation), out.event))
    out.result({"result": "finished", "run": str(written)}, f"finished; run folder {written}")


def run_client(folder: Path, options: tuple[Path | None, str | None, int, int | None], out: Output) -> None:
    """Take part to the end; prints the number of rounds that counted this client."""
    counted = run_until_signal(participate(load_site(folder), ClientOptions(*options), out.event))
    out.result({"result": "finished", "rounds_included": counted}, f"finished; in the sum of {counted} rounds")


def run_decryptor(folder: Path, out: Output) -> None:
    """Serve to the end; prints the number of sums that were opened."""
    opened = run_until_signal(decrypt(load_site(folder), out.event))
    out.result({"result": "finished", "sums_opened": opened}, f"finished; {opened} sums opened")


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` that ends in an orderly way on SIGTERM as well as on Ctrl-C."""

    async def main() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
