"""What the gates said of a release: questions, answers, and what was not asked."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.common.runner import Context
from jobs.release.store import GATES


@dataclass(frozen=True)
class Gate:
    """One question and its answer."""

    name: str
    value: float
    limit: float
    at_least: bool  # The limit is the least that passes, else the most.
    says: str

    @property
    def passed(self) -> bool:
        """Whether the release may be published; NaN never passes."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def line(self) -> str:
        """For the log and the report."""
        sign = ">=" if self.at_least else "<="
        verdict = "passed" if self.passed else "REFUSED"
        return f"{self.name} {self.value:.4g} (must be {sign} {self.limit:.4g}): {verdict}. {self.says}"


@dataclass(frozen=True)
class Verdict:
    """All gates of a release."""

    gates: list[Gate]
    against: str | None  # The release that it was compared with.
    notes: list[str] = field(default_factory=list)  # Gates that were not asked, and why.
    record: dict[str, Any] | None = None  # What later nights compare themselves with.

    def refusal(self) -> str | None:
        """Why it is refused; None if it is not."""
        refused = [gate.line() for gate in self.gates if not gate.passed]
        return " ".join(refused) if refused else None


def verdict_of(context: Context, release_uri: str) -> Verdict | None:
    """The gates of a release as they were asked last; None if they were not."""
    uri = f"{release_uri}/{GATES}"
    if not context.warehouse.exists(uri):
        return None
    return read_verdict(json.loads(context.warehouse.read_text(uri)))


def read_verdict(known: dict[str, Any]) -> Verdict:
    """A verdict from the content of gates.json; earlier versions wrote no notes and no record."""
    gates = [Gate(**gate) for gate in known["gates"]]
    return Verdict(gates, known["against"], known.get("notes", []), known.get("record"))


def refused_by(context: Context, release_uri: str) -> list[str]:
    """Names of the gates that a release did not pass when it was asked last."""
    verdict = verdict_of(context, release_uri)
    return [gate.name for gate in verdict.gates if not gate.passed] if verdict else []


def write_verdict(context: Context, release_uri: str, verdict: Verdict, asked: str) -> None:
    """Keep a verdict beside its release. `asked`: digest of what the answers depend on."""
    told = {
        "asked": asked,
        "against": verdict.against,
        "gates": [asdict(gate) for gate in verdict.gates],
        "notes": verdict.notes,
        "record": verdict.record,
    }
    context.warehouse.write_text(f"{release_uri}/{GATES}", json.dumps(told, indent=1))
