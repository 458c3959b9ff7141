"""The error tree of `ffm`: models, adapters, data, tasks and the training process.

| code | meaning |
|---|---|
| E501 | the base model is not the one that the manifest pins |
| E502 | a package, model folder or its files are not installed |
| E503 | adapter tensors with other names, order or shapes than the manifest's |
| E504 | NaN or infinite values in an adapter |
| E505 | an adapter that would train nothing, or nothing in a named module |
| E506 | a base model that cannot be loaded safely, or is of another kind than the task needs |
| E507 | a method of adaptation that cannot run under this training |
| E508 | an adapter that cannot be merged into the base model |
| E509 | personal tensors that cannot be read, or belong to another manifest |
| E510 | texts longer than the base model's context |
| E511 | a data file is missing or unreadable |
| E512 | a data file lacks a column or a cell |
| E513 | a label that the manifest does not know |
| E514 | a data file without records |
| E515 | settings with an unknown, missing or wrong key |
| E516 | planned steps that do not fit the privacy budget |
| E517 | more records at a site than the manifest allows |
| E518 | a text with a special token: several texts packed into one record |
| E519 | a prompt that leaves no room for its response |
| E521 | the training process ended or cannot be started |
| E522 | a malformed frame, or a request out of order, on the training process's pipes |
| E523 | training failed inside the training process (memory, device) |
| E524 | a device that this machine does not have |
| E525 | a way to compute that this training does not allow |
| E531 | a task that is not there |
| E532 | a task's own file that cannot be loaded or holds another task |
| E533 | a way of continual learning that these settings cannot carry |
| E534 | a task that cannot go on from the run that it names |
| E541 | a Trainer of Hugging Face that cannot train for this federation |
"""

from typing import Final

from secagg.errors import SecAggError

NO_NUMBERS: Final = "E504"  # of a training whose result is not finite: a fact about the update, unlike a full memory


class ModelError(SecAggError):
    """The base model: missing, changed, or not loadable without running foreign code."""

    code = "E506"


class AdapterError(SecAggError, ValueError):
    """An adapter that is not what the manifest says."""

    code = "E503"


class DataError(SecAggError, ValueError):
    """A site's data file, or the example's data package."""

    code = "E511"


class TaskError(SecAggError, ValueError):
    """A task that cannot be found or loaded."""

    code = "E532"


class TrainingProcessError(SecAggError):
    """The process that trains for one client failed, ended, or sent what it must not."""

    code = "E521"
