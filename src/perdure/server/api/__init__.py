"""The API below `/api/v1`: every verb and list of the command line, for programs, with the same
JSON.

`verbs` defines an address and answers its requests. The tables of verbs are `runs`,
`conversations`, `lists` and `admin`. `forms` has the fields of requests, `shapes` the fields of
answers, `openapi` the document made of both. `events` streams the journal.
"""
