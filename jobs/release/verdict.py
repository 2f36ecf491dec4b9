"""The verdict of the gates on a release, and where it is stored."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.common.runner import Context
from jobs.release.store import GATES


@dataclass(frozen=True)
class Gate:
    """One condition and its result."""

    name: str
    value: float
    limit: float
    at_least: bool  # True: the value must be at least the limit. False: at most.
    says: str  # What the value is, and what to check if the gate refuses.

    @property
    def passed(self) -> bool:
        """Whether the gate passes. NaN never passes."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def line(self) -> str:
        """The gate as one line, for the log and the report."""
        sign = ">=" if self.at_least else "<="
        verdict = "passed" if self.passed else "REFUSED"
        return f"{self.name} {self.value:.4g} (must be {sign} {self.limit:.4g}): {verdict}. {self.says}"


@dataclass(frozen=True)
class Verdict:
    """The results of all gates of a release."""

    gates: list[Gate]
    against: str | None  # the id of the release that it was compared with
    notes: list[str] = field(default_factory=list)  # gates that were not checked, and why
    record: dict[str, Any] | None = None  # figures that later nights compare with

    @property
    def refused(self) -> list[str]:
        """Names of the gates that refuse the release."""
        return [gate.name for gate in self.gates if not gate.passed]

    @property
    def passed(self) -> str:
        """How many gates passed, as text: `7 of 8`."""
        return f"{len(self.gates) - len(self.refused)} of {len(self.gates)}"

    def refusal(self) -> str | None:
        """The gates that refuse the release, as text; None if all pass."""
        refused = [gate.line() for gate in self.gates if not gate.passed]
        return " ".join(refused) if refused else None


def verdict_of(context: Context, release_uri: str) -> Verdict | None:
    """The last verdict on a release; None if its gates were never checked."""
    uri = f"{release_uri}/{GATES}"
    if not context.warehouse.exists(uri):
        return None
    return read_verdict(json.loads(context.warehouse.read_text(uri)))


def read_verdict(content: dict[str, Any]) -> Verdict:
    """The verdict in the content of gates.json. Earlier versions wrote no notes and no record."""
    gates = [Gate(**gate) for gate in content["gates"]]
    return Verdict(gates, content["against"], content.get("notes", []), content.get("record"))


def refused_by(context: Context, release_uri: str) -> list[str]:
    """Names of the gates that refused a release at the last check."""
    verdict = verdict_of(context, release_uri)
    return verdict.refused if verdict else []


def write_verdict(context: Context, release_uri: str, verdict: Verdict, asked: str) -> None:
    """Store a verdict with its release. `asked`: digest of what the verdict depends on."""
    content = {
        "asked": asked,
        "against": verdict.against,
        "gates": [asdict(gate) for gate in verdict.gates],
        "notes": verdict.notes,
        "record": verdict.record,
    }
    context.warehouse.write_text(f"{release_uri}/{GATES}", json.dumps(content, indent=1))
