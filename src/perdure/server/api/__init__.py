"""The API below `/api/v1`: every verb and list of the command line, for programs, with the same
JSON.

`verbs` says what an address is and answers a request by it; the tables of verbs are `runs`,
`conversations`, `lists` and `admin`; `forms` has what requests may say, `shapes` what answers look
like, `openapi` the document that is made of both; `events` streams the journal.
"""
