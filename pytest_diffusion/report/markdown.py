"""The Markdown summary for a pull request."""

from __future__ import annotations

from pytest_diffusion.report.contents import Report


def summary(report: Report) -> str:
    """The gate, the command, and a table of verdicts with the worst first."""
    lines = [f"## Diffusion quality: gate {report.gate}", "", f"`{report.command}`", ""]
    lines += ["| outcome | check | message |", "|---|---|---|"]
    for entry in report.entries:
        message = entry.verdict.message.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
        lines.append(f"| {entry.verdict.outcome} | {entry.verdict.check} | {message} |")
    return "\n".join(lines) + "\n"
