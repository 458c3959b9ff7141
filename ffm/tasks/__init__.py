"""What a federation can learn: one file per family of tasks behind one small interface, chosen by `training.task`.

A task says how a record is read and turned into tensors, which model it needs, what the loss of one record is, and how
a model is judged. Adapters, privacy and aggregation are the same for all of them. A consortium adds one of its own as a
Python file with an object `TASK`; every site names that file in its own settings (`task_file`), never the manifest: no
signature of somebody else makes a site run code.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

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
            do="give the file of the consortium's own task: task_file in the site's settings, or --task-file",
            code="E531",
        )
    return BUILT_IN[name]


def _from_file(name: str, file: Path) -> Task:
    do = "give the Python file with the object TASK that the consortium agreed on"
    spec = importlib.util.spec_from_file_location(f"secagg_task_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise TaskError("the task's file cannot be loaded", found=str(file), expected="a Python file", do=do)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        task: Task = module.TASK
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        raise TaskError("the task's file cannot be loaded", found=type(error).__name__, do=do) from error
    if task.name != name:
        raise TaskError("the file holds another task than the manifest names", found=task.name, expected=name, do=do)
    return task
