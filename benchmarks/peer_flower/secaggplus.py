"""Flower's own SecAgg+ in one process, step by step on request. Runs in Flower's environment, not in ours.

Everything that is measured is Flower's: `SecAggPlusWorkflow` on the server's side, `secaggplus_mod` on the clients'.
Ours is only what Flower leaves open: a `Grid` that hands the messages over in memory (through Flower's own
serialisation), updates in place of training, and a strategy that takes the aggregate as it comes (FedAvg would go on to
average equal copies of it, which is no part of unmasking).

    python secaggplus.py '{"clients": 32, "length": 1000000, "dropouts": 3, "threshold": 22}'

Each masked-vector step of a client waits for a line on stdin, and so does the server's unmasking: whoever compares runs
both sides in turn. Every answer is one line of JSON on stdout:

    {"at": "client", "seconds": ..., "masking": ...}    one per client that is not dropped; masking is the part that
                                                        makes the masks and adds them
    {"at": "server", "add": ..., "unmask": ..., "secrets": ...}   seconds, without the time that clients take; secrets
                                                                  is the part of unmask that does not grow with length
    {"at": "end", "error": ..., "bytes": {stage: [to the client, from the client]}, "versions": {...}}
"""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation import secaggplus_workflow as workflow_module
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.version import package_version

CLIPPING = 8.0  # Flower's default
EXAMPLES = 1  # every client has the same weight: the mean of the updates is the expected result


def say(**fields: object) -> None:
    """One JSON line on stdout."""
    print(json.dumps(fields), flush=True)


def wait() -> None:
    """Until the other side of the comparison says go."""
    if not sys.stdin.readline():
        sys.exit(0)


def through_wire(message: Message) -> tuple[Message, int]:
    """The message as the other end would see it, and its serialised size."""
    data = message_to_proto(message)
    return message_from_proto(data), data.ByteSize()


class Node:
    """One client: Flower's mod around an app that returns a given update instead of training."""

    def __init__(self, node_id: int, update: np.ndarray) -> None:
        self.context = Context(0, node_id, {}, RecordDict(), {}, 0)
        self._fitted = ndarrays_to_parameters([update])

    def app(self, message: Message, context: Context) -> Message:
        """What a ClientApp returns after training."""
        result = FitRes(Status(Code.OK, ""), self._fitted, EXAMPLES, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=True), reply_to=message)


class MemoryGrid(Grid):
    """Delivers to nodes in this process. `waited` is the time that the server spent here."""

    def __init__(self, nodes: dict[int, Node], dropped: set[int]) -> None:
        self.nodes, self.dropped = nodes, dropped
        self.waited = 0.0
        self.bytes: dict[str, list[int]] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All answers; the dropped clients fall silent before they send their masked vector."""
        began = time.perf_counter()
        answers = [self._deliver(message) for message in messages]
        self.waited += time.perf_counter() - began
        return answers

    def _deliver(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        node = self.nodes[node_id]
        stage = str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
        if node_id in self.dropped and stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK):
            return Message(Error(code=0, reason="dropped"), reply_to=message)
        arrived, down = through_wire(message)
        timed = stage == Stage.COLLECT_MASKED_VECTORS
        if timed:
            wait()
        masking.seconds = 0.0
        began = time.perf_counter()
        answer = secaggplus_mod(arrived, node.context, node.app)
        seconds = time.perf_counter() - began
        if timed:
            say(at="client", seconds=seconds, masking=masking.seconds)
        returned, up = through_wire(answer)
        sizes = self.bytes.setdefault(stage, [0, 0])
        sizes[0] += down
        sizes[1] += up
        return returned

    def get_node_ids(self) -> list[int]:
        """All nodes."""
        return list(self.nodes)

    def set_run(self, run: Run) -> None:
        """Not used by the workflow."""
        raise NotImplementedError

    @property
    def run(self) -> Run:
        """Not used by the workflow."""
        raise NotImplementedError

    def create_message(self, *args: Any, **options: Any) -> Message:
        """Not used by the workflow."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used by the workflow."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used by the workflow."""
        raise NotImplementedError


class TakeAggregate(FedAvg):
    """Takes the unmasked aggregate as it is; the model that goes out is empty, as it is on the other side."""

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        """Everybody, no model."""
        empty = FitIns(Parameters([], "numpy.ndarray"), {})
        return [(proxy, empty) for proxy in client_manager.all().values()]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """All results hold the same aggregate."""
        return results[0][1].parameters, {}


class Clock:
    """Runs functions of Flower's and counts their time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function under the clock."""

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - began
            return result

        return timed


masking, secrets = Clock(), Clock()
mod_module = sys.modules[secaggplus_mod.__module__]
for name in ("pseudo_rand_gen", "parameters_addition", "parameters_subtraction", "parameters_mod"):
    setattr(mod_module, name, masking.around(getattr(mod_module, name)))
workflow_module.combine_shares = secrets.around(workflow_module.combine_shares)
workflow_module.generate_shared_key = secrets.around(workflow_module.generate_shared_key)


class TimedWorkflow(SecAggPlusWorkflow):
    """Flower's workflow with a clock around two of its stages; the clients' time is taken off."""

    seconds: dict[str, float]

    def collect_masked_vectors_stage(self, grid: Any, context: Any, state: Any) -> bool:
        """Collects and adds the masked vectors."""
        return self._timed("add", super().collect_masked_vectors_stage, (grid, context, state))

    def unmask_stage(self, grid: Any, context: Any, state: Any) -> bool:
        """Reconstructs the secrets and removes the masks."""
        wait()
        return self._timed("unmask", super().unmask_stage, (grid, context, state))

    def _timed(self, name: str, stage: Any, arguments: tuple[Any, Any, Any]) -> bool:
        grid = arguments[0]
        secrets.seconds = 0.0
        before, began = grid.waited, time.perf_counter()
        done = stage(*arguments)
        self.seconds[name] = time.perf_counter() - began - (grid.waited - before)
        self.seconds["secrets"] = secrets.seconds
        return bool(done)


def main() -> None:
    """One attempt of SecAgg+ with the sizes of the first argument."""
    sizes = json.loads(sys.argv[1])
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # a SuperLink would have set them
    clients, length, dropouts = sizes["clients"], sizes["length"], sizes["dropouts"]
    updates = {i: np.sin(np.arange(length, dtype=np.float64) + i).astype(np.float32) for i in range(1, clients + 1)}
    dropped = set(range(clients - dropouts + 1, clients + 1))
    grid = MemoryGrid({i: Node(i, update) for i, update in updates.items()}, dropped)
    manager = SimpleClientManager()
    for node_id in grid.get_node_ids():
        manager.register(GridClientProxy(node_id, grid, 0))
    context = LegacyContext(Context(0, 0, {}, RecordDict(), {}, 0), strategy=TakeAggregate(), client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
    workflow = TimedWorkflow(clients, sizes["threshold"], clipping_range=CLIPPING, max_weight=1.0)
    workflow.seconds = {}
    workflow(grid, context)
    if "unmask" not in workflow.seconds:
        raise RuntimeError("Flower's workflow halted before it unmasked")
    say(at="server", **workflow.seconds)
    found = parameters_to_ndarrays(
        compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], keep_input=True)
    )[0]
    alive = [update for i, update in updates.items() if i not in dropped]
    say(
        at="end",
        error=float(np.abs(found - np.mean(alive, axis=0, dtype=np.float64)).max()),
        bytes=grid.bytes,
        versions={"flwr": package_version, "numpy": np.__version__, "python": platform.python_version()},
    )


if __name__ == "__main__":
    main()
