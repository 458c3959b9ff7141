"""The signed training manifest: the only thing that a client trains, noises and encodes by. SPEC 2.3.

The owner signs it. No field of it may be overridden by the server, the environment or a flag.
Integers and decimal strings only: every number inside a privacy claim is exact.
"""

from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import ceil, prod
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from protocol import signed
from protocol.bounds import (
    DITHER,
    FAIL,
    LEAST_CLIENTS,
    LEAST_ROTATED,
    LN2,
    MAX_SENSITIVITY,
    block_root,
    root_above,
    rotated_length,
    rounded_norm,
    spread_norm,
)
from protocol.roster import Hex32, StrictModel, exactly, parse_model
from secagg.encoding import SlotEncoding
from secagg.labels import MANIFEST_DIGEST, MODEL_DIGEST, ROTATION
from secagg.params import SecAggParams
from secagg.signing import SigningKey, VerifyKey
from secagg.transcript import digest

KIND = "application/vnd.secagg.manifest.v1+json"

DENIED_LIBRARIES: Final[frozenset[str]] = frozenset()
"""HE libraries, as manifests name them, with a defect that nothing here stops: a manifest with one is refused."""

Positive = Annotated[int, Field(ge=1, le=2**53)]
DecimalString = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class FileDigest(StrictModel):
    """One file of the base model, pinned."""

    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,198}$")]  # a plain file name
    sha256: Hex32


class BaseModelSpec(StrictModel):
    """The frozen base model: an identifier for people, and the digest of every file that is loaded."""

    name: Name
    files: tuple[FileDigest, ...]


class TensorSpec(StrictModel):
    """Name and shape of one trainable tensor, in the order of the flat vector."""

    name: Name
    shape: Annotated[tuple[Positive, ...], Field(max_length=8)]


class AdapterSpec(StrictModel):
    """What is trained. The flat vector is the concatenation of `tensors`, row-major.

    `personal` tensors are trained at each client, by the same noised steps, and never leave it.
    """

    method: Word  # of ffm.adapters; the protocol sees `tensors` only
    rank: Count  # of LoRA's matrices; 0 where the method has none
    alpha: Count
    virtual_tokens: Count  # of a prompt or prefix; 0 where the method has none
    target_modules: tuple[Name, ...]
    seed: Annotated[int, Field(ge=0, lt=2**53)]
    start: Hex32 | None = None  # SHA-256 of the flat vector that round 1 starts from; left out: what the seed gives
    tensors: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=100_000)]
    personal: Annotated[tuple[TensorSpec, ...], Field(max_length=100_000)]

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(prod(t.shape) for t in self.tensors)


class ServerSpec(StrictModel):
    """The server step (Reddi et al. 2021, "Adaptive federated optimization"); both sides compute it alike. SPEC 7.7."""

    optimizer: Literal["fedavg", "fedadam", "fedyogi"]
    learning_rate: DecimalString
    beta1: DecimalString  # of the moments; fedavg has none: "0"
    beta2: DecimalString
    tau: DecimalString  # added to the root of the second moment

    @model_validator(mode="after")
    def _sound(self) -> "ServerSpec":
        beta1, beta2, tau = Decimal(self.beta1), Decimal(self.beta2), Decimal(self.tau)
        if Decimal(self.learning_rate) <= 0:
            raise ValueError("the server's learning rate must be positive")
        if self.optimizer == "fedavg":
            if beta1 or beta2 or tau:
                raise ValueError("fedavg has no moments: beta1, beta2 and tau must be 0")
        elif not (beta1 < 1 and beta2 < 1 and tau > 0):
            raise ValueError("moments need beta1 and beta2 below 1 and tau above 0")
        return self

    @property
    def vectors(self) -> int:
        """Vectors of the adapter's length in a model: the parameters, and two moments where the optimizer has them."""
        return 1 if self.optimizer == "fedavg" else 3


class ConsolidationSpec(StrictModel):
    """Elastic weight consolidation (Kirkpatrick et al. 2017) after the server step: what mattered so far is held near
    the start. SPEC 7.7."""

    strength: DecimalString  # 0: nothing is held yet, but the sums are tallied for the task that comes after
    importance: Hex32 | None = None  # SHA-256 of a vector of float32, one per parameter; left out where strength is 0

    @model_validator(mode="after")
    def _sound(self) -> "ConsolidationSpec":
        if (Decimal(self.strength) > 0) != (self.importance is not None):
            raise ValueError("a strength above 0 needs the importance of the parameters, and 0 has none")
        return self


class TrainingSpec(StrictModel):
    """Local training between two aggregations, and the server step after them."""

    task: Word  # of ffm.tasks, or one of the consortium's own: what the loss of a record is
    labels: tuple[Name, ...]  # of a classifier, in its order; else empty
    max_length: Positive
    optimizer: Literal["sgd", "adam"]
    learning_rate: DecimalString
    rounds: Positive
    local_steps: Positive
    expected_batch: Positive  # public divisor of the summed gradient, never a count of real records; R2: of all clients
    proximal: DecimalString  # FedProx (Li et al. 2020): pull towards the round's start, added after the noise; 0: none
    server: ServerSpec
    consolidation: ConsolidationSpec | None = None  # the key is left out where nothing is held or tallied


class PrivacySpec(StrictModel):
    """Protocols of DP, SPEC 10. R1: every client noises every step alone. R2: each client sums the clipped gradients of
    one sample and adds a share of the noise; only the sum over `min_cohort` clients or more is ever opened. C: each
    client clips its whole update and adds a share.

    All quantities in integer grid steps: clip norm C = clip_steps / scale; noise standard deviation of one step (R2, C:
    in the sum, whatever `max_corrupt` clients do) = noise_steps / scale; noise multiplier = noise_steps /
    `Manifest.sensitivity_steps`; sampling probability = numerator / denominator (C: of local training alone).
    """

    protocol: Literal["R1", "R2", "C", "none"]
    unit: Literal["record", "client"]
    adjacency: Literal["add-or-remove-one", "zero-out"]
    records_per_person: Annotated[int, Field(ge=1, le=64)]  # K, over all silos
    sampling_numerator: Positive
    sampling_denominator: Positive
    scale: Positive
    clip_steps: Annotated[int, Field(ge=1, le=2**26)]
    noise_steps: Annotated[int, Field(ge=0, le=2**40)]
    epsilon: DecimalString  # budget per (silo, population) at delta
    delta: DecimalString
    max_records: Positive  # N_max, public upper bound on records over all silos
    people_in_several_silos: Literal["none", "within-bound"]  # declared by the owner; within K records in all

    @property
    def sampling_probability(self) -> Fraction:
        """Poisson inclusion probability, a public constant of the manifest."""
        return Fraction(self.sampling_numerator, self.sampling_denominator)

    @model_validator(mode="after")
    def _sound(self) -> "PrivacySpec":
        if self.sampling_numerator > self.sampling_denominator:
            raise ValueError("sampling probability above 1")
        if self.people_in_several_silos == "within-bound" and (self.protocol != "R2" or self.records_per_person < 2):
            raise ValueError("people in several silos are within a bound of at least 2 records, and under R2 only")
        claim = ("client", "zero-out") if self.protocol == "C" else ("record", "add-or-remove-one")
        if (self.unit, self.adjacency) != claim:
            raise ValueError(f"the unit of protocol {self.protocol} is the {claim[0]}, its adjacency {claim[1]}")
        if self.protocol == "C" and self.records_per_person != 1:
            raise ValueError("the unit of C is a whole client: records_per_person must be 1")
        if self.protocol != "none":
            if self.noise_steps < 100:
                raise ValueError("noise_steps below 100: the integer noise is too coarse for the certificate")
            if not 0 < Decimal(self.delta) * self.max_records * 10 <= 1:
                raise ValueError("delta must lie in (0, 1/(10 * max_records)]")
            if Decimal(self.epsilon) <= 0:
                raise ValueError("epsilon must be positive")
        elif self.noise_steps:
            raise ValueError('protocol "none" adds no noise: noise_steps must be 0')
        return self


class EncryptionSpec(StrictModel):
    """The second lock: how inputs are encrypted for the decryptor. Moduli are derived, never written."""

    scheme: Literal["bfv"]
    limb_bits: Literal[16, 22, 32]
    library: Annotated[str, Field(pattern=r"^[a-z]{1,20} [0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}$")]  # name and version

    @model_validator(mode="after")
    def _usable(self) -> "EncryptionSpec":
        if self.library in DENIED_LIBRARIES:
            raise ValueError("this version of the HE library is known to be unsafe")
        return self


class AggregationSpec(StrictModel):
    """Secure aggregation. Thresholds are derived, never written: see `secagg.params`."""

    graph: Literal["complete", "ring"]
    assurance: Literal["masking", "dual", "he"]
    encryption: EncryptionSpec | None = None  # the key is left out with "masking"; null is refused (`exactly`)
    cipher: Literal["aes-256-ctr"]
    num_clients: Annotated[int, Field(ge=3, le=10_000)]
    max_corrupt: Annotated[int, Field(ge=0)]
    max_dropouts: Annotated[int, Field(ge=0)]
    min_cohort: Annotated[int, Field(ge=3)]
    slots_per_word: Literal[2, 3, 4]
    scale: Positive  # grid steps per unit of the aggregated update
    bound: Positive  # largest |value| of one client, in grid steps
    chunk_words: Annotated[int, Field(ge=16, le=65536)]
    rotation: Literal["hadamard"] | None = None  # before the noise; the key is left out where nothing is rotated

    @model_validator(mode="after")
    def _locked(self) -> "AggregationSpec":
        if (self.assurance == "masking") != (self.encryption is None):
            raise ValueError('"encryption" belongs to assurance "dual" and "he", and to no other')
        return self


class Manifest(StrictModel):
    """Everything that ctx binds besides membership and the current round."""

    version: Literal[1]
    task: Word
    data: Annotated[str, Field(min_length=1, max_length=1000)]  # which records, for people; nothing is computed by it
    base_model: BaseModelSpec
    adapter: AdapterSpec
    training: TrainingSpec
    privacy: PrivacySpec
    aggregation: AggregationSpec

    @model_validator(mode="after")
    def _feasible(self) -> "Manifest":
        for what, names in (
            ("file", [file.path for file in self.base_model.files]),
            ("tensor", [tensor.name for tensor in (*self.adapter.tensors, *self.adapter.personal)]),
            ("label", list(self.training.labels)),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two entries with one {what} name")
        if self.privacy.protocol == "R2" and (self.training.local_steps, self.training.optimizer) != (1, "sgd"):
            raise ValueError("R2 takes one local step by sgd: no bound is known for share noise after several steps")
        if self.privacy.protocol == "R2" and self.adapter.personal:
            raise ValueError("R2 has no personal tensors: a client would train them with its share of the noise alone")
        if self.privacy.protocol == "R2" and Decimal(self.training.proximal):
            raise ValueError("R2 has no proximal term: its one step starts where the term is zero")
        if self.privacy.protocol == "C" and self.aggregation.min_cohort < LEAST_CLIENTS:
            raise ValueError(
                f"C needs sums of at least {LEAST_CLIENTS} clients (min_cohort): with fewer its noise drowns the mean "
                "of their updates; with few clients take R1 or R2"
            )
        if self.training.consolidation is not None:
            self._check_consolidation(self.training.consolidation)
        if self.rotated:
            self._check_rotation()
        if self.noise_in_shares:
            self._check_shares()
        # Both constructors prove what they promise or raise ParameterError (a ValueError).
        self.secagg_params()
        return self

    def _check_consolidation(self, wanted: ConsolidationSpec) -> None:
        """Importance is read off sums of gradients, and parameters are held where they started. SPEC 7.7."""
        if self.training.optimizer != "sgd" or self.privacy.protocol == "C" or self.rotated:
            raise ValueError('consolidation needs sums of gradients: R2, R1 or none with "sgd", not rotated')
        if wanted.importance is not None and self.adapter.start is None:
            raise ValueError("consolidation holds parameters near adapter.start, and there is none")

    def _check_shares(self) -> None:
        """What noise inside the sum needs. SPEC 10.8, 10.11."""
        privacy, aggregation, name = self.privacy, self.aggregation, self.privacy.protocol
        if aggregation.assurance == "he":
            raise ValueError(
                f"{name} needs masks: without them the decryptor sees uploads with a share of the noise only"
            )
        if aggregation.max_corrupt < 1:
            raise ValueError(f"{name} needs a max_corrupt of 1 or more: each client knows its own share of the noise")
        if not (name == "R2" and self.rotated) and aggregation.scale != privacy.scale:
            raise ValueError(f"{name} aggregates the integers of the mechanism: both scales must be equal")
        if self.sensitivity_steps > MAX_SENSITIVITY:
            raise ValueError(f"the sensitivity must be at most {MAX_SENSITIVITY} grid steps: lower clip_steps")
        if self.release_noise_steps**2 < 100 * self.noise_shares:
            raise ValueError("a share of the noise is too coarse for the certificate: its variance is below 100")
        least = self.largest_contribution()
        if aggregation.bound < least:
            raise ValueError(f"bound too small for the largest values and the noise: {name} needs at least {least}")

    def _check_rotation(self) -> None:
        """What can be rotated exactly. SPEC 5.4."""
        privacy, root = self.privacy, block_root(self.adapter.size)
        if not self.noise_in_shares:
            raise ValueError("a rotation is for noise in shares (R2, C): its clients send integers")
        if self.adapter.size < LEAST_ROTATED:
            raise ValueError(f"a vector of fewer than {LEAST_ROTATED} values is not rotated")
        if privacy.protocol == "R2":
            divisor = Fraction(root * privacy.scale, self.aggregation.scale)
            if divisor.denominator != 1 or divisor.numerator & (divisor.numerator - 1):
                raise ValueError("the grid of rotated sums must be coarser by a power of two: change aggregation.scale")
            if privacy.max_records * privacy.clip_steps * root >= 2**52:
                raise ValueError("the sum of a silo may be too large to be rotated exactly: lower clip_steps")

    @property
    def noise_in_shares(self) -> bool:
        """Whether clients add shares of the noise, so that their integers are aggregated as they are."""
        return self.privacy.protocol in ("R2", "C")

    @property
    def noise_shares(self) -> int:
        """How many clients' noise counts: in shares, the smallest sum that is opened less those that may collude."""
        return self.aggregation.min_cohort - self.aggregation.max_corrupt if self.noise_in_shares else 1

    @property
    def rotated(self) -> bool:
        """Whether clients send a rotated vector."""
        return self.aggregation.rotation is not None

    @property
    def rotation_seed(self) -> bytes:
        """Seed of the rotation's signs: public, from the adapter's."""
        return digest(ROTATION, self.adapter.seed, self.adapter.size)

    @property
    def rotation_shift(self) -> int:
        """R2: bits by which the grid of rotated sums is coarser, the root of the block included."""
        root = block_root(self.adapter.size)
        return (root * self.privacy.scale // self.aggregation.scale).bit_length() - 1

    @property
    def vector_length(self) -> int:
        """Values that a client sends: the adapter's, or as many as whole blocks of the rotation hold."""
        return rotated_length(self.adapter.size) if self.rotated else self.adapter.size

    @property
    def release_clip_steps(self) -> int:
        """The clip norm in steps of the grid that is aggregated, rounded up."""
        return ceil(Fraction(self.privacy.clip_steps * self.aggregation.scale, self.privacy.scale))

    @property
    def release_noise_steps(self) -> int:
        """The noise in steps of the grid that is noised, rounded down: a coarser one for rotated sums."""
        if self.rotated:
            return self.privacy.noise_steps * self.aggregation.scale // self.privacy.scale
        return self.privacy.noise_steps

    @property
    def sensitivity_steps(self) -> int:
        """L2 norm by which one unit (a record; under C a client) moves what is noised, at most."""
        if self.privacy.protocol == "C":
            return rounded_norm(self.privacy.clip_steps, self.vector_length)
        if self.rotated:
            return rounded_norm(self.release_clip_steps, self.vector_length, DITHER)
        return self.privacy.clip_steps

    @property
    def largest_update(self) -> int:
        """Of rotated vectors: the magnitude at which a client cuts values off, before the noise."""
        return self.aggregation.bound - self._largest_noise

    def largest_contribution(self) -> int:
        """R2, C: a magnitude that no value of a client exceeds but with probability 2^-80 a round. SPEC 10.8."""
        return self._least_update() + self._largest_noise

    @property
    def _largest_noise(self) -> int:
        """Exceeded with probability 2^-81: 2·exp(-t^2 / 2v) for each value (a discrete Gaussian is sub-Gaussian)."""
        coordinates = FAIL + (2 * self.vector_length).bit_length() * LN2
        return root_above(2 * Fraction(self.release_noise_steps**2, self.noise_shares) * coordinates)

    def _least_update(self) -> int:
        """Before the noise. C: the norm of one update. R2: each row of the sample adds at most the clip norm; the
        sample by Bernstein's inequality for max_records coins of probability q."""
        p, clients = self.privacy, self.aggregation.num_clients
        if p.protocol == "C":
            whole = self.sensitivity_steps
            return min(whole, spread_norm(p.clip_steps, self.adapter.size, clients)) if self.rotated else whole
        mean = p.sampling_probability * p.max_records
        chance = 2 * mean * (1 - p.sampling_probability) * FAIL
        rows = min(ceil(mean + root_above(chance) + Fraction(2, 3) * FAIL), p.max_records)
        if self.rotated:
            return spread_norm(rows * self.release_clip_steps, self.adapter.size, clients)
        return rows * p.clip_steps

    @property
    def model_size(self) -> int:
        """Values of a model as it travels: the adapter's, and the moments of the server's optimizer."""
        return self.training.server.vectors * self.adapter.size

    def secagg_params(self) -> SecAggParams:
        """Validated aggregation parameters; raises ParameterError if they promise too much."""
        a = self.aggregation
        return SecAggParams(
            num_clients=a.num_clients,
            max_corrupt=a.max_corrupt,
            max_dropouts=a.max_dropouts,
            min_cohort=a.min_cohort,
            vector_length=self.vector_length,
            encoding=SlotEncoding(a.slots_per_word, a.scale, a.bound, a.num_clients),
            chunk_words=a.chunk_words,
            graph=a.graph,
            assurance=a.assurance,
            limb_bits=0 if a.encryption is None else a.encryption.limb_bits,
        )

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return signed.canonical(self.model_dump(mode="json", exclude_none=True))

    def digest(self) -> bytes:
        """32-byte digest that enters ctx."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return digest(MANIFEST_DIGEST, self.to_bytes())

    def model_digest(self, vector: bytes) -> bytes:
        """Digest of a flat float32 little-endian model under this manifest."""
        return digest(MODEL_DIGEST, self.digest(), vector)


def sign_manifest(manifest: Manifest, owner: SigningKey) -> tuple[bytes, bytes]:
    """(document bytes, detached signature)."""
    body = manifest.to_bytes()
    return body, signed.sign(KIND, body, owner)


def verify_manifest(body: bytes, signature: bytes, owner: VerifyKey) -> Manifest:
    """Signature, canonical form, schema, feasibility; in this order."""
    signed.verify(KIND, body, signature, owner)
    return exactly(parse_model(Manifest, "manifest", body), body)
