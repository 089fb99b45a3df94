"""The HTTP API below `/api/v1`: every verb and list of the command line, for programs, with the
same JSON.

- `verbs`: what a verb is, and how its requests are answered.
- `runs`, `conversations`, `lists`, `admin` and others: the tables of verbs. `routes` collects them.
- `forms`, `shapes`: the fields of requests and of answers.
- `openapi`: the OpenAPI document, made from all these.
- `events`: the journal as a stream.
"""
