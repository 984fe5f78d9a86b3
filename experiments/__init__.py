"""Questions and answers: study, compare, validate, figures, report, and the command line (cli)."""

import real_backend as real_backend  # first: it refuses packages of other projects in our place
