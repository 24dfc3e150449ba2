"""The report: HTML, JSON, Markdown and terminal, made from verdicts alone."""
