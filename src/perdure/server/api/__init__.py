"""The HTTP API below `/api/v1`, for programs: the actions and lists of the command line, with the
same JSON. One HTTP method at one path is called a verb.

- `verbs`: the class `Verb`, and how the requests to a verb are answered.
- `runs`, `conversations`, `lists`, `admin` and others: the tables of verbs. `routes` collects them.
- `forms`, `shapes`: the fields of requests and of answers.
- `openapi`: the OpenAPI document, made from these tables and fields.
- `events`: the journal as a stream.
"""
