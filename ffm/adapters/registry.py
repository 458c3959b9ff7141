"""The methods of adaptation that this version has, by the word that manifests name them with."""

from collections.abc import Mapping
from typing import Final

from ffm.adapters.inplace import BitFit, Full
from ffm.adapters.lora import FedSaLora, FfaLora, Lora, RoLora
from ffm.adapters.method import Method
from ffm.adapters.prefix import Prefix
from ffm.adapters.prompt import Prompt
from ffm.errors import AdapterError

METHODS: Final[Mapping[str, Method]] = {
    method.name: method for method in (FfaLora(), Lora(), RoLora(), FedSaLora(), BitFit(), Prefix(), Prompt(), Full())
}


def find(name: str) -> Method:
    """The method that a manifest names. Raises AdapterError E505 if there is none."""
    if name not in METHODS:
        raise AdapterError(
            f"no method {name!r}",
            found=name,
            expected=" or ".join(METHODS),
            do="correct the method in the task's settings, or install the version of secagg that the owner used",
            code="E505",
        )
    return METHODS[name]
