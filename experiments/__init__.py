"""Questions and answers: study, compare, validate, figures, report, and the command line (cli)."""
