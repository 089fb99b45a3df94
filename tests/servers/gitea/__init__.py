"""A real Gitea of a test's own: built once from its Go module (`build`), run on 127.0.0.1
(`server`)."""
