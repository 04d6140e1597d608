"""Whether a phone's HTP works: the tiny model that ships runs on it and gives the text it is known to give.

Run on a phone that is UNKNOWN, after it has been looked at and before its lease is used. Only an artifact that is there
already is used: this is a look at the phone, and compiles nothing.

A phone is blamed only where the very same files have given the text before, on it or on another: a runner that a change
has broken fails everywhere, and its cells are to say so. What has given its text is kept in the cache, by a hash of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from harness.build.cache import Artifact, locate
from harness.build.reference import load_reference
from harness.conduct.attempt import EVAL_MODES
from harness.conduct.phone_files import phone_files
from harness.errors import FailureClass
from harness.evaluate.known_text import KnownText, known_text
from harness.farm.awake import kept_awake
from harness.farm.connect import PhoneLink
from harness.farm.deploy import deploy, sha256_of
from harness.farm.failures import Failure, classify, error_of
from harness.farm.identity import AttachedPhone
from harness.farm.payload import Payload, android_payload, sim_payload
from harness.farm.prepare import HtpError
from harness.farm.session import SessionSpec, prompt_flags, run_session
from harness.inventory import Phone
from harness.matrix import Cell
from harness.model_file import Mode
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, cache_root
from harness.soc import Soc
from harness.sources import source_digest
from harness.target import Target
from harness.text.decoders import VERSIONS

KNOWN_MODEL = "tiny_llama"
LIMIT_S = 600.0
"""For the runner, loading included: a phone takes a second, the simulator a few; beside busy cores many times that. Who
is over it is called BAD."""
MODES = (Mode.HYBRID, Mode.KV)
"""What is run, the first there is: hybrid shows both of its graphs. Lookahead's text may stop short of the context."""
NOT_THE_PHONES = frozenset({FailureClass.INFRA, FailureClass.ENV, FailureClass.CRASH})


@dataclass(frozen=True)
class DeepCheck:
    """The check, as `Nurse.deep_check` calls it.

    Attributes:
        run_id, folder: of the run; what a runner said is kept there.
        target: what artifacts are built for.
        phones: those that answer: they know their chipsets.
        fingerprint: of the toolchain the phones' runner has.
        own: cells of the run and their artifacts: it may have made the tiny model with other sizes.
        say: progress: a phone's name, and what.
        proofs: folder that remembers what has given its text; the cache's if None.
    """

    run_id: str
    folder: Path
    target: Target
    phones: Sequence[AttachedPhone]
    fingerprint: Mapping[str, str]
    own: Sequence[tuple[Cell, Artifact]]
    say: Callable[[str, str], None]
    proofs: Path | None = None

    def __call__(self, phone: Phone, link: PhoneLink) -> bool:
        """Runs the tiny model, or says why it cannot be run.

        Returns:
            Whether the phone is as good as could be seen: False where the model did not give its text, but has not done
            so on any phone yet, so that it need not be the phone.

        Raises:
            HtpError: it does not give the text that the same files have given before.
            InfraError, EnvError, CrashError: the phone, its connection or its storage failed meanwhile.
        """
        soc = next((p.identity.soc for p in self.phones if p.link.serial == link.serial), phone.soc)
        try:
            found = self._find(soc)
        except Exception as error:
            # Nothing here is the phone's, and a check that cannot be made must not end a run.
            found = f"{type(error).__name__}: {getattr(error, 'what', error)}"
        if isinstance(found, str):
            self.say(phone.name, f"deep check left out: {found}")
            return True
        mode, payload, model, known = found
        proof = (self.proofs or cache_root() / "known-texts" / "given") / self._identity(payload)
        started = time.monotonic()
        try:
            self._run(phone, link, self._spec(mode, payload, model, known), payload, known)
        except HtpError as error:
            if proof.exists():
                raise
            self.say(phone.name, f"deep check: {error.what}; the same files have passed on no phone, so none is blamed")
            return False
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.touch()
        self.say(phone.name, f"deep check: {KNOWN_MODEL} gave its text in {time.monotonic() - started:.1f} s")
        return True

    def _find(self, soc: Soc | None) -> tuple[Mode, Payload, ModelSpec, KnownText] | str:
        """What to run, or why there is nothing to."""
        if soc is None:
            return "the phone has no HTP"
        model = load_models(MODELS)[KNOWN_MODEL]
        candidates = [
            (mode, locate(model, mode, soc, self.target, model.lengths, dict(self.fingerprint))) for mode in MODES
        ]
        candidates += [(c.mode, a) for c, a in self.own if c.model.name == KNOWN_MODEL and c.soc == soc]
        for mode, artifact in candidates:
            if mode in MODES and artifact.ready:
                kept = cache_root() / "known-texts" / f"{artifact.reference.name}.json"
                known = known_text(model, artifact.reference, kept=kept)
                return mode, self._payload(artifact, soc), model, known
        return (
            f"no {KNOWN_MODEL} for {soc.name} ({self.target}) is in the cache; "
            f"`htpfarm compile --models {KNOWN_MODEL}` makes one"
        )

    def _payload(self, artifact: Artifact, soc: Soc) -> Payload:
        tokenizer = artifact.reference / load_reference(artifact.reference).tokenizer
        if self.target is Target.SIM:
            return sim_payload(artifact.pte, tokenizer)
        files = phone_files()
        return android_payload(artifact.pte, tokenizer, soc, build_folder=files.build, qnn_sdk_root=files.sdk)

    def _identity(self, payload: Payload) -> str:
        """A hash of all that decides what a good phone gives. A virtual phone's runner is this harness's."""
        parts = {file.name: sha256_of(file.path) for file in payload.files}
        if self.target is Target.SIM:
            parts |= {f"toolchain.{name}": value for name, value in self.fingerprint.items()} | {"": source_digest()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _spec(self, mode: Mode, payload: Payload, model: ModelSpec, known: KnownText) -> SessionSpec:
        """Flags that the stock runner knows, too."""
        flags = (
            *("--model_path", payload.model, "--tokenizer_path", payload.tokenizer),
            *("--decoder_model_version", VERSIONS[model.decoder], "--eval_mode", str(EVAL_MODES[mode])),
            *("--seq_len", str(known.prompt_tokens + known.tokens), "--temperature", "0"),
            *("--output_path", "outputs.txt", "--performance_output_path", "inference_speed.txt"),
            *prompt_flags([known.prompt]),
        )
        outputs = ("outputs.txt", "inference_speed.txt")
        return SessionSpec(f"{self.run_id}-check", 0, payload.runner, flags, outputs=outputs, timeout_s=LIMIT_S)

    def _run(self, phone: Phone, link: PhoneLink, spec: SessionSpec, payload: Payload, known: KnownText) -> None:
        into = self.folder / "deep-checks" / phone.name
        deployed = deploy(link, payload.files)
        with kept_awake(link) if self.target is Target.ANDROID else nullcontext():
            result = run_session(link, deployed, spec, into)
        into.mkdir(parents=True, exist_ok=True)
        for name in ("stdout", "stderr", "command"):
            (into / f"{name}.txt").write_text(getattr(result, name), encoding="utf-8")
        failure = classify(result)
        if failure is None:
            said = result.files["outputs.txt"].read_text(encoding="utf-8", errors="replace")
            failure = judge(said, known)
        if failure is None:
            return
        where = f"{phone.name} ({link.serial})"
        if failure.failure_class in NOT_THE_PHONES:
            raise error_of(failure, where)
        raise HtpError(failure.reason, where=where, remedy=failure.remedy, evidence=failure.evidence)


def judge(said: str, known: KnownText) -> Failure | None:
    """None where a runner's output ends with the known text; it may begin with the prompt. Pure."""
    text = said.strip()
    if text.endswith(known.text.strip()):
        return None
    answer = text.removeprefix(known.prompt.strip()).strip()
    reason = f"the known tiny model gives {answer[:200]!r} instead of {known.text.strip()!r}"
    return Failure(FailureClass.PRODUCT, reason, "", f"prompt: {known.prompt}\noutput: {text[:1000]}")
