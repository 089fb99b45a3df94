"""`python -m perdure`: the same as the command `perdure`."""

from perdure.cli.main import main

raise SystemExit(main())
