"""What a federation can learn: one file per family of tasks behind one small interface, chosen by `training.task`.

A task says how a record is read and turned into tensors, which model it needs, what the loss of one record is, and how
a model is judged. Adapters, privacy and aggregation are the same for all of them. A consortium adds one of its own as a
Python file with an object `TASK`; every site names that file in its own settings (`task_file`), never the manifest: no
signature of somebody else makes a site run code.
"""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dp.objective import Objective
from ffm.errors import TaskError
from ffm.tasks.finetune import SequenceClassification
from ffm.tasks.interface import Scores, Task
from ffm.tasks.language import CausalLanguageModel, InstructionTuning, MaskedLanguageModel

__all__ = ["BUILT_IN", "Scores", "Task", "find"]

_TASKS: Final[tuple[Task, ...]] = (
    SequenceClassification(),
    MaskedLanguageModel(),
    CausalLanguageModel(),
    InstructionTuning(),
)
BUILT_IN: Final[Mapping[str, Task]] = {task.name: task for task in _TASKS}
MEMBERS: Final = tuple(
    sorted(name for kind in (Objective, Task) for name in {*kind.__annotations__, *vars(kind)} if name[0] != "_")
)


def find(name: str, file: Path | None = None) -> Task:
    """The task that a manifest names: of `file`, if the site gives one, else a built-in one.

    Raises:
        TaskError: E531, no such task; E532, the file cannot be loaded or holds another task.
    """
    if file is not None:
        return _from_file(name, file)
    if name not in BUILT_IN:
        raise TaskError(
            f"no task {name!r}",
            found=name,
            expected=" or ".join(BUILT_IN),
            do="name the file of the consortium's own task: task_file in the site's (and the owner's task's) settings",
            code="E531",
        )
    return BUILT_IN[name]


def _from_file(name: str, file: Path) -> Task:
    do = "give the Python file with the object TASK that the consortium agreed on"
    spec = importlib.util.spec_from_file_location(f"secagg_task_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise TaskError("the task's file cannot be loaded", found=str(file), expected="a Python file", do=do)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
        task: Task = module.TASK
    except Exception as error:  # a foreign file may raise anything while it is run
        raise TaskError("the task's file cannot be loaded", found=type(error).__name__, do=do) from error
    missing = [member for member in MEMBERS if not hasattr(task, member)]
    if missing:
        expected = ", ".join(MEMBERS)
        raise TaskError("the file's TASK is no task", found=f"no {', '.join(missing)}", expected=expected, do=do)
    if task.name != name:
        raise TaskError("the file holds another task than the manifest names", found=task.name, expected=name, do=do)
    return task
