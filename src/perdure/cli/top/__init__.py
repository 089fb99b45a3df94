"""`perdure top`: all runs at once in a terminal, grouped by what they ask of a person. Textual has
this one room, and is imported late.

`view` looks into the store and says what is on the board; `lines` has each row and panel as text,
cleaned; `app` is the board and its keys, `screens` what lies over it: the log of a run, the keys, a
question. It only looks: what acts (retry, stop) is handed in.
"""
