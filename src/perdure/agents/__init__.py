"""The agents: one folder for each CLI, what they share, perdure's copies of their transcripts, and
the rehearsal.

`registry` finds a driver by its name."""
