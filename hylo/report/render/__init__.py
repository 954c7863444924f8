"""How a report is written: console, Markdown, LaTeX, HTML."""
