"""One of the processes of a client that train together, started by torch.distributed.run: BASE OUT METHOD."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainingArguments

from ffm import trainer
from ffm.learner import Learner, Vector
from ffm.trainer import SecAggCallback
from tests.test_personal import manifest_of
from tests.test_trainer import ROUNDS, STEPS, Rows, Server

SIGN_OF_LIFE_S, DDP_TIMEOUT_S = 4.0, 12


def main(base: Path, out: Path, method: str) -> None:
    """Train; write the model that this process ends with, and at the first one what went to the server."""
    manifest = manifest_of(base, method, rounds=ROUNDS, local_steps=STEPS)
    server = Server(manifest)

    async def slow(asks: Any, initial: Vector) -> tuple[int, Vector | None]:
        await asyncio.sleep(5 * SIGN_OF_LIFE_S)  # the other process is told several times that there is nothing yet
        return await server.join(asks, initial)

    trainer._SIGN_OF_LIFE_S = SIGN_OF_LIFE_S
    callback = SecAggCallback.of(Learner.load(manifest, base), slow)
    arguments = TrainingArguments(
        output_dir=str(out),
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        ddp_backend="gloo",
        ddp_timeout=DDP_TIMEOUT_S,
        disable_tqdm=True,
        max_steps=ROUNDS * STEPS,
        learning_rate=0.1,
        per_device_train_batch_size=4,
    )
    Trainer(model=callback.model, args=arguments, train_dataset=Rows(callback._learner), callbacks=[callback]).train()
    rank = int(os.environ["RANK"])
    (out / f"model-{rank}.f32").write_bytes(callback._learner.initial().tobytes())
    (out / f"personal-{rank}.f32").write_bytes(callback._learner.personal().tobytes())
    if server.updates:
        (out / f"updates-{rank}.f32").write_bytes(np.concatenate(server.updates).tobytes())
        assert server.last is not None
        (out / f"last-{rank}.f32").write_bytes(server.last.tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
