"""Output formats of a report: console, Markdown, LaTeX, HTML."""
