"""The agents: one package for each CLI, the code that they share, perdure's copies of their
transcripts, and the rehearsal (a scripted model server).

`registry` loads a driver by its name."""
