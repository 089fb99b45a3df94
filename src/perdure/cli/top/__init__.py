"""`perdure top`: shows all runs in a terminal, grouped by what they need from a person.

Only this package uses Textual, which is imported late. `view` reads the store, decides what is on
the board, and renders each row and panel as cleaned text. `app` has the board and its keys.
`screens` has the screens that cover the board: a run's log, the keys, a question, an agent's
request. The board itself is read-only: its caller passes in the actions (answer, retry, stop).
"""
